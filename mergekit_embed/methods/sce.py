"""SCE: select what varies, calculate weights from it, erase what disagrees."""

from __future__ import annotations

from typing import Annotated

from .consensus import Consensus, MostVaried
from .gram import Array
from .registry import Param, consensus
from .ties import Lambda, Normalize

Equal = Annotated[Array, Param("factor on the member's own weight", per_member=True, default=1.0)]


@consensus("sce")
def sce(
    weight: Equal,
    select_topk: Annotated[
        float,
        Param("share of the elements, those that vary most across members", minimum=0, maximum=1),
    ] = 1.0,
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> Consensus:
    """Sign consensus of the elements in which the members differ most.

    Each member weighs as its share of the selected deltas' squares, tensor by tensor. Scale-free:
    deltas of any size keep their shares.
    Source: Wan et al. 2024, arXiv 2408.07990.
    """
    return Consensus(
        MostVaried(select_topk), weight, normalize=normalize, scale=lambda_, by_squares=True
    )
