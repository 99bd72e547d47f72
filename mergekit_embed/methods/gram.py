"""The Gram matrix of the members, and the few operations geometry needs on it.

Any vector in the span of the members is named by its coefficients `c`; its length and its inner
products follow from the K x K matrix `G_ij = <x_i, x_j>` alone, so no method needs a tensor.

Everything is batched: the leading dimensions `(...)` count independent vectors (the rows of a
matrix, say), and are empty when a tensor is one vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import NEARLY_ONE

CANCELLED = 2.0**-44
"""The squared length of a sum below this share of what its terms could reach is rounding."""

Array = NDArray[np.float64]
Coefficients = Array
"""Float64, shape (..., K): how much of each member is in the result."""


@dataclass(frozen=True)
class Gram:
    """Inner products of K vectors: members, or deltas when the method works on deltas.

    `matrix` is float64 of shape (..., K, K). `absolute` holds the L1 lengths, shape (..., K), for
    the methods that ask for them.
    """

    matrix: Array
    absolute: Array | None = None

    @property
    def count(self) -> int:
        """K, the number of vectors."""
        return int(self.matrix.shape[-1])

    def lengths(self) -> Array:
        """Euclidean lengths, shape (..., K)."""
        return np.sqrt(np.diagonal(self.matrix, axis1=-2, axis2=-1))

    def inner(self, left: Array, right: Array) -> Array:
        """Inner product of two vectors given by coefficients (..., K): shape (...)."""
        product: Array = np.einsum("...i,...ij,...j->...", left, self.matrix, right)
        return product

    def length_of(self, coefficients: Coefficients) -> Array:
        """Length of the vector `sum c_k x_k`, shape (...)."""
        return np.sqrt(np.maximum(self.inner(coefficients, coefficients), 0.0))

    def clear_length_of(self, coefficients: Coefficients) -> Array:
        """As `length_of`, but 0 where terms that cancel leave nothing but rounding."""
        squared = self.inner(coefficients, coefficients)
        reach = (np.abs(coefficients) * self.lengths()).sum(axis=-1)
        return np.where(squared <= CANCELLED * reach**2, 0.0, np.sqrt(np.maximum(squared, 0.0)))

    def cosines(self) -> Array:
        """Pairwise cosines, shape (..., K, K); 0 where one of the two vectors is zero."""
        lengths = self.lengths()
        return np.clip(
            divide(divide(self.matrix, lengths[..., :, None]), lengths[..., None, :]), -1.0, 1.0
        )

    def __add__(self, other: Gram) -> Gram:
        """The Gram matrix of the concatenated vectors."""
        absolute = None
        if self.absolute is not None and other.absolute is not None:
            absolute = self.absolute + other.absolute
        return Gram(self.matrix + other.matrix, absolute)


def divide(numerator: Array, denominator: Array) -> Array:
    """Elementwise quotient, 0 where the denominator is 0: a zero vector has no direction."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator != 0)


def normalised(weight: Array) -> Array:
    """Weights divided by their sum.

    Raises:
        ValueError: when they sum to zero (or so close to it that only rounding is left).
    """
    total = float(weight.sum())
    if abs(total) <= NEARLY_ONE * float(np.abs(weight).sum()):
        listed = ", ".join(f"{value:g}" for value in weight)
        raise ValueError(f"the weights ({listed}) sum to zero and cannot be normalised")
    result: Array = weight / total
    return result
