"""A validated recipe: what is wanted, with nothing left to check but the models themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from ..methods import Method, Unit
from . import values
from .nested import without_adapter
from .source import Source


@dataclass(frozen=True)
class Member:
    """A model that goes into the merge, as the recipe names it, with its own parameters.

    `layers` are the first of its layers that is used and the one after the last; None for all.
    `group` names the members that it is merged with first; None for a member by itself.
    `statistics` is the folder of what was measured of it.
    """

    reference: str
    parameters: Mapping[str, values.Value]
    place: values.Path
    layers: tuple[int, int] | None = None
    group: str | None = None
    statistics: str | None = None


@dataclass(frozen=True)
class TempScale:
    """Divide the attention's logits by a temperature, folded into what makes the queries."""

    temperature: float


@dataclass(frozen=True)
class ExtendPositions:
    """Stretch the table of learned positions, so that it serves texts of so many tokens."""

    positions: int


@dataclass(frozen=True)
class AdapterOutput:
    """The result is a LoRA adapter: of this rank at most, or (None) of all factors together."""

    rank: int | None


@dataclass(frozen=True)
class Publish:
    """Where the result is to be on the Hub, when it is published; see `PublishEntry`."""

    repository: str
    private: bool
    revision: str | None
    create_pr: bool


Edit = TempScale | ExtendPositions
"""What is done to merged weights before they are rounded and stored."""

Slice = tuple[Member, ...]
"""Members that are merged with each other: whole, or some layers of each."""


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    `slices` is one slice of whole members, or the layers of the result piece by piece, with the
    base's own layers for each in `base_layers`. A slice leaves out a base that was listed but is
    only the origin of deltas, and begins with the base for methods that start from it. `nested` are
    the members that are recipes, by what the recipe calls them. `point` names the recipe among
    those of its sweep. `edits` are
    those of `post` but for `cast`, which is in `dtype`. `accepted` names the disagreements between
    members that the recipe accepts. `tokenizer_source` is `base`, `union`, or one of the models as
    the recipe refers to it. `adapter_output` is None where the result is a model. `search` says how
    parameters are to be found, as the file has it; None where all are given. `publish` says where
    on the Hub the result is to be, for who asks for that.
    """

    name: str
    source: Source = field(repr=False, compare=False)
    method: Method
    slices: tuple[Slice, ...]
    base_layers: tuple[tuple[int, int] | None, ...]
    base: str | None
    parameters: Mapping[str, values.Value]
    granularity: Unit
    seed: int
    output: str | None
    dtype: DType | None
    edits: tuple[Edit, ...]
    accepted: frozenset[str]
    drop_extra_tensors: bool
    copy_missing_tensors: bool
    allow_non_finite: bool
    max_shard_size: int
    adapter_output: AdapterOutput | None = None
    nested: Mapping[str, Recipe] = field(default_factory=dict)
    point: str | None = None
    tokenizer_source: str | None = None
    pad_to_multiple_of: int | None = None
    search: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    publish: Publish | None = None

    @property
    def target(self) -> Path:
        """The folder to write where nobody says otherwise."""
        folder = Path(self.output or Path("merged") / self.name).expanduser()
        return folder / self.point if self.point else folder

    def nested_in(self, reference: str) -> tuple[Recipe | None, str | None]:
        """The recipe that a member is, and the adapter behind it; None for a model."""
        name = without_adapter(reference)
        if reference in self.nested:
            return self.nested[reference], None
        if name is None or name not in self.nested:
            return None, None
        return self.nested[name], reference[len(name) + 1 :]

    @property
    def is_layered(self) -> bool:
        """True when the result is put together from layers."""
        return self.slices[0][0].layers is not None

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the one slice, or those of all slices, each model once."""
        if len(self.slices) == 1:
            return self.slices[0]
        once: dict[str, Member] = {}
        for member in (member for one in self.slices for member in one):
            once.setdefault(member.reference, member)
        return tuple(once.values())

    def values_for(self, tensor: str, depth: float, members: Slice | None = None) -> dict[str, Any]:
        """Every parameter of the method for one tensor.

        Args:
            tensor: the tensor's name, which filters look at.
            depth: its layer's place from 0 (first, or before the layers) to 1 (last, or after).
            members: the slice that the tensor is merged from; the first one by default.

        Returns:
            Scalars by name; float64 arrays of shape (K,) for the parameters of members. The more
            specific wins: the member's own value, then that for all, then the default. Where
            members are grouped, also `groups`, the number of each one's group: int64 (K,).
        """
        members = self.slices[0] if members is None else members
        resolved: dict[str, Any] = {}
        for name, parameter in self.method.parameters.items():
            common = _first(self.parameters.get(name), parameter.default, tensor, depth)
            if parameter.per_member:
                own = [_first(m.parameters.get(name), common, tensor, depth) for m in members]
                resolved[name] = np.array(own, dtype=np.float64)
            else:
                resolved[name] = parameter.convert(common)
        if any(member.group is not None for member in members):
            resolved["groups"] = _numbered(members)
        return resolved


def _numbered(members: Slice) -> NDArray[np.int64]:
    """The number of each member's group; a member without one is a group of its own."""
    names = [("alone", index) if m.group is None else m.group for index, m in enumerate(members)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _first(value: values.Value | None, default: Any, tensor: str, depth: float) -> Any:
    found = value.at(tensor, depth) if value is not None else None
    return default if found is None else found
