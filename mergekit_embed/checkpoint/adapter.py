"""Folding a PEFT LoRA adapter into the model that it was trained on, by headers alone.

`W + s B A`, with s = alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2106.09685,
https://arxiv.org/abs/2312.03732; the rules of names, ranks and factors are those of PEFT's
`tuners/lora`). Whatever an adapter asks for that is not such a sum is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from .adapter_config import CONFIG, AdapterConfig, read_adapter_config
from .folded import FoldedTensor, LowRank
from .folder import Checkpoint, Component
from .names import Matcher, bare
from .pickle_file import read_pickle
from .safetensors_file import read_header
from .tensor import Shape, StoredTensor, Tensor, short

SAFETENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?"
)
WRAPPED = re.compile(r"(\.base_layer|\.modules_to_save(\.default)?)(?=\.[^.]+$)")
"""What PEFT puts before the last part of the name of a tensor that is saved whole."""

FOREIGN = re.compile(r"\.(lora_|hada_|lokr_|ia3_|oft_|boft_|vera_|trainable_tokens_)")
"""Parts of names that only belong to what an adapter adds to a layer."""

SHOWN = 50
"""How many problems an error lists."""

Place = tuple[str, str]
"""A tensor of the model: the role of its component, and its name there."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to its model.

    Attributes:
        updates: what is added to a tensor.
        whole: what stands in place of a tensor, under the name it has in the adapter's file.
    """

    root: Path
    config: AdapterConfig
    updates: Mapping[Place, LowRank]
    whole: Mapping[Place, StoredTensor]


def fold(model: Checkpoint, root: Path) -> Checkpoint:
    """The model with the adapter in folder `root` folded into it.

    Raises:
        CheckpointError: see `read_adapter`.
    """
    adapter = read_adapter(model, root)
    components = {
        role: replace(component, tensors=dict(_folded(component, role, adapter)))
        for role, component in model.components.items()
    }
    return replace(model, components=components, adapter=root)


def _folded(component: Component, role: str, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in component.tensors.items():
        whole, update = adapter.whole.get((role, name)), adapter.updates.get((role, name))
        if whole is None and update is None:
            yield name, tensor
        elif whole is not None and update is None and whole.dtype is tensor.dtype:
            yield name, replace(whole, name=name)
        else:
            yield name, FoldedTensor(name, tensor.dtype, whole or tensor, update)


def read_adapter(model: Checkpoint, root: Path) -> Adapter:
    """Hold the adapter in folder `root` against the model that it was trained on.

    Raises:
        CheckpointError: when the folder holds no adapter, it is of a kind that is no such sum, or
            some of its tensors do not fit the model, with all of these.
    """
    try:
        config = read_adapter_config(root)
        return _Folding(model, root, config).adapter(_read_tensors(root))
    except OSError as error:
        raise CheckpointError(
            error.filename or root, f"cannot be read: {error.strerror or error}"
        ) from error


class Spelled(NamedTuple):
    """What a tensor of an adapter is about: the model's tensor, and whether that is looked up."""

    name: str
    embedding: bool


def spelled(tensor: StoredTensor) -> Spelled:
    """The name of the model's tensor, as the adapter has it, for one of the adapter's."""
    name = tensor.name.removeprefix(PREFIX)
    found = FACTOR.fullmatch(name)
    if found:
        return Spelled(f"{found['module']}.weight", found["embedding"] is not None)
    return Spelled(WRAPPED.sub("", name), False)


def _read_tensors(root: Path) -> Mapping[str, StoredTensor]:
    if (root / SAFETENSORS).is_file():
        return read_header(root / SAFETENSORS)
    if (root / PICKLE).is_file():
        return read_pickle(root / PICKLE)
    raise CheckpointError(root, f"holds no {SAFETENSORS} (or {PICKLE}) beside its {CONFIG}")


@dataclass
class _Pair:
    """The factors that an adapter has for one module, as they are found."""

    embedding: bool
    sides: dict[str, StoredTensor] = field(default_factory=dict)


