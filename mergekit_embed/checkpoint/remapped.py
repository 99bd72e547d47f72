"""A table whose rows are gathered from elsewhere: the rows of a model, in the result's order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .tensor import Shape, Tensor

Rows = NDArray[np.int32]
"""Numbers of rows; -1 where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Fallback:
    """Rows for tokens that some model lacks: each the mean of the rows of those that have it.

    Attributes:
        rows: of the result, ascending, (M,).
        sources: tensors of other models, (S).
        places: row of each source that goes into each mean, (S, M); a single one is copied.
    """

    rows: Rows
    sources: tuple[Tensor, ...]
    places: Rows

    @property
    def has_means(self) -> bool:
        """True when some row is of more than one source."""
        return bool(((self.places >= 0).sum(axis=0) > 1).any())


@dataclass(frozen=True, slots=True, eq=False)
class RemappedTensor:
    """A tensor of a model with the rows of the result, described by headers and row numbers.

    Attributes:
        name: as the model spells it.
        own: the model's tensor, (its rows, width...).
        rows: the model's row for each row of the result; where there is none, the fallback's, and
            where that has none either, zeros.
        read_as: the stored type where every row is a copy of one of that type, else F64.
    """

    name: str
    own: Tensor
    rows: Rows
    fallback: Fallback | None = None
    read_as: DType = field(init=False)

    def __post_init__(self) -> None:
        sources = self.fallback.sources if self.fallback else ()
        same = all(source.read_as is self.own.read_as for source in sources)
        copies = same and not (self.fallback and self.fallback.has_means)
        object.__setattr__(self, "read_as", self.own.read_as if copies else DType.F64)

    @property
    def dtype(self) -> DType:
        """Stored type of the model's own tensor, and of a result by default."""
        return self.own.dtype

    @property
    def shape(self) -> Shape:
        """Rows of the result, and the width of the model's."""
        return (len(self.rows), *self.own.shape[1:])

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes that are read for the whole tensor."""
        found = _share(self.own, int((self.rows >= 0).sum()))
        if self.fallback:
            counts = (self.fallback.places >= 0).sum(axis=1)
            found += sum(map(_share, self.fallback.sources, counts.tolist()))
        return found

    @property
    def file(self) -> Path:
        """The file of the model's own tensor."""
        return self.own.file

    @property
    def offset(self) -> int:
        """Of the first byte of the model's own tensor, from the start of the file."""
        return self.own.offset

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that rows are gathered from."""
        return (self.own, *(self.fallback.sources if self.fallback else ()))

    def renamed(self, name: str) -> RemappedTensor:
        """The same tensor under another name."""
        return RemappedTensor(name, self.own, self.rows, self.fallback)


def _share(tensor: Tensor, rows: int) -> int:
    """Bytes of so many rows of a tensor."""
    return tensor.nbytes * rows // max(tensor.shape[0], 1)


def fallback_for(
    own: Rows, rows: Rows, sources: Sequence[Tensor], places: Sequence[Rows]
) -> Fallback | None:
    """What a model lacks among `rows`, which have a token; None where it lacks nothing.

    Args:
        own: the model's row for each row of the result.
        rows: of the result, that some model lacks; ascending, (M,).
        sources: tensors that may have them, the first choice first.
        places: for each source, its rows for `rows`.
    """
    lacking = own[rows] < 0
    if not lacking.any() or not sources:
        return None
    found = np.stack([place[lacking] for place in places])
    kept = np.flatnonzero((found >= 0).any(axis=1))
    if not len(kept):
        return None
    return Fallback(rows[lacking], tuple(sources[index] for index in kept.tolist()), found[kept])
