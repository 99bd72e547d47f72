"""Karcher mean: the centre of the members' directions on the sphere, at their mean length."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Array, Coefficients, Gram, divide, normalised
from .registry import Param, PositiveWeights, mixture
from .slerp import VANISHING_SINE


@mixture("karcher", base="files")
def karcher(
    gram: Gram,
    weight: PositiveWeights,
    max_iter: Annotated[int, Param("most steps of the fixed point", minimum=0)] = 10,
    tol: Annotated[float, Param("stop when the step is shorter than this", minimum=0.0)] = 1e-5,
) -> Coefficients:
    """Weighted Riemannian (Karcher) mean of the directions, times the weighted mean length.

    From the normalised weighted mean `m` of the unit vectors, steps along the weighted mean of
    their logarithms at `m` until the step is shorter than `tol`. Zero vectors drop out; a vector
    opposite to `m` has no logarithm and pulls nowhere.
    Source: Karcher 1977; Pennec 2006, "Intrinsic statistics on Riemannian manifolds".
    """
    share = normalised(weight)
    lengths = gram.lengths()
    present = np.where(lengths > 0.0, share, 0.0)
    present = divide(present, present.sum(axis=-1, keepdims=True))
    mean = _unit(gram, divide(present, lengths))
    moving = np.ones(mean.shape[:-1], dtype=bool)
    for _ in range(max_iter):
        step = _tangent_mean(gram, mean, present, lengths)
        length = gram.length_of(step)
        moving &= length >= tol
        if not moving.any():
            break
        towards = divide(np.sin(length), length)[..., None] * step
        stepped = _unit(gram, np.cos(length)[..., None] * mean + towards)
        mean = np.where(moving[..., None], stepped, mean)
    scale: Array = (share * lengths).sum(axis=-1, keepdims=True)
    centre: Array = scale * mean
    return centre


def _tangent_mean(gram: Gram, mean: Array, weight: Array, lengths: Array) -> Array:
    """Weighted mean of the logarithms of the unit vectors at `mean`, as coefficients (..., K)."""
    products = np.einsum("...ij,...j->...i", gram.matrix, mean)
    cosines = np.clip(divide(products, lengths), -1.0, 1.0)
    angles = np.arccos(cosines)
    sines = np.sin(angles)
    # Where the sine vanishes, so does the logarithm, or it has no direction but rounding's.
    vanishing = np.where(cosines > 0.0, 1.0, 0.0)
    stretch = weight * np.where(sines < VANISHING_SINE, vanishing, divide(angles, sines))
    pull = (stretch * cosines).sum(axis=-1, keepdims=True)
    logarithm: Array = divide(stretch, lengths) - pull * mean
    return logarithm


def _unit(gram: Gram, coefficients: Array) -> Array:
    """The vector of length 1 in the same direction; the first non-zero member's when it is zero."""
    lengths = gram.clear_length_of(coefficients)[..., None]
    first = np.arange(gram.count) == np.argmax(gram.lengths() > 0.0, axis=-1)[..., None]
    fallback = divide(first.astype(np.float64), gram.lengths())
    return np.where(lengths > 0.0, divide(coefficients, lengths), fallback)
