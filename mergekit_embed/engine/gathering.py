"""Rows of tables in another order, range by range: what a `RemappedTensor` is read with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Fallback, RemappedTensor, Tensor
from ..checkpoint.remapped import Rows
from .folding import Piece, pieces, widened

Bytes = NDArray[np.uint8]

Read = Callable[[Tensor, int, int], Bytes]
"""Elements of a tensor, from one to before another, as bytes of the type it is read as."""

SPAN_BYTES = 2**20
"""Rows that lie within so many bytes are read with all that is between them: one read of this size
takes less time than some hundred small ones."""


class _Run(NamedTuple):
    """Rows of a source that follow each other there, and here from `at` on."""

    at: int
    row: int
    rows: int


def read_rows(tensor: RemappedTensor, start: int, stop: int, read: Read) -> Bytes:
    """Elements `start` to `stop` of a remapped tensor in C order, as bytes of its `read_as`."""
    size = tensor.read_as.itemsize
    columns = tensor.count // tensor.shape[0]
    buffer = np.empty((stop - start) * size, dtype=np.uint8)
    for piece in pieces(start, stop, columns):
        first = piece.top * columns + piece.left - start
        found = _gathered(tensor, piece, columns, read)
        buffer[first * size : first * size + found.size] = found.reshape(-1)
    return buffer


def _gathered(tensor: RemappedTensor, piece: Piece, columns: int, read: Read) -> Bytes:
    """Bytes of a piece, (rows, bytes of a row)."""
    rows = tensor.rows[piece.top : piece.bottom]
    width = (piece.right - piece.left) * tensor.read_as.itemsize
    found = np.zeros((len(rows), width), dtype=np.uint8)

    def of(source: Tensor, wanted: Rows) -> Bytes:
        """These rows of a source, in the type that the tensor is read as."""
        raw = _rows_of(source, wanted, piece, columns, read)
        if source.read_as is tensor.read_as:
            return raw
        return widened(raw.reshape(-1), source.read_as).view(np.uint8).reshape(len(wanted), -1)

    has = rows >= 0
    if has.any():
        found[has] = of(tensor.own, rows[has])
    if tensor.fallback is not None:
        _fill(found, tensor.fallback, piece, of)
    return found


def _fill(
    found: Bytes, fallback: Fallback, piece: Piece, of: Callable[[Tensor, Rows], Bytes]
) -> None:
    """Put rows of the fallback where they belong: copies as they are, means in float64."""
    left, right = np.searchsorted(fallback.rows, (piece.top, piece.bottom))
    here = fallback.rows[left:right] - piece.top
    places = fallback.places[:, left:right]
    counts = (places >= 0).sum(axis=0)
    seen = np.zeros(len(here), dtype=bool)
    for source, place in zip(fallback.sources, places, strict=True):
        has = place >= 0
        first, more = has & ~seen, has & seen
        if first.any():
            found[here[first]] = of(source, place[first])
        if more.any():
            added = of(source, place[more]).view(np.float64)
            found[here[more]] = (found[here[more]].view(np.float64) + added).view(np.uint8)
        seen |= has
    several = counts > 1
    if several.any():
        means = found[here[several]].view(np.float64) / counts[several, None]
        found[here[several]] = means.view(np.uint8)


def _rows_of(source: Tensor, wanted: Rows, piece: Piece, columns: int, read: Read) -> Bytes:
    """Bytes of the piece's columns of rows of a source, (rows, bytes of a row).

    A piece with some of the columns only is of one row.
    """
    size = source.read_as.itemsize
    whole = piece.right - piece.left == columns
    low, high = int(wanted.min()), int(wanted.max()) + 1
    if whole and (high - low) * columns * size <= SPAN_BYTES:
        span = read(source, low * columns, high * columns).reshape(high - low, -1)
        return span[wanted - low]
    found = np.empty((len(wanted), (piece.right - piece.left) * size), dtype=np.uint8)
    for run in _runs(wanted):
        start = run.row * columns + piece.left
        stop = (run.row + run.rows - 1) * columns + piece.right
        found[run.at : run.at + run.rows] = read(source, start, stop).reshape(run.rows, -1)
    return found


def _runs(wanted: Rows) -> Iterator[_Run]:
    """Rows that follow each other in the source, which are one read."""
    breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
    starts = [0, *breaks.tolist(), len(wanted)]
    for at, end in pairwise(starts):
        yield _Run(at, int(wanted[at]), end - at)
