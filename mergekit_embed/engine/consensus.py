"""Running an elementwise method: measure what the decision needs, then decide and combine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    Elementwise,
    Largest,
    MostVaried,
    Near,
    Outlying,
)
from .order_statistics import largest
from .plan import Job
from .stream import Shop, Stream

ROW_CHUNK = 4 * BLOCK
"""Elements of a chunk of whole rows, about."""

Keeps = Callable[[int], Sequence[Keep]]
"""What each member keeps, for the chunk that starts at the given element."""


def run_elementwise(job: Job, shop: Shop) -> None:
    """Merge one tensor by an elementwise method."""
    if job.count == 0:
        return
    assert job.parameters is not None
    method = shop.plan.recipe.method
    arguments = method.arguments(job.parameters, len(job.sources))
    wanted: Elementwise = method.function(**arguments)
    stream = Stream(job, shop)
    if isinstance(wanted, Consensus):
        _run_consensus(stream, wanted)
        return
    for chunk in stream.chunks():
        if isinstance(wanted, Centre):
            output = shop.kernels.centre(chunk.members(), wanted.trim, job.dtype, chunk.divide)
        else:
            assert isinstance(wanted, Near)
            (member,) = chunk.members()
            output = shop.kernels.near(
                member, chunk.origin(), wanted.reach, job.dtype, chunk.divide
            )
        shop.accept(job, chunk.start, output, {} if output.finite else chunk.labelled())
        stream.advance(chunk.count)


def _run_consensus(stream: Stream, wanted: Consensus) -> None:
    job, shop = stream.job, stream.shop
    of = _chunk_elements(stream, wanted)
    keeps = _keeps(stream, wanted, of)
    combine = _combine(stream, wanted, keeps, of)
    for chunk in stream.chunks(of=of):
        output = shop.kernels.consensus(
            chunk.members(),
            chunk.origin(),
            keeps(chunk.start),
            combine,
            job.dtype,
            chunk.divide,
        )
        shop.accept(job, chunk.start, output, {} if output.finite else chunk.labelled())
        stream.advance(chunk.count)


def _row(job: Job) -> int:
    return job.shape[-1] if job.shape else 1


def _chunk_elements(stream: Stream, wanted: Consensus) -> int:
    """Whole rows where the method looks at rows, else whole blocks."""
    if isinstance(wanted.keep, DrawnByRank | Outlying):
        # By the shape alone: sums are cut at chunks here, and must not show the kernels' taste.
        row = _row(stream.job)
        return max(1, ROW_CHUNK // row) * row
    return stream.chunk_elements


def _keeps(stream: Stream, wanted: Consensus, of: int) -> Keeps:
    """Turn the method's words into what the kernels test, measuring what is needed."""
    keep, count = wanted.keep, len(stream.job.sources)
    if isinstance(keep, Drawn | DrawnByRank):
        return _drawn(stream.job, stream.shop, keep)
    if isinstance(keep, Largest):
        bands = _largest_bands(stream, keep, of)
    elif isinstance(keep, MostVaried):
        rank = _count_of(keep.share, stream.job.count)
        low = largest(stream, [(Variance(), rank)], of)[0] if rank < stream.job.count else 0.0
        bands = [Band(Variance(), low)] * count
    elif isinstance(keep, Above):
        low = float(np.nextafter(keep.limit, np.inf))
        bands = [Band(Magnitude(k), low) for k in range(count)]
    else:
        bands = [_outlying_band(stream, keep, of)]
    return lambda start: bands


def _count_of(share: float, count: int) -> int:
    """`floor(share count)`, but at least one element."""
    return max(1, math.floor(float(share) * count))


def _largest_bands(stream: Stream, keep: Largest, of: int) -> list[Band]:
    count = stream.job.count
    wanted: list[tuple[Measure, int]] = []
    ends: list[tuple[int, int]] = []
    for member, (density, skip) in enumerate(zip(keep.density, keep.skip, strict=True)):
        dropped = min(math.floor(float(skip) * count), count - 1)
        last = min(dropped + _count_of(density, count), count)
        ends.append((dropped, last))
        wanted += [(Magnitude(member), dropped + 1)] if dropped else []
        wanted += [(Magnitude(member), last)] if last < count else []
    values = dict(zip(wanted, largest(stream, wanted, of) if wanted else [], strict=True))
    return [
        Band(
            Magnitude(member),
            low=values.get((Magnitude(member), last), 0.0),
            high=values.get((Magnitude(member), dropped + 1), math.inf) if dropped else math.inf,
        )
        for member, (dropped, last) in enumerate(ends)
    ]


