"""Exact order statistics of a tensor's elements without sorting or holding it.

A sample says between which two numbers the wanted one must lie; one pass counts what is larger and
gathers what is between, or counts the few numbers that the sample found there. Where the sample
misled, a radix selection on the bit patterns of float64 numbers finds the number in any case, most
significant digit first.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import DIGIT_BITS, Doubles, Importance, Measure
from .stream import Chunk, Look, Pass, Steps, Work

FEW = 2**18
"""So many candidates are gathered and sorted rather than counted once more."""

WINDOW = 64
"""Elements that stand together in a sample."""

SAMPLED = 2**15
"""Elements of a sample: so many, or one in 512 of a large tensor."""

DEVIATIONS = 8.0
"""Standard deviations of the sample's ranks that the wanted one may be off. Elements that stand
together are alike, so this is wider than independent ones would need."""

DISTINCT = 4
"""So few different numbers are counted one by one: deltas of bfloat16 models take few values."""

ROOM = 16
"""A tensor's elements over this many are gathered at most; more of them are counted first."""


@dataclass
class Search:
    """The number of rank `rank` (1 is the largest) of a measure, as far as it is known.

    Attributes:
        low, high: the number is in [low, high], where the sample is right.
        limits: the only numbers in there, if they are few, else None.
        misled: the sample was wrong, and digits are counted.
        prefix: the leading bits of the number; `shift`: how many bits are not known.
        left: the rank among the candidates that are left, and `candidates` their number.
    """

    measure: Measure
    rank: int
    low: float = 0.0
    high: float = math.inf
    limits: Doubles | None = None
    misled: bool = False
    prefix: int = 0
    shift: int = 64
    left: int = 0
    candidates: int = 0
    value: float | None = None

    @property
    def counting(self) -> bool:
        """True while another digit has to be counted."""
        return self.misled and (self.shift == 64 or (self.shift > 0 and self.candidates > FEW))

    def bracket(self, sample: Doubles, count: int) -> None:
        """Take the ends of where the number must be from a sorted sample of `count` elements."""
        size, share = len(sample), (self.rank - 0.5) / count
        spread = DEVIATIONS * math.sqrt(size * share * (1.0 - share)) + DEVIATIONS
        place = size * (1.0 - share)
        first, last = math.floor(place - spread), math.ceil(place + spread)
        self.low = float(sample[first]) if first >= 0 else 0.0
        self.high = float(sample[last]) if last < size else math.inf
        between = np.unique(sample[max(first, 0) : last + 1])
        if len(between) <= DISTINCT:
            self.limits = np.concatenate([between, np.nextafter(between, np.inf)])

    def resolve(self, found: _Tally | _Between) -> None:
        """Take the number from what was counted or gathered, unless the sample misled."""
        self.value = found.of_rank(self.rank)
        self.misled = self.value is None
        self.left = self.rank

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Take the digit in which the number lies."""
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, self.left))
        digit = len(counts) - 1 - place
        self.left -= int(from_top[place]) - int(counts[digit])
        self.prefix = (self.prefix << DIGIT_BITS) | digit
        self.shift -= DIGIT_BITS
        self.candidates = int(counts[digit])
        last = ((self.prefix + 1) << self.shift) - 1
        ends = np.array([self.prefix << self.shift, last], dtype=np.uint64).view(np.float64)
        self.low, self.high = ends.tolist()
        if self.shift == 0:
            self.value = self.low


class _Tally:
    """How many elements are at least, and how many are above, each of a few numbers."""

    def __init__(self, search: Search):
        assert search.limits is not None
        self._measure, self._limits = search.measure, search.limits
        self._counts = np.zeros(len(search.limits), dtype=np.int64)

    def see(self, chunk: Chunk) -> None:
        self._counts += chunk.work.kernels.tally(
            chunk.members(), chunk.origin(), self._measure, self._limits
        )

    def of_rank(self, rank: int) -> float | None:
        """The one of the numbers that has this rank, if one has."""
        values, (from_here, above) = self._limits, self._counts.reshape(2, -1)
        for value, least, most in zip(values, above, from_here, strict=False):
            if least < rank <= most:
                return float(value)
        return None


class _Between:
    """The elements between two numbers, and how many are larger."""

    def __init__(self, search: Search, room: int):
        self._measure, self._low, self._high = search.measure, search.low, search.high
        # One buffer, of which only what is filled takes memory: many small arrays that live on
        # would keep the heap from reusing the large ones freed between them.
        self._buffer = np.empty(room)
        self._filled, self._above = 0, 0

    def see(self, chunk: Chunk) -> None:
        if self._filled > len(self._buffer):
            return
        chosen, above = chunk.work.kernels.measured(
            chunk.members(), chunk.origin(), self._measure, self._low, self._high
        )
        self._above += above
        fits = chosen[: len(self._buffer) - self._filled]
        self._buffer[self._filled : self._filled + len(fits)] = fits
        self._filled += len(chosen)

    def of_rank(self, rank: int) -> float | None:
        """The number of this rank, if it is there."""
        place = self._filled - (rank - self._above)
        if self._filled > len(self._buffer) or not 0 <= place < self._filled:
            return None
        return float(np.partition(self._buffer[: self._filled], place)[place])


class _Histogram:
    """Counts of one digit of a measure, among the elements that have the digits before it."""

    def __init__(self, search: Search):
        self._measure, self._prefix = search.measure, search.prefix
        self._shift = search.shift - DIGIT_BITS
        self.counts = np.zeros(2**DIGIT_BITS, dtype=np.int64)

    def see(self, chunk: Chunk) -> None:
        self.counts += chunk.work.kernels.histogram(
            chunk.members(), chunk.origin(), self._measure, self._prefix, self._shift
        )


def largest(work: Work, wanted: Sequence[tuple[Measure, int]], of: int) -> Steps[list[float]]:
    """For every (measure, rank), the number of that rank, counted from the largest.

    Looks at the tensor in chunks of `of` elements: once where the sample is right, and it nearly
    always is.
    """
    searches = [Search(measure, rank) for measure, rank in wanted]
    count = work.job.count
    for search in searches:
        if count > FEW:
            search.misled, search.left = isinstance(search.measure, Importance), search.rank
            if not search.misled:
                search.bracket(_sample(work, search.measure), count)
    sampled = [search for search in searches if not search.misled]
    yield from _look(work, sampled, of, counts=True)
    first = not sampled
    while counting := [search for search in searches if search.counting]:
        yield from _count(work, counting, of, counts=first)
        first = False
    yield from _look(work, [s for s in searches if s.value is None], of, counts=False)
    return [_known(search) for search in searches]


def _known(search: Search) -> float:
    # Of measures that are no numbers none has a rank; the merge then says whose they are.
    return math.nan if search.value is None else search.value


def _sample(work: Work, measure: Measure) -> Doubles:
    """Some of a measure's numbers, sorted: the same for all jobs with the same vectors."""
    samples, key = work.supply.samples, work.key(measure)
    if key not in samples:
        count = work.job.count
        windows = max(SAMPLED, count // 512) // WINDOW
        # An odd step, so that windows do not always meet the same columns.
        step = (count // windows - 1) | 1
        tensors = [*work.job.sources, work.job.origin]
        vectors = [
            work.supply.windows(tensor, windows, step, WINDOW)
            for tensor in tensors
            if tensor is not None
        ]
        found, _ = work.kernels.measured(vectors[:-1], vectors[-1], measure, 0.0, math.inf)
        samples[key] = np.sort(found)
    return samples[key]


def _look(work: Work, searches: Sequence[Search], of: int, *, counts: bool) -> Steps[None]:
    """Count or gather what each search wants, in one pass."""
    count = work.job.count

    def key(search: Search) -> Hashable:
        limits = None if search.limits is None else tuple(search.limits)
        return work.key(("between", search.measure, search.low, search.high, limits))

    def look(search: Search) -> Look:
        if search.limits is not None and not search.misled:
            return _Tally(search)
        known = search.candidates if search.misled else max(FEW, count // ROOM)
        return _Between(search, min(known, count))

    if not searches:
        return
    looks: dict[Hashable, Look] = {}
    for search in searches:
        if key(search) not in looks:
            looks[key(search)] = look(search)
    seen = yield Pass(looks, 0, count, of, counts)
    for search in searches:
        found = seen[key(search)]
        assert isinstance(found, _Tally | _Between)
        search.resolve(found)


def _count(work: Work, searches: Sequence[Search], of: int, *, counts: bool) -> Steps[None]:
    def key(search: Search) -> Hashable:
        return work.key(("digit", search.measure, search.prefix, search.shift))

    seen = yield Pass({key(s): _Histogram(s) for s in searches}, 0, work.job.count, of, counts)
    for search in searches:
        histogram = seen[key(search)]
        assert isinstance(histogram, _Histogram)
        search.narrow(histogram.counts)
