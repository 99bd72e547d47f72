"""A tensor where it lies: a place in a file, not yet read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..dtypes import DType

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, described by its file's header alone.

    Attributes:
        name: as the file spells it.
        offset: of its first byte, from the start of the file.
        strides: in elements, for the pickled tensors that are views; None when contiguous.
    """

    name: str
    dtype: DType
    shape: Shape
    file: Path
    offset: int
    strides: Shape | None = None

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, packed."""
        return (self.count * self.dtype.bits + 7) // 8
