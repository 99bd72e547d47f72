"""Elements of a tensor that an adapter changes: `W + s B A`, in float64, range by range.

Every element is summed over the rank, first to last, by single IEEE operations, then multiplied by
the factor and added to W. So neither the range nor the number of threads shows in the result, which
a BLAS product would not promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType

Doubles = NDArray[np.float64]

TILE = 16384
"""Elements that are summed over the rank at a time: 128 kB, which stays in a core's cache."""

FACTOR_BYTES = 64 * 2**20
"""Float64 bytes of adapters' factors that are kept, besides the one that is used."""

NUMPY_TYPES = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}


def widened(raw: NDArray[np.uint8], dtype: DType) -> Doubles:
    """Stored floating-point numbers as float64, exactly."""
    if dtype is DType.BF16:  # the upper half of a float32
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(NUMPY_TYPES[dtype]).astype(np.float64)


class Piece(NamedTuple):
    """A rectangle of a matrix whose elements follow each other in C order."""

    top: int
    bottom: int
    left: int
    right: int


def pieces(start: int, stop: int, columns: int) -> Iterator[Piece]:
    """Elements `start` to `stop` of a matrix: part of a row, whole rows, part of a row."""
    while start < stop:
        row, left = divmod(start, columns)
        if left or stop - start < columns:
            right = min(columns, left + stop - start)
            yield Piece(row, row + 1, left, right)
            start += right - left
        else:
            bottom = stop // columns
            yield Piece(row, bottom, 0, columns)
            start = bottom * columns


def add_product(values: Doubles, left: Doubles, right: Doubles, scale: float) -> None:
    """`values += scale * left @ right` in place.

    Args:
        values: (rows, columns), C-contiguous.
        left: (rank, rows): the transposed factor, so that a term is a contiguous vector.
        right: (rank, columns).
        scale: the factor on the product.
    """
    rows, columns = values.shape
    high = max(1, TILE // max(columns, 1))
    wide = min(columns, TILE)
    for top in range(0, rows, high):
        for begin in range(0, columns, wide):
            tile = values[top : top + high, begin : begin + wide]
            total, term = np.zeros(tile.shape), np.empty(tile.shape)
            for column, row in zip(left[:, top : top + high], right, strict=True):
                np.multiply(column[:, None], row[None, begin : begin + wide], out=term)
                np.add(total, term, out=total)
            np.multiply(total, scale, out=total)
            np.add(tile, total, out=tile)
