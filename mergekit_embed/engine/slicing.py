"""Which tensors the result has, and from which layer of each member each of them comes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..checkpoint import Component, Tensor
from ..checkpoint.names import LAYER
from ..errors import PlanError
from ..recipe import Recipe
from .models import Models


@dataclass(frozen=True)
class Wanted:
    """A tensor of the result.

    Attributes:
        tensor: of the shell, under the name it has in the result.
        slice: index of the recipe's slice that it is merged from.
        layers: for each member of the slice, the layer that it comes from; None outside layers and
            where the models are merged whole.
        base_layer: likewise, of the base.
        depth: the layer's place in its slice from 0 to 1; None: the place in the whole model.
    """

    component: Component
    tensor: Tensor
    slice: int = 0
    layers: tuple[int, ...] | None = None
    base_layer: int | None = None
    depth: float | None = None

    def asked(self, layer: int | None) -> str:
        """What the tensor is called in a model that gives it from this layer."""
        return self.tensor.name if layer is None else in_layer(self.tensor.name, layer)


def in_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    found = LAYER.match(name)
    assert found is not None
    return f"{name[: found.start('index')]}{layer}{name[found.end('index') :]}"


def wanted_tensors(recipe: Recipe, models: Models) -> list[Wanted]:
    """Every tensor of the result, in the order of the shell's.

    Raises:
        PlanError: when the recipe names layers that the models do not have.
    """
    whole = [
        Wanted(component, tensor)
        for component in models.shell.components.values()
        for tensor in component.tensors.values()
    ]
    if not recipe.is_layered:
        return whole
    last = len(recipe.slices) - 1
    outside = [
        replace(wanted, slice=0 if "embed" in wanted.tensor.name else last)
        for wanted in whole
        if LAYER.match(wanted.tensor.name) is None
    ]
    layered = [wanted for wanted in whole if LAYER.match(wanted.tensor.name)]
    return outside + _layers(recipe, models, layered)


def shell_layers(recipe: Recipe, models: Models) -> tuple[int, ...]:
    """For every layer of the result, the layer of the shell whose place in config.json it takes."""
    found: list[int] = []
    for index, members in enumerate(recipe.slices):
        own = members[0].layers
        base = recipe.base_layers[index]
        named = [m.layers for m in members if models.opened(m.reference) is models.shell]
        if models.shell is models.base and base is not None:
            named.insert(0, base)
        start, stop = (named or [own])[0] or (0, 0)
        found += range(start, stop)
    return tuple(found)


def _layers(recipe: Recipe, models: Models, layered: list[Wanted]) -> list[Wanted]:
    by_layer: dict[int, list[Wanted]] = {}
    stacks = set()
    for wanted in layered:
        found = LAYER.match(wanted.tensor.name)
        assert found is not None
        stacks.add(found["stack"])
        by_layer.setdefault(int(found["index"]), []).append(wanted)
    label = models.shell.label
    if len(stacks) != 1:
        listed = ", ".join(sorted(stacks)) or "none"
        message = f"layers can be sliced in a model with one stack of them; {label} has {listed}"
        raise PlanError([recipe.source.problem(("slices",), message)])
    result = []
    templates = iter(shell_layers(recipe, models))
    position = 0
    for index, members in enumerate(recipe.slices):
        ranges = [member.layers or (0, 0) for member in members]
        base = recipe.base_layers[index]
        count = ranges[0][1] - ranges[0][0]
        for offset in range(count):
            template = next(templates)
            if template not in by_layer:
                message = f"{label} has no layer {template}; it has {len(by_layer)}, from 0"
                raise PlanError([recipe.source.problem(("slices", index), message)])
            result += [
                replace(
                    wanted,
                    tensor=wanted.tensor.renamed(in_layer(wanted.tensor.name, position)),
                    slice=index,
                    layers=tuple(start + offset for start, _ in ranges),
                    base_layer=None if base is None else base[0] + offset,
                    depth=offset / (count - 1) if count > 1 else 0.0,
                )
                for wanted in by_layer[template]
            ]
            position += 1
    return result
