"""Copying a tensor that is not merged, after making sure that all members agree on it."""

from __future__ import annotations

from ..errors import PlanError, Problem
from .plan import Job
from .stream import Shop, Stopped

COPY_BYTES = 2**20


def run_copy(job: Job, shop: Shop) -> None:
    """Copy the first source, bit for bit.

    Raises:
        PlanError: when another source differs.
    """
    first, *others = job.sources
    step = max(1, COPY_BYTES // first.dtype.itemsize)
    for start in range(0, job.count, step):
        if shop.stop.is_set():
            raise Stopped
        stop = min(start + step, job.count)
        raw = shop.reader.read(first, start, stop)
        for other in others:
            same_type = other.dtype is first.dtype
            if not same_type or (shop.reader.read(other, start, stop) != raw).any():
                raise PlanError([Problem("", _difference(job, shop, others.index(other) + 1))])
        shop.write(job, start, raw)
        shop.advance((stop - start) * first.dtype.itemsize * len(job.sources))


def _difference(job: Job, shop: Shop, which: int) -> str:
    labels = [member.label for member in shop.plan.members]
    return (
        f"{job.name} holds whole numbers ({job.dtype}), which are copied and not merged, but "
        f"{labels[which]} has others than {labels[0]}"
    )
