"""A table of rows, merged and then interpolated to another number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..dtypes import DType
from ..kernels import BLOCK, Doubles, Layout, Output
from .plan import Stretch
from .stream import Chunk, Combiner, Steps, Work, one_pass

Prepare = Callable[[Work], Steps[Combiner]]
"""Begins the merge of a job's tensor."""


def prepare_stretched(work: Work, stretch: Stretch, prepare: Prepare) -> Steps[Combiner]:
    """Merge the table in float64, and return what interpolates it and rounds once.

    The merged table is the one tensor that is ever held whole: 8 bytes an element.

    Raises:
        NonFiniteError: as the merge does.
    """
    job = work.job
    doubles = replace(work, job=replace(job, dtype=DType.F64, stretch=None))
    combiner = yield from prepare(doubles)
    look = _Table(doubles, combiner)
    yield from one_pass(doubles, object(), look, of=combiner.of)
    table, width = look.values.reshape(job.shape), job.shape[1]

    def output(chunk: Chunk) -> Output:
        rows = interpolated(table, stretch, chunk.start // width, chunk.stop // width)
        vector = work.kernels.load(rows.view(np.uint8).reshape(-1), DType.F64)
        ones, layout = np.ones((1, 1, 1)), Layout(rows.size)
        return work.kernels.mixture([vector], None, ones, layout, job.dtype)

    return Combiner(output, max(1, BLOCK // max(width, 1)) * width, width, is_table=True)


class _Table:
    """The merged elements in float64."""

    def __init__(self, work: Work, combiner: Combiner):
        self.values = np.empty(work.job.count)
        self._work, self._combiner = work, combiner

    def see(self, chunk: Chunk) -> None:
        mine = Chunk(self._work, chunk.start, chunk.stop)
        merged = self._work.checked(mine, self._combiner.output(mine))
        self.values[mine.start : mine.stop] = merged.view(np.float64)


def interpolated(table: Doubles, stretch: Stretch, start: int, stop: int) -> Doubles:
    """Rows `start` to `stop` of the stretched table, float64 (stop - start, width).

    After the kept rows, row j of m is at `j (n - 1) / (m - 1)` among the n that the table has
    there: the first stays the first and the last the last, exactly.
    """
    old, new = len(table) - stretch.kept, stretch.rows - stretch.kept
    wanted = np.maximum(np.arange(start, stop) - stretch.kept, 0)
    # Whole numbers as far as they go, so that a row that falls on an old one is that row.
    left, rest = np.divmod(wanted * (old - 1), new - 1)
    right = np.minimum(left + 1, old - 1)
    part = (rest / (new - 1))[:, None]
    ours = table[stretch.kept :]
    rows: Doubles = np.where(
        part == 0.0, ours[left], (1.0 - part) * ours[left] + part * ours[right]
    )
    whole = np.arange(start, stop) < stretch.kept
    rows[whole] = table[start : start + int(whole.sum())]
    return rows
