"""Sums whose coefficients need no geometry: `linear`, `task_arithmetic`, `ema`, `passthrough`."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Array, Coefficients, Gram, normalised
from .registry import Param, Weights, mixture

Normalize = Annotated[bool, Param("divide the weights by their sum")]


@mixture("linear", base="files", geometry=False)
def linear(gram: Gram, weight: Weights, normalize: Normalize = True) -> Coefficients:
    """Weighted mean of the members: a model soup when the weights are equal.

    `c = w / sum w`, or `c = w` without `normalize`.
    Source: Wortsman et al. 2022, arXiv 2203.05482.
    """
    return normalised(weight) if normalize else weight


@mixture("task_arithmetic", base="origin", geometry=False)
def task_arithmetic(
    gram: Gram,
    weight: Weights,
    normalize: Normalize = False,
    lambda_: Annotated[float, Param("factor on the summed deltas", name="lambda")] = 1.0,
) -> Coefficients:
    """Base plus the weighted sum of the deltas.

    `c = lambda w`, with `w` divided by its sum under `normalize`.
    Source: Ilharco et al. 2023, arXiv 2212.04089.
    """
    return lambda_ * (normalised(weight) if normalize else weight)


@mixture("ema", base="files", geometry=False)
def ema(
    gram: Gram,
    decay: Annotated[
        float, Param("weight of a member over that of the next one", minimum=0.0, maximum=1.0)
    ] = 0.9,
) -> Coefficients:
    """Exponential moving average of checkpoints listed in training order, the last one newest.

    `c_k` proportional to `decay^(K-k)`, normalised.
    """
    return normalised(decay ** np.arange(gram.count - 1, -1, -1, dtype=np.float64))


@mixture("passthrough", base="files", exactly=1, geometry=False)
def passthrough(
    gram: Gram,
    scale: Annotated[Array, Param("factor on every weight", per_member=True, default=1.0)],
) -> Coefficients:
    """One member as it is, times `scale`."""
    return scale
