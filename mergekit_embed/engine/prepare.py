"""From a job to what combines its tensor, and from that to bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..kernels import Output, Raw
from .consensus import prepare_elementwise
from .copies import prepare_copy
from .mixtures import prepare_mixture
from .plan import Job
from .stream import Chunk, Combiner, Pass, Steps, Work
from .stretch import prepare_stretched


def prepare(work: Work) -> Steps[Combiner]:
    """Measure all that the merge of a tensor needs to know, and return what makes the result."""
    job = work.job
    if job.count == 0:
        return Combiner(lambda chunk: Output(np.empty(0, np.uint8), finite=True), 1)
    if job.stretch is not None:
        return (yield from prepare_stretched(work, job.stretch, prepare))
    if job.parameters is None:
        return prepare_copy(work)
    if work.plan.recipe.method.family == "consensus":
        return (yield from prepare_elementwise(work))
    return (yield from prepare_mixture(work))


def merge_tensor(work: Work, write: Callable[[Job, int, Raw], None]) -> Steps[None]:
    """Merge a tensor and write it, chunk by chunk.

    Raises:
        NonFiniteError: as soon as a chunk is not finite.
    """
    combiner = yield from prepare(work)
    if combiner.is_table:
        for chunk in work.chunks(0, work.job.result_count, combiner.of):
            write(work.job, chunk.start, work.checked(chunk, combiner.output(chunk)))
    elif work.job.count:
        look = _Writing(work, combiner, write)
        yield Pass({look: look}, 0, work.job.count, combiner.of)


class _Writing:
    """Combines every chunk and writes it."""

    def __init__(self, work: Work, combiner: Combiner, write: Callable[[Job, int, Raw], None]):
        self._work, self._combiner, self._write = work, combiner, write

    def see(self, chunk: Chunk) -> None:
        output = self._combiner.output(chunk)
        self._write(self._work.job, chunk.start, self._work.checked(chunk, output))


def combined(work: Work, combiner: Combiner, start: int, stop: int) -> Raw:
    """Elements `start` to `stop` of a job's result.

    Raises:
        NonFiniteError: when some of them, or of the chunks that they belong to, are not finite.
    """
    unit, size = combiner.unit, work.job.dtype.itemsize
    first = start // unit * unit
    last = min(-(-stop // unit) * unit, work.job.result_count)
    parts = [
        work.checked(chunk, combiner.output(chunk))
        for chunk in work.chunks(first, last, combiner.of)
    ]
    found = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
    return found[(start - first) * size : (stop - first) * size]
