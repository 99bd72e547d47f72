"""Running an elementwise method: measure what the decision needs, then decide and combine."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import reduce

import numpy as np

from ..kernels import (
    BLOCK,
    Band,
    Combine,
    Doubles,
    Draw,
    Importance,
    Keep,
    Magnitude,
    Measure,
    Output,
    RankedDraw,
    Variance,
)
from ..kernels.draw import draw_key
from ..methods import (
    Above,
    Centre,
    Consensus,
    Drawn,
    DrawnByRank,
    FisherMean,
    Largest,
    MostVaried,
    Near,
    Outlying,
    Regression,
)
from .data_aware import prepare_fisher_mean, prepare_regression
from .order_statistics import largest
from .passes import wanted_of
from .plan import Job
from .stream import Chunk, Combiner, Steps, Work, one_pass

ROW_CHUNK = 4 * BLOCK
"""Elements of a chunk of whole rows, about."""

Keeps = Callable[[int], Sequence[Keep]]
"""What each member keeps, for the chunk that starts at the given element."""


def prepare_elementwise(work: Work) -> Steps[Combiner]:
    """Measure what an elementwise method asks of one tensor, and return what combines."""
    job, kernels = work.job, work.kernels
    wanted, said = wanted_of(work.plan, job)
    work.note(job, said)
    if isinstance(wanted, Consensus):
        return (yield from _prepare_consensus(work, wanted))
    if isinstance(wanted, FisherMean):
        return prepare_fisher_mean(work, wanted)
    if isinstance(wanted, Regression):
        return prepare_regression(work, wanted)
    if isinstance(wanted, Centre):
        trim = wanted.trim

        def central(chunk: Chunk) -> Output:
            return kernels.centre(chunk.members(), trim, job.dtype, chunk.divide)

        return Combiner(central, work.chunk_elements)
    assert isinstance(wanted, Near)
    reach = wanted.reach

    def near(chunk: Chunk) -> Output:
        (member,) = chunk.members()
        return kernels.near(member, chunk.origin(), reach, job.dtype, chunk.divide)

    return Combiner(near, work.chunk_elements)


def _prepare_consensus(work: Work, wanted: Consensus) -> Steps[Combiner]:
    of, unit = _cut(work, wanted)
    name, keeps = yield from _keeps(work, wanted, of)
    combine = yield from _combine(work, wanted, name, keeps, of)

    def output(chunk: Chunk) -> Output:
        return work.kernels.consensus(
            chunk.members(),
            chunk.origin(),
            keeps(chunk.start),
            combine,
            work.job.dtype,
            chunk.divide,
        )

    return Combiner(output, of, unit)


def _row(job: Job) -> int:
    return job.shape[-1] if job.shape else 1


def _cut(work: Work, wanted: Consensus) -> tuple[int, int]:
    """Elements of a chunk, and what they have to be a multiple of: rows, if the method sees them.

    Sums are cut at chunks, so those of rows follow from the shape alone, and blocks divide others.
    """
    if isinstance(wanted.keep, DrawnByRank | Outlying):
        row = _row(work.job)
        return max(1, ROW_CHUNK // row) * row, row
    return work.chunk_elements, 1


def _keeps(work: Work, wanted: Consensus, of: int) -> Steps[tuple[Hashable, Keeps]]:
    """Turn the method's words into what the kernels test, with a name of what that keeps."""
    keep, count = wanted.keep, len(work.job.sources)
    if isinstance(keep, Drawn | DrawnByRank):
        return _drawn(work, keep)
    if isinstance(keep, Largest):
        bands = yield from _largest_bands(work, keep, of)
    elif isinstance(keep, MostVaried):
        low, rank = 0.0, keep.rank(work.job.count)
        if rank < work.job.count:
            (low,) = yield from largest(work, [(Variance(), rank)], of)
        bands = [Band(Variance(), low)] * count
    elif isinstance(keep, Above):
        low = float(np.nextafter(keep.limit, np.inf))
        bands = [Band(Magnitude(k), low) for k in range(count)]
    else:
        bands = [(yield from _outlying_band(work, keep, of))]
    return tuple(bands), lambda start: bands


def _largest_bands(work: Work, keep: Largest, of: int) -> Steps[list[Band]]:
    count = work.job.count
    wanted: list[tuple[Measure, int]] = []
    for member, (dropped, last) in enumerate(keep.ranks(count)):
        wanted += [(Magnitude(member), dropped + 1)] if dropped else []
        wanted += [(Magnitude(member), last)] if last < count else []
    found = (yield from largest(work, wanted, of)) if wanted else []
    values = dict(zip(wanted, found, strict=True))
    return [
        Band(
            Magnitude(member),
            low=values.get((Magnitude(member), last), 0.0),
            high=values.get((Magnitude(member), dropped + 1), math.inf) if dropped else math.inf,
        )
        for member, (dropped, last) in enumerate(keep.ranks(count))
    ]


