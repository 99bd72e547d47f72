"""Copying a tensor that is not merged, after making sure that all members agree on it."""

from __future__ import annotations

import numpy as np

from ..checkpoint import is_derived_buffer
from ..errors import PlanError
from ..kernels import Layout, Output, Raw
from .plan import Job
from .stream import Shop, Stopped, part_of

COPY_BYTES = 2**20


def run_copy(job: Job, shop: Shop) -> None:
    """Copy the first source, bit for bit unless it is edited or stored as another float type.

    Raises:
        PlanError: when another source differs.
        NonFiniteError: when the source is not finite and the recipe does not allow that.
    """
    first, *others = job.sources
    step = max(1, COPY_BYTES // first.read_as.itemsize)
    for start in range(0, job.count, step):
        if shop.stop.is_set():
            raise Stopped
        stop = min(start + step, job.count)
        raw = shop.reader.read(first, start, stop)
        for which, other in enumerate(others, start=1):
            if (shop.reader.read(other, start, stop) != raw).any():
                raise _difference(job, shop, which)
        if job.dtype.is_float and not is_derived_buffer(job.name):
            _copy_floats(job, shop, start, raw)
        else:
            shop.write(job, start, raw)
        shop.advance((stop - start) * job.width)


def _copy_floats(job: Job, shop: Shop, start: int, raw: Raw) -> None:
    first = job.sources[0]
    vector = shop.kernels.load(raw, first.read_as)
    count = len(raw) // first.read_as.itemsize
    divide = part_of(job.divide, start, start + count)
    if job.dtype is first.read_as and divide is None:
        output = Output(raw, shop.kernels.is_finite(vector))
    else:
        output = shop.kernels.mixture(
            [vector], None, np.ones((1, 1, 1)), Layout(count), job.dtype, divide
        )
    shop.accept(job, start, output, {shop.plan.shell.label: vector})


def _difference(job: Job, shop: Shop, which: int) -> PlanError:
    recipe, index = shop.plan.recipe, job.members[which]
    other, first = (shop.plan.members[i].label for i in (index, job.members[0]))
    message = (
        f"{other} has other whole numbers ({job.dtype}) in {job.name} than {first}; such tensors "
        f"are copied and not merged, and must be equal. Drop this member, or give it the tensor "
        f"of {first}"
    )
    return PlanError([recipe.source.problem(recipe.members[index].place, message)])