class _Folding:
    """An adapter and a model on their way to each other, and what does not fit."""

    def __init__(self, model: Checkpoint, root: Path, config: AdapterConfig):
        self.model, self.root, self.config = model, root, config
        self.matchers = {r: Matcher(c.tensors) for r, c in model.components.items()}
        self.problems: list[str] = []
        self.whole: dict[Place, StoredTensor] = {}
        self.updates: dict[Place, LowRank] = {}

    def adapter(self, tensors: Mapping[str, StoredTensor]) -> Adapter:
        """What the adapter's tensors do to the model."""
        pairs: dict[str, _Pair] = {}
        for name, tensor in tensors.items():
            self._sort_in(name.removeprefix(PREFIX), tensor, pairs)
        for module, pair in pairs.items():
            self._add_pair(module, pair)
        if not self.problems and not tensors:
            self.problems.append("it holds no tensors")
        if self.problems:
            more = len(self.problems) - SHOWN
            listed = "; ".join(self.problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
            raise CheckpointError(
                self.root,
                f"does not fit {self.model.root}: {listed}. Name it behind the "
                "model that it was trained on",
            )
        return Adapter(self.root, self.config, self.updates, self.whole)

    def _sort_in(self, name: str, tensor: StoredTensor, pairs: dict[str, _Pair]) -> None:
        """A factor waits for its other half; everything else replaces a tensor of the model."""
        found = FACTOR.fullmatch(name)
        if found:
            embedding = found["embedding"] is not None
            pair = pairs.setdefault(found["module"], _Pair(embedding))
            if pair.embedding is not embedding or found["side"] in pair.sides:
                self.problems.append(f"{short(tensor.name)} is a second factor of its module")
            pair.sides[found["side"]] = tensor
            return
        if FOREIGN.search(f".{name}"):
            self.problems.append(f"{short(tensor.name)} is no part of a plain LoRA")
            return
        place = self._find(WRAPPED.sub("", name), tensor.name)
        if place is None:
            return
        mine = self._at(place)
        if place in self.whole:
            self.problems.append(f"{short(tensor.name)} replaces a tensor for the second time")
        elif tensor.shape != mine.shape:
            self._refuse_shape(tensor, f"the tensor {list(mine.shape)}")
        elif tensor.dtype is not mine.dtype and not (tensor.dtype.is_float and mine.dtype.is_float):
            self.problems.append(f"{short(tensor.name)} is {tensor.dtype}, {mine.dtype} there")
        self.whole[place] = tensor

    def _find(self, name: str, shown: str) -> Place | None:
        """Our tensor for the adapter's name; a tied one is another tensor with another update."""
        found = []
        for role, matcher in self.matchers.items():
            for asked in self._spellings(role, name):
                mine = matcher.find(asked)
                if mine is not None and bare(mine) == bare(asked):
                    found.append((role, mine))
                    break
        if len(found) == 1:
            return found[0]
        wrong = "belongs to several tensors" if found else "belongs to no tensor"
        self.problems.append(f"{short(shown)} {wrong} of the model")
        return None

    def _spellings(self, role: str, name: str) -> Iterator[str]:
        """The name, and without the number that sentence-transformers gives the component."""
        yield name
        number, _, rest = name.partition(".")
        path = self.model.components[role].path
        for index, module in enumerate(self.model.modules):
            if str(index) == number and module.path == path and rest:
                yield rest

    def _at(self, place: Place) -> Tensor:
        role, name = place
        return self.model.components[role].tensors[name]

    def _refuse_shape(self, tensor: StoredTensor, other: str) -> None:
        self.problems.append(f"{short(tensor.name)} has shape {list(tensor.shape)}, {other}")

    def _add_pair(self, module: str, pair: _Pair) -> None:
        a, b = pair.sides.get("A"), pair.sides.get("B")
        if a is None or b is None:
            lacking = "B" if b is None else "A"
            self.problems.append(f"{short(module)} has no lora_{lacking} beside the other factor")
            return
        place = self._find(f"{module}.weight", a.name)
        if place is None:
            return
        mine = self._at(place)
        if not all(t.dtype.is_float for t in (a, b, mine)):
            kinds = f"{a.dtype}, {b.dtype} onto {mine.dtype}"
            self.problems.append(f"{short(a.name)} cannot be added: {kinds}")
            return
        if place in self.updates:
            self.problems.append(f"{short(a.name)} changes a tensor for the second time")
        transposed = pair.embedding or self.config.fan_in_fan_out
        rank = self.config.rank_of(module)
        if self._fits(a, b, mine.shape, rank, transposed):
            left, right = (a, b) if transposed else (b, a)
            scale = self.config.scale_of(module)
            self.updates[place] = LowRank(left, right, scale, transposed)

    def _fits(
        self, a: StoredTensor, b: StoredTensor, shape: Shape, rank: int, transposed: bool
    ) -> bool:
        if len(shape) != 2:
            self._refuse_shape(a, f"and its layer {list(shape)}: no linear layer or embedding")
            return False
        out, into = (shape[1], shape[0]) if transposed else shape
        fits = True
        for tensor, wanted in ((a, (rank, into)), (b, (out, rank))):
            if tensor.shape != wanted:
                told = f"not {list(wanted)} for rank {rank} and a weight {list(shape)}"
                self._refuse_shape(tensor, told)
                fits = False
        return fits
