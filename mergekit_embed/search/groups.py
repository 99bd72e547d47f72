"""Which tensors have coefficients in common, and how a recipe says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.names import LAYER, component_of, layer_of, module_of
from .specs import GroupsName

LAYERED = re.compile(r"^(?P<stack>.*\.)?(?P<index>\d+)$")
"""What `layer_of` calls a layer: its stack and its number."""


@dataclass(frozen=True)
class Group:
    """Tensors with one set of coefficients.

    Attributes:
        name: for the report.
        pattern: a filter of recipes that finds these tensors and no other of the model; None where
            they are all.
    """

    name: str
    pattern: str | None


@dataclass(frozen=True)
class Grouping:
    """The groups of a model, and the number of each tensor's, in the order of the tensors."""

    groups: tuple[Group, ...]
    group_of: tuple[int, ...]


def grouped(names: Sequence[str], by: GroupsName, blocks: int) -> Grouping:
    """Put the tensors of a model into groups.

    Args:
        names: of all tensors that are merged.
        by: what a group is.
        blocks: how many blocks of layers there are, at most; of each stack of them.
    """
    if by == "model":
        return Grouping((Group("model", None),), (0,) * len(names))
    labels = _labels(names, by, blocks)
    order = list(dict.fromkeys(labels))
    groups = []
    for label in order:
        own = [name for name, one in zip(names, labels, strict=True) if one == label]
        others = [name for name, one in zip(names, labels, strict=True) if one != label]
        groups.append(Group(label, _pattern(own, others)))
    return Grouping(tuple(groups), tuple(order.index(label) for label in labels))


def _labels(names: Sequence[str], by: GroupsName, blocks: int) -> list[str]:
    kinds = {"layer": layer_of, "component": component_of, "module": module_of}
    if by in kinds:
        return [kinds[by](name) for name in names]
    groups = [layer_of(name) for name in names]
    last = _last_layers(groups)
    found = []
    for group in groups:
        layer = LAYERED.match(group)
        if layer is None:
            found.append(group)
            continue
        stack, index = layer["stack"] or "", int(layer["index"])
        block = index * min(blocks, last[stack] + 1) // (last[stack] + 1)
        found.append(f"{stack}block {block + 1}")
    return found


def _last_layers(groups: Sequence[str]) -> Mapping[str, int]:
    """The number of the last layer of every stack."""
    last: dict[str, int] = {}
    for group in groups:
        layer = LAYERED.match(group)
        if layer is not None:
            stack = layer["stack"] or ""
            last[stack] = max(last.get(stack, 0), int(layer["index"]))
    return last


def _pattern(own: Sequence[str], others: Sequence[str]) -> str:
    """The shortest of some patterns that finds these names and none of the others."""
    exact = f"^{_any([re.escape(name) for name in sorted(own)])}$"
    folders = {re.escape(name.rpartition("/")[0]) for name in own}
    candidates = [
        f"^{_any(sorted(folders))}/",
        "^[^/]*$",
        f"^{_any(sorted({re.escape(_beginning(name)) for name in own}))}",
        f"^{_any(sorted({_in_any_layer(name) for name in own}))}",
    ]
    fitting = [one for one in candidates if _tells_apart(re.compile(one), own, others)]
    return f"/{min(fitting, key=len, default=exact)}/"


def _tells_apart(pattern: re.Pattern[str], own: Sequence[str], others: Sequence[str]) -> bool:
    found = all(pattern.search(name) for name in own)
    return found and not any(pattern.search(name) for name in others)


def _beginning(name: str) -> str:
    """`encoder.layer.3.` of a tensor of a layer, `embeddings.LayerNorm.` of another."""
    layer = LAYER.match(name)
    return layer[0] if layer else name.rpartition(".")[0] + "." if "." in name else name


def _in_any_layer(name: str) -> str:
    """A pattern of a module's name, whatever the number of its layer."""
    module = name.rpartition(".")[0] or name
    layer = LAYER.match(module)
    if layer is None:
        return re.escape(f"{module}.")
    rest = re.escape(f"{module[layer.end() :]}.")
    return f"{re.escape(layer['stack'])}\\.\\d+\\.{rest}"


def _any(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"
