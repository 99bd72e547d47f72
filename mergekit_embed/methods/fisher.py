"""Fisher merging: what a member's loss depends on most weighs most."""

from __future__ import annotations

from typing import Annotated

from .consensus import FisherMean
from .gram import normalised
from .registry import Param, PositiveWeights, consensus


@consensus("fisher", base="files", statistics="fisher")
def fisher(
    weight: PositiveWeights,
    normalize_fisher: Annotated[
        bool, Param("divide each member's Fisher by its L2 norm over the model")
    ] = True,
    floor: Annotated[
        float,
        Param(
            "share of its norm that a Fisher counts at least; what is less is rounding",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = 1e-12,
) -> FisherMean:
    """Mean of the members, each element weighing as the member's diagonal Fisher.

    `sum w_k F_k x_k / sum w_k F_k`; where no member has a Fisher above the floor, the weighted
    mean. Source: Matena and Raffel 2022, arXiv 2111.09832, whose released code divides by the norm.
    """
    normalised(weight)  # weights that are all zero have no mean
    return FisherMean(weight, normalize_fisher, floor)