def _outlying_band(work: Work, keep: Outlying, of: int) -> Steps[Band]:
    """Quantiles by linear interpolation between the neighbouring order statistics."""
    measure, count = Importance(_row(work.job)), work.job.count
    places = [part * (count - 1) for part in (0.25, 0.5, 0.75)]
    ranks = sorted({count - math.floor(p) for p in places} | {count - math.ceil(p) for p in places})
    numbers = yield from largest(work, [(measure, rank) for rank in ranks], of)
    found = dict(zip(ranks, numbers, strict=True))

    def quantile(place: float) -> float:
        low, high = found[count - math.floor(place)], found[count - math.ceil(place)]
        return low + (place - math.floor(place)) * (high - low)

    first, middle, third = (quantile(place) for place in places)
    return Band(measure, middle + keep.reach * (third - first))


def _drawn(work: Work, keep: Drawn | DrawnByRank) -> tuple[Hashable, Keeps]:
    job, seed, row = work.job, work.plan.recipe.seed, _row(work.job)
    keys = [draw_key(seed, job.name, member) for member in range(len(job.sources))]
    if isinstance(keep, Drawn):
        shares = [float(share) for share in keep.density]
        return ("drawn", *keys, *shares), lambda start: [
            Draw(k, start, p) for k, p in zip(keys, shares, strict=True)
        ]
    low = np.clip(keep.density - keep.epsilon, 0.0, 1.0).tolist()
    high = np.clip(keep.density + keep.epsilon, 0.0, 1.0).tolist()
    return ("drawn by rank", *keys, *low, *high), lambda start: [
        RankedDraw(key, start, row, lowest, highest)
        for key, lowest, highest in zip(keys, low, high, strict=True)
    ]


def _combine(
    work: Work, wanted: Consensus, name: Hashable, keeps: Keeps, of: int
) -> Steps[Combine]:
    count = len(work.job.sources)
    factors, weight, lone = np.ones(count), wanted.weight, None
    if wanted.rescale == "by norm" or wanted.by_squares:
        sums_of = _KeptSums(count, keeps, squares=wanted.by_squares)
        look = yield from one_pass(work, ("kept sums", name, wanted.by_squares), sums_of, of=of)
        assert isinstance(look, _KeptSums)
        sums = look.sums
        if wanted.rescale == "by norm":
            factors = np.divide(sums[:, 0], sums[:, 1], out=factors, where=sums[:, 1] != 0)
        if wanted.by_squares:
            total = sums[:, 2].sum()
            weight = weight * (sums[:, 2] / total if total else np.full(count, 1 / count))
    elif wanted.rescale == "by density" and isinstance(wanted.keep, Drawn):
        density = wanted.keep.density
        factors = np.divide(1.0, density, out=factors, where=density != 0)
    if wanted.lone is not None:
        counted = yield from one_pass(work, ("shared", name), _Shared(count, keeps), of=of)
        assert isinstance(counted, _Shared)
        lone = counted.lone_factors(*wanted.lone)
    return Combine(
        vote=wanted.vote,
        mean=wanted.mean,
        normalize=wanted.normalize,
        factors=factors,
        lone_factors=lone,
        weight=np.asarray(weight, dtype=np.float64),
        scale=wanted.scale,
    )


class _KeptSums:
    """L1 norms, L1 norms of what is kept, and where asked for its squares, (K, 2 or 3)."""

    def __init__(self, members: int, keeps: Keeps, *, squares: bool):
        self.sums = np.zeros((members, 3 if squares else 2))
        self._keeps, self._squares = keeps, squares

    def see(self, chunk: Chunk) -> None:
        found = chunk.work.kernels.kept_sums(
            chunk.members(), chunk.origin(), self._keeps(chunk.start), self._squares
        )
        self.sums = reduce(np.add, found, self.sums)


class _Shared:
    """How many kept elements each member has alone, and together with others."""

    def __init__(self, members: int, keeps: Keeps):
        self._counts = np.zeros((members, 2), dtype=np.int64)
        self._keeps = keeps

    def see(self, chunk: Chunk) -> None:
        self._counts += chunk.work.kernels.shared_counts(
            chunk.members(), chunk.origin(), self._keeps(chunk.start)
        )

    def lone_factors(self, r: float, alpha: float) -> Doubles:
        """`1 + r min(shared / lone, alpha)` of each member; 1 where it has no lone element."""
        lone, shared = self._counts.astype(np.float64).T
        ratio = np.divide(shared, lone, out=np.zeros_like(lone), where=lone != 0)
        return 1.0 + r * np.minimum(ratio, alpha)
