"""Delta-guided fusion: members count by how far they moved from their common start."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Coefficients, Gram, divide
from .registry import GRANULARITIES, Param, PositiveWeights, mixture


@mixture(
    "delta_guided",
    base="origin",
    units=GRANULARITIES,
    absolute=lambda norm, **_: bool(norm == "l1"),
)
def delta_guided(
    gram: Gram,
    weight: PositiveWeights,
    gamma: Annotated[
        float, Param("1 favours members that moved far, 0 ignores it, -1 damps them")
    ] = 1.0,
    norm: Annotated[
        str,
        Param("how the way moved is measured", choices=("l2", "l1", "rms", "relative")),
    ] = "l2",
) -> Coefficients:
    """Members weighted by a power of the distance that each vector moved from the base.

    `c_k = w_k n_k^gamma / sum_j w_j n_j^gamma`, `n_k = |x_k - b|`. A zero delta takes no part when
    `gamma < 0`. `rms` and `relative` divide the l2 lengths of all members by the same number, so
    their coefficients are those of `l2`.
    Source: a reading of the description in CoDiEmb, arXiv 2508.11442, which gives no formula.
    """
    lengths = gram.absolute if norm == "l1" and gram.absolute is not None else gram.lengths()
    relative = divide(lengths, lengths.max(axis=-1, keepdims=True))
    moved = relative > 0.0
    power = np.where(moved, np.where(moved, relative, 1.0) ** gamma, 0.0 if gamma else 1.0)
    share = weight * power
    total = share.sum(axis=-1, keepdims=True)
    if not np.any(weight):
        raise ValueError("the weights are all zero and cannot be normalised")
    return divide(share, total)
