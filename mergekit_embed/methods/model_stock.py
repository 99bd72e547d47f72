"""Model Stock: as far from the base as the members' agreement justifies."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Coefficients, Gram, divide
from .notes import note
from .registry import Param, Unit, mixture

ROUNDING = 2.0**-50
"""What the rounding of cosines leaves of a denominator that is zero, for each delta."""


def _vectors(
    filter_wise: Annotated[bool, Param("one ratio for every row, not for every tensor")] = False,
) -> Unit | None:
    return "row" if filter_wise else None


@mixture("model_stock", base="origin", unit=_vectors)
def model_stock(gram: Gram) -> Coefficients:
    """Between the base and the members' mean, by the mean cosine of the deltas.

    `t = K cos / (1 + (K-1) cos)`, `c_k = t / K`. A pair with a zero delta counts as cosine 0. The
    ratio is scale-free: deltas of any size keep their share.
    Source: Jang et al. 2024, arXiv 2403.19522.
    """
    count = gram.count
    if count == 1:
        return np.ones(gram.matrix.shape[:-1])
    pairs = np.triu_indices(count, k=1)
    cosine = gram.cosines()[..., pairs[0], pairs[1]].mean(axis=-1)
    denominator = 1.0 + (count - 1) * cosine
    opposed = denominator <= ROUNDING * count
    if np.any(opposed):
        note("the deltas oppose each other so far that no ratio is defined; the base is kept")
    ratio = np.where(opposed, 0.0, divide(count * cosine, denominator))
    return np.repeat(ratio[..., None] / count, count, axis=-1)
