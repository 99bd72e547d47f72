"""TIES: trim every delta, elect a sign for each element, and merge those that agree."""

from __future__ import annotations

from typing import Annotated

from .consensus import Consensus
from .gram import Array, normalised
from .registry import Param, Weights, consensus


@consensus("ties")
def ties(
    weight: Weights,
    density: Annotated[
        Array,
        Param(
            "share of the elements that the delta keeps, largest first",
            per_member=True,
            default=1.0,
            minimum=0.0,
            maximum=1.0,
        ),
    ],
    normalize: Annotated[bool, Param("divide by the weights of the members that agree")] = True,
    rescale: Annotated[
        bool, Param("multiply each trimmed delta by its L1 norm before over after")
    ] = False,
    lambda_: Annotated[float, Param("factor on the merged delta", name="lambda")] = 1.0,
) -> Consensus:
    """Sign consensus of the deltas' largest elements.

    Keeps the `floor(density n)` elements of largest magnitude (at least one, with all that tie with
    the last), takes the sign of their weighted sum (zero counts as +), and averages the kept
    elements that have it.
    Source: Yadav et al. 2023, arXiv 2306.01708.
    """
    if normalize:
        normalised(weight)  # refuses weights that cancel
    return Consensus(weight, density, normalize, rescale, lambda_)
