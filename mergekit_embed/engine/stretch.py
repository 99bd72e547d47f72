"""A table of rows, merged and then interpolated to another number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..dtypes import DType
from ..kernels import BLOCK, Doubles, Layout, Raw
from .plan import Job, Stretch
from .stream import Shop, Stopped

Combine = Callable[[Job, Shop], None]
"""Merges a job's tensor and writes it where the shop says."""


def run_stretched(job: Job, stretch: Stretch, shop: Shop, combine: Combine) -> None:
    """Merge the table in float64, interpolate it, and round what comes out once.

    The merged table is the one tensor that is ever held whole: 8 bytes an element.

    Raises:
        NonFiniteError: as the merge does, and where the result overflows its type.
    """
    merged = np.empty(job.count)

    def keep(_: Job, start: int, raw: Raw) -> None:
        values = raw.view(np.float64)
        merged[start : start + len(values)] = values

    combine(replace(job, dtype=DType.F64, stretch=None), replace(shop, write=keep))
    table = merged.reshape(job.shape)
    width = job.shape[1]
    step = max(1, BLOCK // max(width, 1))
    for first in range(0, stretch.rows, step):
        if shop.stop.is_set():
            raise Stopped
        rows = interpolated(table, stretch, first, min(first + step, stretch.rows))
        vector = shop.kernels.load(rows.view(np.uint8).reshape(-1), DType.F64)
        output = shop.kernels.mixture(
            [vector], None, np.ones((1, 1, 1)), Layout(rows.size), job.dtype
        )
        shop.accept(job, first * width, output, {})


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
