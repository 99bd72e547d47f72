"""Signs and largest elements of the members' vectors, on a sample that the shape alone decides.

A tensor of at most `size` elements is taken whole. Of a larger one windows of 64 elements are
taken at an odd distance, so that they visit all columns of a matrix whose rows are a power of two
long. No window crosses a block of the long sums, where chunks may end: the sample does not depend
on the backend, the threads or the number of members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.folding import widened
from ..engine.stream import Chunk
from ..kernels import BLOCK

Doubles = NDArray[np.float64]
Numbers = NDArray[np.int64]

WINDOW = 64
"""Elements next to each other that are taken together."""

TOP = 100
"""The largest elements of a vector are one in so many: 1 %."""


@dataclass(frozen=True)
class Signs:
    """What was counted on the sample of a tensor. Pairs are int64 (K, K).

    Attributes:
        taken: elements of the sample.
        moved: int64 (K,), elements that are not zero in the vector of a member.
        both: elements that are not zero in either; `opposite`: and have different signs.
        several: elements that are not zero in two or more; `split`: and not of one sign.
        top: elements among the largest of both vectors; `least_top`: how many the shorter of the
            two lists has.
    """

    taken: int
    moved: Numbers
    both: Numbers
    opposite: Numbers
    several: int
    split: int
    top: Numbers
    least_top: Numbers


def starts(count: int, size: int) -> Numbers:
    """Where the windows of a tensor of `count` elements begin; all of it where it is not large."""
    if count <= size:
        return np.arange(0, count, WINDOW)
    step = -(-count // max(1, size // WINDOW)) | 1
    every = np.arange(0, count - WINDOW + 1, step)
    found: Numbers = every[every // BLOCK == (every + WINDOW - 1) // BLOCK]
    return found


class Sampled:
    """Gathers the sample of a tensor, chunk by chunk: a `Look`."""

    def __init__(self, count: int, size: int):
        self._whole = count <= size
        self._starts = starts(count, size)
        self._parts: list[Doubles] = []

    def see(self, chunk: Chunk) -> None:
        """Take the windows that lie in the chunk."""
        job, supply = chunk.work.job, chunk.work.supply
        tensors = job.sources if job.origin is None else (*job.sources, job.origin)
        chosen = self._places(chunk.start, chunk.stop)
        if chosen is not None and not len(chosen):
            return
        rows = []
        for tensor in tensors:
            raw = supply.raw(tensor, chunk.start, chunk.stop)
            if chosen is not None:
                raw = raw.view(f"u{tensor.read_as.itemsize}")[chosen].view(np.uint8)
            rows.append(widened(raw, tensor.read_as))
        vectors = np.stack(rows)
        self._parts.append(vectors if job.origin is None else vectors[:-1] - vectors[-1])

    def vectors(self) -> Doubles:
        """The sampled elements of each member's vector: float64 (K, n)."""
        return np.concatenate(self._parts, axis=1)

    def _places(self, start: int, stop: int) -> Numbers | None:
        """Elements of a chunk that are taken, counted from its start; None: all."""
        if self._whole:
            return None
        first, last = np.searchsorted(self._starts, [start, stop])
        places = (self._starts[first:last, None] - start) + np.arange(WINDOW)
        return places.reshape(-1)


def signs_of(vectors: Doubles) -> Signs:
    """Count signs and largest elements of vectors (K, n)."""
    up, down = vectors > 0, vectors < 0
    large = _largest(np.abs(vectors))
    moved = up | down
    several = moved.sum(axis=0, dtype=np.int16) > 1
    split = up.any(axis=0) & down.any(axis=0)
    sizes = large.sum(axis=1)
    return Signs(
        taken=vectors.shape[1],
        moved=moved.sum(axis=1),
        both=_meetings(moved, moved),
        opposite=_meetings(up, down) + _meetings(down, up),
        several=int(several.sum()),
        split=int(split.sum()),
        top=_meetings(large, large),
        least_top=np.minimum(sizes[:, None], sizes[None, :]),
    )


def _largest(magnitudes: Doubles) -> NDArray[np.bool_]:
    """The largest 1 % of each vector, at least one; equal ones all, and zeros never."""
    count = magnitudes.shape[1]
    keep = max(1, count // TOP)
    if keep >= count:
        return magnitudes > 0
    limits = np.partition(magnitudes, count - keep, axis=1)[:, count - keep]
    chosen: NDArray[np.bool_] = (magnitudes >= limits[:, None]) & (magnitudes > 0)
    return chosen


def _meetings(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Numbers:
    """How many elements are true in row i of one and in row j of the other: int64 (K, K)."""
    rows, others = np.packbits(one, axis=1), np.packbits(other, axis=1)
    counts = [np.bitwise_count(row & others).sum(axis=1, dtype=np.int64) for row in rows]
    return np.stack(counts)
