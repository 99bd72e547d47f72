"""Methods that drop elements of the deltas at random: DARE and DELLA.

Whether element i is kept follows from (seed, tensor, member, i) alone.
"""

from __future__ import annotations

from typing import Annotated

from .consensus import Consensus, Drawn, DrawnByRank
from .gram import Array
from .registry import Param, Weights, consensus
from .ties import Density, Lambda, Normalize, checked, rescaling

RescaleDare = Annotated[
    bool,
    Param(
        "multiply what is kept by the L1 norm before over after; `exact`: by 1 / density, as in "
        "the paper",
        choices=(False, True, "exact"),
    ),
]
RescaleDella = Annotated[bool, Param("multiply what is kept by the L1 norm before over after")]
Epsilon = Annotated[
    Array,
    Param(
        "how far the probability of keeping goes below and above the density",
        per_member=True,
        default=0.15,
        minimum=0.0,
        maximum=1.0,
    ),
]


@consensus("dare_linear")
def dare_linear(
    weight: Weights,
    density: Density,
    normalize: Normalize = False,
    rescale: RescaleDare = True,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """Sum of the deltas after dropping elements at random and rescaling the rest.

    Source: Yu et al. 2023, arXiv 2311.03099.
    """
    return Consensus(
        Drawn(density),
        checked(weight, normalize),
        vote=False,
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )


@consensus("dare_ties")
def dare_ties(
    weight: Weights,
    density: Density,
    normalize: Normalize = False,
    rescale: RescaleDare = True,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """As `dare_linear`, merged by the sign consensus of `ties`."""
    return Consensus(
        Drawn(density),
        checked(weight, normalize),
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )


@consensus("della_linear")
def della_linear(
    weight: Weights,
    density: Density,
    epsilon: Epsilon,
    normalize: Normalize = False,
    rescale: RescaleDella = True,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """Sum of the deltas after dropping small elements more often than large ones.

    The probability of keeping rises with the rank of the magnitude in its row, from
    `density - epsilon` to `density + epsilon`.
    Source: Deep et al. 2024, arXiv 2406.11617.
    """
    return Consensus(
        DrawnByRank(density, epsilon),
        checked(weight, normalize),
        vote=False,
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )


@consensus("della")
def della(
    weight: Weights,
    density: Density,
    epsilon: Epsilon,
    normalize: Normalize = True,
    rescale: RescaleDella = True,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """As `della_linear`, merged by the sign consensus of `ties`."""
    return Consensus(
        DrawnByRank(density, epsilon),
        checked(weight, normalize),
        normalize=normalize,
        rescale=rescaling(rescale),
        scale=lambda_,
    )
