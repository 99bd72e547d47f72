"""What kernels are given and what they give: layouts, measures, choices of elements, results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = Any
"""Stored elements where the backend wants them; opaque to everybody else."""

Regressor = Any
"""Matrices that `Kernels.regress` needs, where the backend wants them; opaque likewise."""

Raw = NDArray[np.uint8]
Doubles = NDArray[np.float64]


class Moments(NamedTuple):
    """Sums over vectors: `products` (..., K, K) of all pairs, `absolutes` (..., K) or None."""

    products: Doubles
    absolutes: Doubles | None


class Layout(NamedTuple):
    """How a chunk divides into vectors: C-ordered (outer, length, inner), summed over length."""

    length: int
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Divide:
    """Divide the first `count` merged elements before they are rounded."""

    divisor: float
    count: int


class Output(NamedTuple):
    """Merged elements as stored bytes, and whether all of them are finite."""

    raw: Raw
    finite: bool


@dataclass(frozen=True, slots=True)
class Magnitude:
    """`|x_k - o|` of one member."""

    member: int


@dataclass(frozen=True, slots=True)
class Variance:
    """The variance of the deltas across the members: `sum_{i<j} (d_i - d_j)^2 / K^2`.

    The squares are added from the least, so that equal variances are equal numbers.
    """


@dataclass(frozen=True, slots=True)
class Importance:
    """`|d|` times the divergence of the row's softmax from the origin's, of the first member.

    `sum p log(p / q)` with `p`, `q` the softmax of the member's and the origin's row, plus 1e-8,
    summed as `p log1p((p - q) / q) - (p - q)`. A chunk holds whole rows of this length.
    """

    row: int


Measure = Magnitude | Variance | Importance
"""A number at least 0 for each element, on which elements are chosen."""


@dataclass(frozen=True, slots=True)
class Band:
    """Keep the elements whose measure is in [low, high]."""

    measure: Measure
    low: float
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Draw:
    """Keep elements at random: element i when `uniform(key, i) < probability`.

    The chunk begins at element `start` of the tensor. See `draw.py` for `uniform`.
    """

    key: int
    start: int
    probability: float


@dataclass(frozen=True, slots=True)
class RankedDraw:
    """As `Draw`, with a probability that rises with the rank of `|d|` in its row.

    From `lowest` for the smallest to `highest` for the largest, in equal steps; equal magnitudes
    share the mean of theirs. A chunk holds whole rows of this length.
    """

    key: int
    start: int
    row: int
    lowest: float
    highest: float


Keep = Band | Draw | RankedDraw


@dataclass(frozen=True, slots=True)
class Combine:
    """How kept elements come together.

    Attributes:
        vote: only those that have the sign of their weighted sum (zero counts as +).
        mean: divide by the number of members that keep the element.
        normalize: divide by the weights of the members that count.
        factors: float64 (K,), on each member's kept elements.
        lone_factors: float64 (K,), on elements that one member alone keeps; None for 1.
        weight: float64 (K,).
        scale: factor on the whole.
    """

    vote: bool
    mean: bool
    normalize: bool
    factors: Doubles
    lone_factors: Doubles | None
    weight: Doubles
    scale: float


@dataclass(frozen=True, slots=True)
class FisherWeights:
    """What elements weigh by their Fisher F: `w_k max(F_k / norm_k, floor)`.

    Attributes:
        weight: float64 (K,).
        norms: float64 (K,), above 0.
        floor: of the quotient.
        normalize: False multiplies by `norm_k` again.
    """

    weight: Doubles
    norms: Doubles
    floor: float
    normalize: bool
