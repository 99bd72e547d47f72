"""Coefficients that sum to 1: what all vectors have in common must come through them."""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

NEARLY_ONE = 2.0**-44
"""Coefficients whose sum is this close to 1 were meant to sum to 1."""


def sums_to_one(coefficients: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the vectors of coefficients (..., K) sum to 1: bool (...).

    Added in the order of the vectors, which libraries' own sums are not: of large coefficients that
    cancel, another order gives another sum.
    """
    sums = reduce(np.add, np.moveaxis(coefficients, -1, 0))
    return np.asarray(np.abs(sums - 1.0) <= NEARLY_ONE)
