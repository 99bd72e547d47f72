"""Exact order statistics of a tensor's elements without sorting or holding it.

A radix selection on the bit patterns of float64 numbers, most significant digit first: every pass
counts one digit; when few candidates are left they are gathered and sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import DIGIT_BITS, Doubles, Measure
from .stream import Stream

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


def largest(stream: Stream, wanted: Sequence[tuple[Measure, int]], of: int) -> list[float]:
    """For every (measure, rank), the number of that rank, counted from the largest.

    Reads the tensor in chunks of `of` elements, two or three times for the usual distributions.
    """
    searches = [Search(measure, rank) for measure, rank in wanted]
    first = True
    while counting := [search for search in searches if search.counting]:
        _count(stream, counting, of, report=first)
        first = False
    _gather(stream, [search for search in searches if search.shift > 0], of)
    return [search.value for search in searches]


def _count(stream: Stream, searches: list[Search], of: int, *, report: bool) -> None:
    keys = {(s.measure, s.prefix, s.shift) for s in searches}
    counts = {key: np.zeros(2**DIGIT_BITS, dtype=np.int64) for key in keys}
    for chunk in stream.chunks(of=of):
        members, origin = chunk.members(), chunk.origin()
        for (measure, prefix, shift), found in counts.items():
            found += stream.shop.kernels.histogram(
                members, origin, measure, prefix, shift - DIGIT_BITS
            )
        if report:
            stream.advance(chunk.count)
    for search in searches:
        search.narrow(counts[search.measure, search.prefix, search.shift])


def _gather(stream: Stream, searches: list[Search], of: int) -> None:
    """Sort the few candidates that share the leading bits of the wanted number."""
    # One buffer each, of the known size: many small arrays that live on would keep the heap from
    # reusing the large ones freed between them, and memory would grow with the tensor.
    buffers: dict[tuple[Measure, int, int], Doubles] = {
        (s.measure, s.prefix, s.shift): np.empty(s.candidates) for s in searches
    }
    if not buffers:
        return
    filled = dict.fromkeys(buffers, 0)
    for chunk in stream.chunks(of=of):
        members, origin = chunk.members(), chunk.origin()
        for key, buffer in buffers.items():
            measure, prefix, shift = key
            chosen = stream.shop.kernels.measured(members, origin, measure, prefix, shift)
            buffer[filled[key] : filled[key] + len(chosen)] = chosen
            filled[key] += len(chosen)
    for buffer in buffers.values():
        buffer.sort()
    for search in searches:
        buffer = buffers[search.measure, search.prefix, search.shift]
        search.value = float(buffer[search.candidates - search.rank])
