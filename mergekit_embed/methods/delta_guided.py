"""Delta-guided fusion: members count by how far they moved from their common start."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Array, Coefficients, Gram, divide
from .registry import GRANULARITIES, Groups, Param, PositiveWeights, mixture


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
    groups: Groups = None,
) -> Coefficients:
    """Members weighted by a power of the distance that each vector moved from the base.

    `c_k = w_k n_k^gamma / sum_j w_j n_j^gamma`, `n_k = |x_k - b|`. A zero delta takes no part when
    `gamma < 0`. `rms` and `relative` divide the l2 lengths of all members by the same number, so
    their coefficients are those of `l2`.

    With `groups`, the members of each are merged by this rule first and then the groups: a group's
    weight is the sum of its members', and its delta, a mixture of theirs, is as long as the Gram
    matrix says. The L1 length of a mixture does not follow from its members'.
    Source: a reading of the description in CoDiEmb, arXiv 2508.11442, which gives no formula.

    Raises:
        ValueError: when all weights are zero, or for groups measured by `l1`.
    """
    if not np.any(weight):
        raise ValueError("the weights are all zero and cannot be normalised")
    if groups is None:
        absolute = gram.absolute if norm == "l1" else None
        return _shares(weight, gram.lengths() if absolute is None else absolute, gamma)
    if norm == "l1":
        raise ValueError(
            "groups cannot be measured by `norm: l1`: the L1 length of a group's merged delta does "
            "not follow from those of its members. Use `norm: l2`, or leave the groups out"
        )
    within = [_within(gram, np.where(groups == g, weight, 0.0), gamma) for g in np.unique(groups)]
    lengths = np.stack([length for _, length in within], axis=-1)
    weights = np.array([weight[groups == g].sum() for g in np.unique(groups)])
    between = _shares(weights, lengths, gamma)
    coefficients = np.stack([own for own, _ in within], axis=-2)  # (..., groups, K)
    result: Coefficients = (between[..., None] * coefficients).sum(axis=-2)
    return result


def _shares(weight: Array, lengths: Array, gamma: float) -> Coefficients:
    """`w n^gamma` over their sum, shape (..., K); all zero where nothing takes part."""
    relative = divide(lengths, lengths.max(axis=-1, keepdims=True))
    moved = relative > 0.0
    power = np.where(moved, np.where(moved, relative, 1.0) ** gamma, 0.0 if gamma else 1.0)
    share = weight * power
    return divide(share, share.sum(axis=-1, keepdims=True))


def _within(gram: Gram, weight: Array, gamma: float) -> tuple[Coefficients, Array]:
    """The coefficients (..., K) of one group's members, 0 for the others, and its length (...).

    Deltas that cancel leave a length of zero, and not what rounding makes of it: a negative power
    would let that outweigh everything.
    """
    lengths = gram.lengths()
    own = _shares(weight, np.where(weight > 0.0, lengths, 0.0), gamma)
    return own, gram.clear_length_of(own)
