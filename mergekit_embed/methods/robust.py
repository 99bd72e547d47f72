"""Robust centres of the members, and a base that members may pull only so far."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from .consensus import Centre, Consensus, Near, Outlying
from .registry import Members, Param, consensus


@consensus("median", base="files")
def median(members: Members) -> Centre:
    """Coordinate-wise median of the members; of an even number, the mean of the middle two."""
    return Centre((members - 1) // 2)


@consensus("trimmed_mean", base="files")
def trimmed_mean(
    members: Members,
    trim: Annotated[
        float,
        Param("share of the members left out at each end", minimum=0.0, maximum=0.5),
    ] = 0.2,
) -> Centre:
    """Coordinate-wise mean without the `floor(trim K)` smallest and largest values."""
    return Centre(min(math.floor(trim * members), (members - 1) // 2))


@consensus("nearswap", exactly=1)
def nearswap(
    t: Annotated[float, Param("farthest that an element moves from the base", minimum=0.0)],
) -> Near:
    """The base, with every element moved towards the member by at most `t`.

    `b + clip(t / |d|, 0, 1) d`, with `|d|` at least 1e-6.
    """
    return Near(t)


@consensus("arcee_fusion", exactly=1)
def arcee_fusion() -> Consensus:
    """The base, with the member's outstanding changes.

    Keeps the elements whose importance, `|d|` times the divergence of the row's softmax from the
    base's, is at least the tensor's median plus 1.5 interquartile ranges. The quantiles are exact.
    """
    return Consensus(Outlying(1.5), np.ones(1), vote=False)
