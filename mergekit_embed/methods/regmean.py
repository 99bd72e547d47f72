"""RegMean: linear layers merged by regression on what goes into them."""

from __future__ import annotations

from typing import Annotated

from .consensus import Regression
from .gram import normalised
from .registry import Param, PositiveWeights, consensus


@consensus("regmean", base="files", statistics="gram")
def regmean(
    weight: PositiveWeights,
    alpha: Annotated[
        float,
        Param("factor on the Gram matrices' off-diagonal entries", minimum=0.0, maximum=1.0),
    ] = 0.9,
) -> Regression:
    """Each linear layer nearest to all members' in its outputs; the weighted mean of all else.

    `(sum w_k W_k G_k) (sum w_k G_k)^-1`, with `G_k` the Gram matrix of the layer's inputs in member
    k, its off-diagonal entries times `alpha`. Source: Jin et al. 2023, arXiv 2212.09849.
    """
    normalised(weight)  # weights that are all zero have no mean
    return Regression(weight, alpha)
