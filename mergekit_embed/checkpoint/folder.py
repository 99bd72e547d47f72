"""A model folder opened for merging: its components, their tensors, and its shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .shell import Fact, Module, describe, read_modules
from .tensor import Tensor, short
from .weights import has_weights, read_weights

WEIGHTED = {"CNN", "Dense", "LSTM", "LayerNorm", "StaticEmbedding", "Transformer"}
"""Modules that cannot do without weights; those of other classes may have some or none."""

UNREADABLE = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".ckpt", ".npz")


@dataclass(frozen=True)
class Component:
    """A weight-bearing part of a model folder: the transformer, `2_Dense`, ...

    `role` is the same in all members for the same part (its class and its number among those),
    whatever folder it lies in; `path` is its folder, "" for the model's own.
    """

    role: str
    path: str
    tensors: Mapping[str, Tensor] = field(repr=False)

    def key(self, name: str) -> str:
        """The name that users and filters see: `2_Dense/linear.weight`, or the bare name."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True)
class Checkpoint:
    """One model, described by its headers and configuration files; no weight is read.

    `label` is how the recipe names it; `modules` is empty for a folder without modules.json;
    `adapter` is the folder of the adapter that is folded into the tensors. Of the result of a
    recipe, `root` is the model that its files come from, `told` what JSON files say otherwise than
    there, by their path, and `recipe` where the recipe is.
    """

    label: str
    root: Path
    components: Mapping[str, Component] = field(repr=False)
    modules: tuple[Module, ...] = field(repr=False)
    facts: Mapping[str, Fact] = field(repr=False)
    adapter: Path | None = None
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    recipe: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for c in self.components.values() for t in c.tensors.values())


def open_checkpoint(root: Path, label: str | None = None) -> Checkpoint:
    """Describe the model in a folder.

    Raises:
        CheckpointError: when it is not a model folder, or a file in it is broken or hostile.
    """
    try:
        return _open(root, label or str(root))
    except OSError as error:
        raise CheckpointError(
            error.filename or root, f"cannot be read: {error.strerror or error}"
        ) from error


def _open(root: Path, label: str) -> Checkpoint:
    if not root.is_dir():
        raise CheckpointError(root, "is not a folder")
    modules = read_modules(root)
    folders = modules or (Module("Transformer", ""),)
    components: dict[str, Component] = {}
    counts: dict[str, int] = {}
    seen: set[str] = set()
    bereft: list[Path] = []
    for module in folders:
        counts[module.kind] = counts.get(module.kind, 0) + 1
        folder = root / module.path
        if module.path in seen:
            continue
        if not has_weights(folder):
            _refuse_unreadable(folder, root)
            bereft += [folder] if module.kind in WEIGHTED else []
            continue
        seen.add(module.path)
        number = counts[module.kind]
        role = module.kind if number == 1 else f"{module.kind} {number}"
        components[role] = Component(role, module.path, read_weights(folder))
    if bereft or not components:
        first = bereft[0] if bereft and components else root
        raise CheckpointError(first, _no_weights(first))
    _refuse_ambiguous(root, components)
    return Checkpoint(label, root, components, modules, describe(root, modules))


def _refuse_unreadable(folder: Path, root: Path) -> None:
    """A module that keeps weights in a format we do not read must not be passed over."""
    if folder == root or not folder.is_dir():
        return
    found = sorted(p.name for p in folder.iterdir() if p.suffix in UNREADABLE)
    if found:
        raise CheckpointError(folder, f"keeps its weights in {found[0]}, which cannot be merged")


def _refuse_ambiguous(root: Path, components: Mapping[str, Component]) -> None:
    """A tensor of the transformer may be called `2_Dense/linear.weight`; both cannot be merged."""
    keys: set[str] = set()
    for component in components.values():
        for key in map(component.key, component.tensors):
            if key in keys:
                raise CheckpointError(root, f"holds two tensors called {short(key)}")
            keys.add(key)


def _no_weights(root: Path) -> str:
    inner = sorted(p.parent.name for p in root.glob("*/modules.json"))
    inner += sorted(p.parent.name for p in root.glob("*/config.json") if has_weights(p.parent))
    if inner:
        return f"holds no weights itself; did you mean {', '.join(sorted(set(inner))[:4])} in it?"
    if (root / "adapter_config.json").is_file():
        return "is a PEFT adapter, not a whole model; name it behind its base, as in `BASE+ADAPTER`"
    return "holds no weights (model.safetensors, an index with shards, or pytorch_model.bin)"
