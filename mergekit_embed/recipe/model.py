"""A validated recipe: what is wanted, with nothing left to check but the models themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import DType
from ..methods import Method
from . import values
from .source import Source


@dataclass(frozen=True)
class Member:
    """A model that goes into the merge, as the recipe names it, with its own parameters."""

    reference: str
    parameters: Mapping[str, values.Value]
    place: values.Path


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    `members` leaves out a base that was listed among the models but is only the origin of deltas,
    and begins with the base for methods that start from it. `accepted` names the disagreements
    between members that the recipe accepts.
    """

    name: str
    source: Source = field(repr=False, compare=False)
    method: Method
    members: tuple[Member, ...]
    base: str | None
    parameters: Mapping[str, values.Value]
    granularity: str
    output: str | None
    dtype: DType | None
    accepted: frozenset[str]
    drop_extra_tensors: bool
    copy_missing_tensors: bool
    allow_non_finite: bool
    max_shard_size: int

    @property
    def folder(self) -> Path:
        """The folder that relative references count from first."""
        return self.source.file.parent if self.source.file else Path()

    def values_for(self, tensor: str, depth: float) -> dict[str, Any]:
        """Every parameter of the method for one tensor.

        Args:
            tensor: the tensor's name, which filters look at.
            depth: its layer's place from 0 (first, or before the layers) to 1 (last, or after).

        Returns:
            Scalars by name; float64 arrays of shape (K,) for the parameters of members. The more
            specific wins: the member's own value, then that for all, then the default.
        """
        resolved: dict[str, Any] = {}
        for name, parameter in self.method.parameters.items():
            common = _first(self.parameters.get(name), parameter.default, tensor, depth)
            if parameter.per_member:
                own = [_first(m.parameters.get(name), common, tensor, depth) for m in self.members]
                resolved[name] = np.array(own, dtype=np.float64)
            else:
                resolved[name] = parameter.convert(common)
        return resolved


def _first(value: values.Value | None, default: Any, tensor: str, depth: float) -> Any:
    found = value.at(tensor, depth) if value is not None else None
    return default if found is None else found
