"""The effective rank of the members' vectors as matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engine.folding import widened
from ..engine.stream import Chunk
from ..kernels import BLOCK

Doubles = NDArray[np.float64]

COLUMNS = 2048
"""Most columns whose products are summed: 32 MB for each member."""


class Products:
    """Sums `X^T X` of each member's vector as a matrix (rows, columns), row by row: a `Look`.

    Of more than `COLUMNS` columns that many are taken, at equal distances.
    """

    def __init__(self, members: int, columns: int):
        self._every = columns
        count = min(columns, COLUMNS)
        self._chosen = np.arange(count) * columns // count
        self._sums = np.zeros((members, count, count))
        self._rest: Doubles = np.empty((members, 0))

    def see(self, chunk: Chunk) -> None:
        """Add the rows that end in the chunk."""
        job, supply = chunk.work.job, chunk.work.supply
        tensors = job.sources if job.origin is None else (*job.sources, job.origin)
        for start in range(chunk.start, chunk.stop, BLOCK):
            stop = min(start + BLOCK, chunk.stop)
            held = [widened(supply.raw(t, start, stop), t.read_as) for t in tensors]
            vectors = np.stack(held[: len(job.sources)])
            if job.origin is not None:
                vectors -= held[-1]
            vectors = np.concatenate([self._rest, vectors], axis=1)
            whole = vectors.shape[1] // self._every * self._every
            self._rest = vectors[:, whole:]
            rows = vectors[:, :whole].reshape(len(vectors), -1, self._every)
            if len(self._chosen) < self._every:
                rows = rows[:, :, self._chosen]
            self._sums += rows.transpose(0, 2, 1) @ rows

    def ranks(self) -> Doubles:
        """The effective rank of each member's matrix: float64 (K,)."""
        return np.array([effective_rank(products) for products in self._sums])


def effective_rank(products: Doubles) -> float:
    """`exp(-sum p log p)` with `p` the singular values divided by their sum; 0 of a zero matrix.

    `products` is `X^T X`, float64 (n, n). Singular values below 1e-8 of the largest are rounding.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    if not np.isfinite(products).all():
        return float("nan")
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))
    singular = singular[singular > 1e-8 * singular.max(initial=0.0)]
    if not singular.size:
        return 0.0
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
