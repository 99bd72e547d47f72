"""A tensor that an adapter changes: the stored one, and what is added to it when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..dtypes import DType
from .remapped import RemappedTensor
from .tensor import Shape, StoredTensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale * left @ right`, of the shape of a matrix.

    `left` gives the rows and `right` the columns. They are the adapter's B and A for a linear
    layer; for an embedding, and for a layer that stores (in, out), A and B transposed.

    Attributes:
        left: stored as (rows, rank), or as (rank, rows) when `transposed`.
        right: stored as (rank, columns), or as (columns, rank) when `transposed`.
    """

    left: StoredTensor
    right: StoredTensor
    scale: float
    transposed: bool

    @property
    def rank(self) -> int:
        """The length of the sum of each element."""
        return self.left.shape[0 if self.transposed else 1]


@dataclass(frozen=True, slots=True)
class FoldedTensor:
    """A tensor of a model with an adapter, described by headers alone; nothing of it is computed.

    Attributes:
        name: as the model spells it.
        dtype: stored type of the model's own tensor, and of a result by default.
        start: what the values begin with: the model's tensor, or the adapter's in its place.
        update: what is added, where something is.
    """

    name: str
    dtype: DType
    start: StoredTensor
    update: LowRank | None

    @property
    def read_as(self) -> DType:
        """Type of the values when they are read: sums are not rounded before they are merged."""
        return DType.F64 if self.update else self.start.dtype

    @property
    def shape(self) -> Shape:
        """That of the model's tensor."""
        return self.start.shape

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return self.start.count

    @property
    def nbytes(self) -> int:
        """Stored bytes that are read for the whole tensor, those of the adapter included."""
        added = self.update.left.nbytes + self.update.right.nbytes if self.update else 0
        return self.start.nbytes + added

    @property
    def file(self) -> Path:
        """The file of the tensor that the values begin with."""
        return self.start.file

    @property
    def offset(self) -> int:
        """Of its first byte, from the start of the file."""
        return self.start.offset


Tensor = StoredTensor | FoldedTensor | RemappedTensor
"""A tensor of a model: as a file holds it, as an adapter changes it, or with its rows in another
order."""
