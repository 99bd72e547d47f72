"""Exact order statistics of a tensor's elements without sorting or holding it.

A radix selection on the bit patterns of float64 numbers, most significant digit first: every pass
counts one digit; when few candidates are left they are gathered and sorted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import DIGIT_BITS, Measure
from .stream import Chunk, Pass, Steps, Work

FEW = 2**18
"""So many candidates are gathered and sorted rather than counted once more."""


@dataclass
class Search:
    """The number of rank `rank` (1 is the largest) of a measure, as far as it is known."""

    measure: Measure
    rank: int
    prefix: int = 0
    shift: int = 64
    candidates: int = 0
    value: float = 0.0

    @property
    def counting(self) -> bool:
        """True while another digit has to be counted."""
        return self.shift == 64 or (self.shift > 0 and self.candidates > FEW)

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Take the digit in which the number lies."""
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, self.rank))
        digit = len(counts) - 1 - place
        self.rank -= int(from_top[place]) - int(counts[digit])
        self.prefix = (self.prefix << DIGIT_BITS) | digit
        self.shift -= DIGIT_BITS
        self.candidates = int(counts[digit])
        if self.shift == 0:
            self.value = float(np.array(self.prefix, dtype=np.uint64).view(np.float64))


class _Histogram:
    """Counts of one digit of a measure, among the elements that have the digits before it."""

    def __init__(self, measure: Measure, prefix: int, shift: int):
        self._measure, self._prefix, self._shift = measure, prefix, shift
        self.counts = np.zeros(2**DIGIT_BITS, dtype=np.int64)

    def see(self, chunk: Chunk) -> None:
        self.counts += chunk.work.kernels.histogram(
            chunk.members(), chunk.origin(), self._measure, self._prefix, self._shift
        )


class _Candidates:
    """The few numbers that share the leading bits of the wanted one."""

    def __init__(self, measure: Measure, prefix: int, shift: int, count: int):
        self._measure, self._prefix, self._shift = measure, prefix, shift
        # One buffer of the known size: many small arrays that live on would keep the heap from
        # reusing the large ones freed between them, and memory would grow with the tensor.
        self._buffer = np.empty(count)
        self._filled = 0

    def see(self, chunk: Chunk) -> None:
        chosen = chunk.work.kernels.measured(
            chunk.members(), chunk.origin(), self._measure, self._prefix, self._shift
        )
        self._buffer[self._filled : self._filled + len(chosen)] = chosen
        self._filled += len(chosen)

    def of_rank(self, rank: int) -> float:
        """The number of this rank among them, counted from the largest."""
        place = len(self._buffer) - rank
        return float(np.partition(self._buffer, place)[place])


def largest(work: Work, wanted: Sequence[tuple[Measure, int]], of: int) -> Steps[list[float]]:
    """For every (measure, rank), the number of that rank, counted from the largest.

    Looks at the tensor in chunks of `of` elements, two or three times for the usual distributions.
    """
    searches = [Search(measure, rank) for measure, rank in wanted]
    first = True
    while counting := [search for search in searches if search.counting]:
        yield from _count(work, counting, of, counts=first)
        first = False
    yield from _gather(work, [search for search in searches if search.shift > 0], of)
    return [search.value for search in searches]


def _count(work: Work, searches: list[Search], of: int, *, counts: bool) -> Steps[None]:
    def key(search: Search) -> Hashable:
        return work.key(("digit", search.measure, search.prefix, search.shift))

    looks = {key(s): _Histogram(s.measure, s.prefix, s.shift - DIGIT_BITS) for s in searches}
    seen = yield Pass(looks, 0, work.job.count, of, counts)
    for search in searches:
        histogram = seen[key(search)]
        assert isinstance(histogram, _Histogram)
        search.narrow(histogram.counts)


def _gather(work: Work, searches: list[Search], of: int) -> Steps[None]:
    def key(search: Search) -> Hashable:
        return work.key(("candidates", search.measure, search.prefix, search.shift))

    looks = {key(s): _Candidates(s.measure, s.prefix, s.shift, s.candidates) for s in searches}
    if not looks:
        return
    seen = yield Pass(looks, 0, work.job.count, of, counts=False)
    for search in searches:
        candidates = seen[key(search)]
        assert isinstance(candidates, _Candidates)
        search.value = candidates.of_rank(search.rank)
