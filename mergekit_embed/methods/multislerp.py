"""Multi-SLERP: the members' weighted mean direction, at their weighted mean length."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Coefficients, Gram, divide, normalised
from .notes import note
from .registry import Param, PositiveWeights, mixture

CANCELLED = 2.0**-44
"""A squared length of the mean of unit vectors below this is rounding, not a direction."""


@mixture("multislerp", base="optional origin")
def multislerp(
    gram: Gram,
    weight: PositiveWeights,
    normalize_weights: Annotated[bool, Param("divide the weights by their sum")] = True,
    eps: Annotated[float, Param("a vector no longer than this counts as zero", minimum=0.0)] = 0.0,
) -> Coefficients:
    """Weighted mean direction of the members (or deltas), at their weighted mean length.

    `c = (w . n) u / |u|`, with `n` the lengths of the vectors and `u = w / n`. A zero vector has no
    direction and drops out; directions that cancel fall back to the weighted mean, with a note.
    Source: the closed form of goddard.blog/posts/multislerp, whose tangent step vanishes
    identically; used for bagged members by BOOM, arXiv 2602.05787.
    """
    share = normalised(weight)
    weight = share if normalize_weights else weight
    lengths = gram.lengths()
    direction = np.where(lengths > eps, divide(weight, lengths), 0.0)
    squared = gram.inner(direction, direction)
    cancelled = squared <= CANCELLED * float(weight.sum()) ** 2
    if np.any(cancelled & np.any(lengths > eps, axis=-1)):
        note("the members' directions cancel; merged linearly instead")
    scale = divide((weight * lengths).sum(axis=-1), np.sqrt(np.maximum(squared, 0.0)))
    return np.where(cancelled[..., None], share, scale[..., None] * direction)
