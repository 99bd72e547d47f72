"""What the compiled kernels are called with: addresses of stored elements, and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from . import (
    Band,
    Divide,
    Doubles,
    Draw,
    Importance,
    Keep,
    Magnitude,
    Measure,
    RankedDraw,
    Raw,
    Variance,
)
from . import numba_choice as choice
from . import numba_elements as element_kernels
from . import numba_mixtures as mixture_kernels
from .draw import signed
from .numba_pieces import KINDS


@dataclass(frozen=True, slots=True)
class Stored:
    """Stored elements of one type."""

    raw: Raw
    dtype: DType

    @property
    def count(self) -> int:
        """Number of elements."""
        return len(self.raw) // self.dtype.itemsize


class Many(NamedTuple):
    """Kinds and addresses of some vectors, int64 (K,)."""

    kinds: NDArray[np.int64]
    addresses: NDArray[np.int64]


class Keeps(NamedTuple):
    """What is kept, as the compiled kernels want it: see `numba_choice.choose`."""

    keeps: NDArray[np.int64]
    numbers: Doubles
    given: NDArray[np.bool_]
    first: int


def address(raw: Raw) -> int:
    """Where bytes are in memory."""
    found: int = raw.__array_interface__["data"][0]
    return found


def many(vectors: Sequence[Stored]) -> Many:
    """Kinds and addresses of vectors."""
    kinds = [KINDS[vector.dtype] for vector in vectors]
    return Many(np.array(kinds), np.array([address(vector.raw) for vector in vectors]))


def one(vector: Stored | None) -> tuple[int, int]:
    """Kind and address of an origin that may not be there."""
    if vector is None:
        return mixture_kernels.NONE, 0
    return KINDS[vector.dtype], address(vector.raw)


def divided(divide: Divide | None) -> tuple[float, int]:
    """The divisor, and how many elements are divided."""
    return (divide.divisor, divide.count) if divide else (1.0, 0)


Important = Callable[[Sequence[Stored], Stored, Band], NDArray[np.bool_]]
"""Which elements of a chunk are in a band of `Importance`."""


def keeps_of(
    vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep], important: Important
) -> Keeps:
    """The numbers of what is kept; masks of whole chunks where rows have to be seen."""
    members = len(vectors)
    found, numbers = np.zeros((members, 3), np.int64), np.zeros((members, 2))
    whole = any(isinstance(keep, RankedDraw) or _is_important(keep) for keep in keeps)
    given, first = np.empty((members, origin.count if whole else 0), np.bool_), 0
    for k, keep in enumerate(keeps):
        if isinstance(keep, Draw):
            found[k] = choice.DRAWN, 0, signed(keep.key)
            numbers[k, 0], first = keep.probability, keep.start
        elif isinstance(keep, RankedDraw):
            found[k, 0] = choice.GIVEN
            element_kernels.ranked(
                *one(vectors[k]),
                *one(origin),
                signed(keep.key),
                keep.start,
                keep.row,
                keep.lowest,
                keep.highest,
                origin.count,
                given[k],
            )
        elif isinstance(keep.measure, Importance):
            found[k, 0] = choice.GIVEN
            given[k] = important(vectors, origin, keep)
        else:
            spread = isinstance(keep.measure, Variance)
            how = choice.SPREAD if spread else choice.BAND
            found[k, :2] = how, member(keep.measure)
            numbers[k] = keep.low, keep.high
    return Keeps(found, numbers, given, first)


def member(measure: Measure) -> int:
    """Whose magnitudes; -1 for the variance of all."""
    return measure.member if isinstance(measure, Magnitude) else -1


def _is_important(keep: Keep) -> bool:
    return isinstance(keep, Band) and isinstance(keep.measure, Importance)


def doubles(values: Doubles) -> Doubles:
    """An array of the type that the compiled kernels were compiled for."""
    return np.ascontiguousarray(values, dtype=np.float64)
