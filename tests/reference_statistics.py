"""The merge methods that weigh by statistics, again, in float64 NumPy.

As in `reference`: each function is the definition of its method on whole tensors, slow and plain on
purpose. `members` is one tensor of each of the K members, float64 arrays of one common shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from reference import Array, linear


def fisher(
    members: Sequence[Array],
    fishers: Sequence[Array],
    weights: Sequence[float],
    norms: Sequence[float],
    normalize: bool = True,
    floor: float = 1e-12,
) -> Array:
    """Fisher merging, element by element.

    Source: Matena and Raffel 2022, arXiv 2111.09832: sum w F x / sum w F. `norms` are the L2 norms
    of the members' Fishers over the whole model. A Fisher counts at least `floor` times its norm;
    where no member has more, or those that have weigh nothing, the weighted mean.
    """
    relative = [found / norm for found, norm in zip(fishers, norms, strict=True)]
    shares = [
        weight * np.maximum(share, floor) * (1.0 if normalize else norm)
        for weight, share, norm in zip(weights, relative, norms, strict=True)
    ]
    total = np.sum(shares, axis=0)
    unknown = (np.max(relative, axis=0) <= floor) | (total == 0.0)
    weighed = sum(
        share / np.where(unknown, 1.0, total) * member
        for share, member in zip(shares, members, strict=True)
    )
    return np.where(unknown, linear(members, weights), weighed)


def regmean(
    members: Sequence[Array], grams: Sequence[Array], weights: Sequence[float], alpha: float = 0.9
) -> Array:
    """RegMean of weights (out, in) with invertible sums of the Gram matrices (in, in).

    Source: Jin et al. 2023, arXiv 2212.09849: (sum w W G) (sum w G)^-1, with the entries off the
    diagonal of each G times alpha.
    """
    damped = [alpha * gram + (1.0 - alpha) * np.diag(np.diag(gram)) for gram in grams]
    products = [
        weight * member @ gram
        for weight, member, gram in zip(weights, members, damped, strict=True)
    ]
    total = sum(weight * gram for weight, gram in zip(weights, damped, strict=True))
    solved: Array = np.linalg.solve(np.asarray(total).T, np.sum(products, axis=0).T).T
    return solved


def regression_loss(
    merged: Array, members: Sequence[Array], inputs: Sequence[Array], weights: Sequence[float]
) -> float:
    """What RegMean makes small: sum w ||X W^T - X W_k^T||^2, with inputs X (tokens, in)."""
    return sum(
        weight * float((((merged - member) @ rows.T) ** 2).sum())
        for weight, member, rows in zip(weights, members, inputs, strict=True)
    )
