"""Copying a tensor that is not merged, after making sure that all members agree on it."""

from __future__ import annotations

import numpy as np

from ..checkpoint import is_derived_buffer
from ..errors import PlanError
from ..kernels import Layout, Output
from .stream import Chunk, Combiner, Work


def prepare_copy(work: Work) -> Combiner:
    """What copies the first source, bit for bit unless it is edited or stored as another float.

    It raises `PlanError` for a chunk in which another source differs.
    """
    return Combiner(_copied, work.chunk_elements)


def _copied(chunk: Chunk) -> Output:
    job = chunk.work.job
    raw = chunk.raw(0)
    for which in range(1, len(job.sources)):
        if (chunk.raw(which) != raw).any():
            raise _difference(chunk.work, which)
    if not job.dtype.is_float or is_derived_buffer(job.name):
        return Output(raw, True)
    kernels, vector = chunk.work.kernels, chunk.members()[0]
    if job.dtype is job.sources[0].read_as and chunk.divide is None:
        return Output(raw, kernels.is_finite(vector))
    ones, layout = np.ones((1, 1, 1)), Layout(chunk.count)
    return kernels.mixture([vector], None, ones, layout, job.dtype, chunk.divide)


def _difference(work: Work, which: int) -> PlanError:
    job, recipe, members = work.job, work.plan.recipe, work.plan.members
    index = job.members[which]
    other, first = (members[i].label for i in (index, job.members[0]))
    message = (
        f"{other} has other whole numbers ({job.dtype}) in {job.name} than {first}; such tensors "
        f"are copied and not merged, and must be equal. Drop this member, or give it the tensor "
        f"of {first}"
    )
    return PlanError([recipe.source.problem(recipe.members[index].place, message)])
