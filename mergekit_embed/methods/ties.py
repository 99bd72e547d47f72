"""Methods that keep the largest part of every delta: TIES and Model Breadcrumbs."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .consensus import Consensus, Largest, Rescale
from .gram import Array, normalised
from .registry import Param, Weights, consensus

Density = Annotated[
    Array,
    Param(
        "share of the elements that the delta keeps",
        per_member=True,
        default=1.0,
        minimum=0.0,
        maximum=1.0,
    ),
]
Skip = Annotated[
    Array,
    Param(
        "share of the largest elements that the delta drops first",
        per_member=True,
        default=0.01,
        minimum=0.0,
        maximum=1.0,
    ),
]
Normalize = Annotated[bool, Param("divide by the weights of the members that count")]
RescaleByNorm = Annotated[
    bool, Param("multiply each trimmed delta by its L1 norm before over after")
]
Lambda = Annotated[float, Param("factor on the merged delta", name="lambda")]


def rescaling(rescale: bool | str) -> Rescale:
    """The word for what a recipe's `rescale` says."""
    if rescale == "exact":
        return "by density"
    return "by norm" if rescale else "no"


def checked(weight: Array, normalize: bool) -> Array:
    """The weights; refused when they cancel although they shall be normalised."""
    if normalize:
        normalised(weight)
    return weight


@consensus("ties")
def ties(
    weight: Weights,
    density: Density,
    normalize: Normalize = True,
    rescale: RescaleByNorm = False,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """Sign consensus of the deltas' largest elements.

    Keeps the `floor(density n)` elements of largest magnitude (at least one, with all that tie with
    the last), takes the sign of their weighted sum (zero counts as +), and averages the kept
    elements that have it.
    Source: Yadav et al. 2023, arXiv 2306.01708.
    """
    return Consensus(
        Largest(density, np.zeros_like(density)),
        checked(weight, normalize),
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )


@consensus("breadcrumbs")
def breadcrumbs(
    weight: Weights,
    density: Density,
    gamma: Skip,
    normalize: Normalize = False,
    rescale: RescaleByNorm = False,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """Sum of the deltas without their outliers and without their smallest elements.

    Drops the `floor(gamma n)` largest magnitudes, then keeps the next `floor(density n)`.
    Source: Davari and Belilovsky 2023, arXiv 2312.06795.
    """
    return Consensus(
        Largest(density, gamma),
        checked(weight, normalize),
        vote=False,
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )


@consensus("breadcrumbs_ties")
def breadcrumbs_ties(
    weight: Weights,
    density: Density,
    gamma: Skip,
    normalize: Normalize = False,
    rescale: RescaleByNorm = False,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """As `breadcrumbs`, merged by the sign consensus of `ties`."""
    return Consensus(
        Largest(density, gamma),
        checked(weight, normalize),
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )
