"""Running a consensus method: find every delta's threshold, then decide element by element."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..kernels import DIGIT_BITS, Doubles
from ..methods import Consensus
from .plan import Job
from .stream import Shop, Stream

FEW = 2**18
"""So many candidates are gathered and sorted rather than counted once more."""


def run_consensus(job: Job, shop: Shop) -> None:
    """Merge one tensor by consensus."""
    if job.count == 0:
        return
    assert job.parameters is not None
    method = shop.plan.recipe.method
    wanted: Consensus = method.function(**method.arguments(job.parameters))
    stream = Stream(job, shop)
    thresholds = _thresholds(stream, wanted.density)
    factors = _factors(stream, thresholds) if wanted.rescale else np.ones(len(job.sources))
    for chunk in stream.chunks():
        output = shop.kernels.consensus(
            chunk.members(),
            chunk.origin(),
            thresholds,
            factors,
            wanted.weight,
            wanted.normalize,
            wanted.scale,
            job.dtype,
        )
        shop.accept(job, chunk.start, output, {} if output.finite else chunk.labelled())
        stream.advance(chunk.count)


@dataclass
class _Search:
    """The k-th largest magnitude of one delta, as far as its leading bits are known."""

    source: int
    rank: int
    prefix: int = 0
    shift: int = 64
    candidates: int = 0

    def narrow(self, counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Take the digit in which the k-th largest lies."""
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, self.rank))
        digit = len(counts) - 1 - place
        self.rank -= int(from_top[place]) - int(counts[digit])
        self.prefix = (self.prefix << DIGIT_BITS) | digit
        self.shift -= DIGIT_BITS
        self.candidates = int(counts[digit])

    @property
    def done(self) -> bool:
        """True when all bits are known."""
        return self.shift == 0

    def value(self) -> float:
        """The magnitude whose bits are all known."""
        return float(np.array(self.prefix, dtype=np.uint64).view(np.float64))


def _thresholds(stream: Stream, density: Doubles) -> Doubles:
    """For every delta the k-th largest magnitude, `k = floor(density n)` but at least 1.

    A radix selection on the bit patterns, most significant digit first: exact, in memory that does
    not depend on the tensor, and in two or three passes for the usual distributions.
    """
    count = stream.job.count
    ranks = [max(1, math.floor(float(share) * count)) for share in density]
    thresholds = np.zeros(len(ranks))
    open_ = [_Search(source, rank) for source, rank in enumerate(ranks) if rank < count]
    while open_ and any(not s.done and (s.shift == 64 or s.candidates > FEW) for s in open_):
        counting = [s for s in open_ if not s.done and (s.shift == 64 or s.candidates > FEW)]
        _count_digits(stream, counting)
    _gather(stream, [search for search in open_ if not search.done], thresholds)
    for search in open_:
        if search.done:
            thresholds[search.source] = search.value()
    return thresholds


def _count_digits(stream: Stream, searches: list[_Search]) -> None:
    counts = {search.source: np.zeros(2**DIGIT_BITS, dtype=np.int64) for search in searches}
    for chunk in stream.chunks():
        members, origin = chunk.members(), chunk.origin()
        for search in searches:
            counts[search.source] += stream.shop.kernels.histogram(
                members[search.source], origin, search.prefix, search.shift - DIGIT_BITS
            )
        if searches[0].shift == 64:
            stream.advance(chunk.count)
    for search in searches:
        search.narrow(counts[search.source])


def _gather(stream: Stream, searches: list[_Search], thresholds: Doubles) -> None:
    """Sort the few candidates that share the leading bits of the k-th largest."""
    if not searches:
        return
    # One buffer each, of the known size: many small arrays that live on would keep the heap from
    # reusing the large ones freed between them, and memory would grow with the tensor.
    found = {search.source: np.empty(search.candidates) for search in searches}
    filled = dict.fromkeys(found, 0)
    for chunk in stream.chunks():
        members, origin = chunk.members(), chunk.origin()
        for search in searches:
            source, start = search.source, filled[search.source]
            chosen = stream.shop.kernels.magnitudes(
                members[source], origin, search.prefix, search.shift
            )
            filled[source] = start + len(chosen)
            found[source][start : filled[source]] = chosen
    for search in searches:
        place = search.candidates - search.rank
        thresholds[search.source] = np.partition(found[search.source], place)[place]


def _factors(stream: Stream, thresholds: Doubles) -> Doubles:
    """L1 norm of every delta before over after trimming; 1 for a delta that is zero."""
    sums = np.zeros((len(stream.job.sources), 2))
    for chunk in stream.chunks():
        found = stream.shop.kernels.kept_sums(chunk.members(), chunk.origin(), thresholds)
        for block in found:
            sums += block
    return np.divide(sums[:, 0], sums[:, 1], out=np.ones(len(sums)), where=sums[:, 1] != 0)