def _outlying_band(stream: Stream, keep: Outlying, of: int) -> Band:
    """Quantiles by linear interpolation between the neighbouring order statistics."""
    measure, count = Importance(_row(stream.job)), stream.job.count
    places = [part * (count - 1) for part in (0.25, 0.5, 0.75)]
    ranks = sorted({count - math.floor(p) for p in places} | {count - math.ceil(p) for p in places})
    found = dict(zip(ranks, largest(stream, [(measure, r) for r in ranks], of), strict=True))

    def quantile(place: float) -> float:
        low, high = found[count - math.floor(place)], found[count - math.ceil(place)]
        return low + (place - math.floor(place)) * (high - low)

    first, middle, third = (quantile(place) for place in places)
    return Band(measure, middle + keep.reach * (third - first))


def _drawn(job: Job, shop: Shop, keep: Drawn | DrawnByRank) -> Keeps:
    seed, row = shop.plan.recipe.seed, _row(job)
    keys = [draw_key(seed, job.name, member) for member in range(len(job.sources))]
    if isinstance(keep, Drawn):
        shares = [float(share) for share in keep.density]
        return lambda start: [Draw(k, start, p) for k, p in zip(keys, shares, strict=True)]
    low = np.clip(keep.density - keep.epsilon, 0.0, 1.0)
    high = np.clip(keep.density + keep.epsilon, 0.0, 1.0)
    return lambda start: [
        RankedDraw(key, start, row, float(lowest), float(highest))
        for key, lowest, highest in zip(keys, low, high, strict=True)
    ]


def _combine(stream: Stream, wanted: Consensus, keeps: Keeps, of: int) -> Combine:
    count = len(stream.job.sources)
    factors, weight, lone = np.ones(count), wanted.weight, None
    if wanted.rescale == "by norm" or wanted.by_squares:
        sums = _kept_sums(stream, keeps, of)
        if wanted.rescale == "by norm":
            factors = np.divide(sums[:, 0], sums[:, 1], out=factors, where=sums[:, 1] != 0)
        if wanted.by_squares:
            total = sums[:, 2].sum()
            weight = weight * (sums[:, 2] / total if total else np.full(count, 1 / count))
    elif wanted.rescale == "by density" and isinstance(wanted.keep, Drawn):
        density = wanted.keep.density
        factors = np.divide(1.0, density, out=factors, where=density != 0)
    if wanted.lone is not None:
        lone = _lone_factors(stream, keeps, of, *wanted.lone)
    return Combine(
        vote=wanted.vote,
        mean=wanted.mean,
        normalize=wanted.normalize,
        factors=factors,
        lone_factors=lone,
        weight=np.asarray(weight, dtype=np.float64),
        scale=wanted.scale,
    )


def _kept_sums(stream: Stream, keeps: Keeps, of: int) -> Doubles:
    """L1 norms, L1 norms of what is kept, and its squares, (K, 3)."""
    sums = np.zeros((len(stream.job.sources), 3))
    for chunk in stream.chunks(of=of):
        found = stream.shop.kernels.kept_sums(chunk.members(), chunk.origin(), keeps(chunk.start))
        sums = reduce(np.add, found, sums)
    return sums


def _lone_factors(stream: Stream, keeps: Keeps, of: int, r: float, alpha: float) -> Doubles:
    """`1 + r min(shared / lone, alpha)` of each member; 1 where it has no lone element."""
    counts = np.zeros((len(stream.job.sources), 2), dtype=np.int64)
    for chunk in stream.chunks(of=of):
        counts += stream.shop.kernels.shared_counts(
            chunk.members(), chunk.origin(), keeps(chunk.start)
        )
    lone, shared = counts.astype(np.float64).T
    ratio = np.divide(shared, lone, out=np.zeros_like(lone), where=lone != 0)
    return 1.0 + r * np.minimum(ratio, alpha)
