"""What the elementwise methods ask of the engine: which elements are kept, and how they combine.

A method says it in these words; the engine measures what has to be measured first (a threshold, an
L1 norm), and the kernels decide element by element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .gram import Array


@dataclass(frozen=True)
class Largest:
    """Keep a share `density` (K,) of each delta, largest magnitudes first.

    `skip` (K,) is the share of the very largest that is dropped before. At least one element is
    kept, and all that tie with the last or with the first one kept.
    """

    density: Array
    skip: Array

    def ranks(self, count: int) -> list[tuple[int, int]]:
        """Of each delta's elements, how many are dropped, and the rank of the last that is kept.

        Rank 1 is the largest.
        """
        found = []
        for density, skip in zip(self.density, self.skip, strict=True):
            dropped = min(math.floor(float(skip) * count), count - 1)
            found.append((dropped, min(dropped + count_of(density, count), count)))
        return found


@dataclass(frozen=True)
class Drawn:
    """Keep each element of delta k at random, with probability `density[k]`."""

    density: Array


@dataclass(frozen=True)
class DrawnByRank:
    """As `Drawn`, with probabilities from `density - epsilon` to `density + epsilon`.

    They rise with the rank of the magnitude in its row, and are clipped into [0, 1].
    """

    density: Array
    epsilon: Array


@dataclass(frozen=True)
class MostVaried:
    """Keep, in every delta, the share of the elements in which the members differ most."""

    share: float

    def rank(self, count: int) -> int:
        """The rank of the last that is kept of so many elements; 1 is the largest."""
        return count_of(self.share, count)


@dataclass(frozen=True)
class Above:
    """Keep the elements whose magnitude is above the limit."""

    limit: float


@dataclass(frozen=True)
class Outlying:
    """Keep the elements whose importance is at least median + `reach` interquartile ranges."""

    reach: float


Selection = Largest | Drawn | DrawnByRank | MostVaried | Above | Outlying

Rescale = Literal["no", "by norm", "by density"]


@dataclass(frozen=True)
class Consensus:
    """Keep some elements of every delta, combine what is kept, and add it to the base.

    Attributes:
        keep: which elements.
        weight: float64 (K,), the members' weights.
        vote: combine only those that have the sign of their weighted sum.
        mean: divide by how many members keep the element.
        normalize: divide by the weights of the members that count.
        rescale: multiply each kept delta by its L1 norm before over after, or by 1 / density.
        scale: factor on the combined delta (`lambda` in recipes).
        by_squares: multiply the weights by each delta's share of the kept squares.
        lone: (r, alpha): what one member alone keeps counts `1 + r min(rho, alpha)` times, `rho`
            the member's shared over its lone elements.
    """

    keep: Selection
    weight: Array
    vote: bool = True
    mean: bool = False
    normalize: bool = False
    rescale: Rescale = "no"
    scale: float = 1.0
    by_squares: bool = False
    lone: tuple[float, float] | None = None


@dataclass(frozen=True)
class Centre:
    """The mean of each element's values without the `trim` smallest and largest."""

    trim: int


@dataclass(frozen=True)
class Near:
    """The base, moved towards the member by at most `reach` in every element."""

    reach: float


@dataclass(frozen=True)
class FisherMean:
    """The mean of the members, each element of each weighing as its Fisher.

    Attributes:
        weight: float64 (K,), the members' weights.
        normalize: divide each member's Fisher by its L2 norm over the model.
        floor: share of that norm that a Fisher counts at least; where all are below, the weighted
            mean.
    """

    weight: Array
    normalize: bool
    floor: float


@dataclass(frozen=True)
class Regression:
    """The linear layer whose outputs are nearest to those of all members, on their own inputs.

    Attributes:
        weight: float64 (K,), the members' weights.
        alpha: factor on the Gram matrices' off-diagonal entries.
    """

    weight: Array
    alpha: float


Elementwise = Consensus | Centre | Near | FisherMean | Regression


def count_of(share: float, count: int) -> int:
    """`floor(share count)`, but at least one element."""
    return max(1, math.floor(float(share) * count))


def ones(count: int) -> Array:
    """Equal weights."""
    return np.ones(count)
