"""Spherical interpolation of two members: `slerp` and `nuslerp`."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from .gram import Array, Coefficients, Gram, divide, normalised
from .registry import Param, PositiveWeights, Unit, mixture

NEARLY_PARALLEL = 0.9995
"""Above this cosine `slerp` is linear, as in mergekit."""

VANISHING_SINE = 1e-7
"""Below this sine an arc is taken as its chord: the vectors are parallel or opposite, as far as the
cosine, itself good to some 1e-16, can tell."""


@mixture("slerp", base="first member", exactly=2)
def slerp(
    gram: Gram,
    t: Annotated[
        float, Param("0 gives the base (or first) model, 1 the other", minimum=0.0, maximum=1.0)
    ],
) -> Coefficients:
    """Great-circle interpolation between two models; `base_model` is the one at t = 0.

    `c = (sin((1-t)a), sin(ta)) / sin a`, `a` the angle between them; linear when they are nearly
    parallel (absolute cosine above 0.9995). A zero vector counts as perpendicular to any other.
    Source: Shoemake 1985.
    """
    cosine = gram.cosines()[..., 0, 1]
    return along_arc(t, np.arccos(cosine), np.abs(cosine) > NEARLY_PARALLEL)


def _vectors(
    nuslerp_flatten: Annotated[bool, Param("take every tensor as one vector")] = True,
    nuslerp_row_wise: Annotated[
        bool, Param("without nuslerp_flatten: vectors along the first dimension, not the last")
    ] = False,
) -> Unit | None:
    if nuslerp_flatten:
        return None
    return "column" if nuslerp_row_wise else "row"


@mixture("nuslerp", base="optional origin", exactly=2, unit=_vectors)
def nuslerp(gram: Gram, weight: PositiveWeights) -> Coefficients:
    """Spherical interpolation of two models, or of their deltas, at `t = w2 / (w1 + w2)`.

    As `slerp`, but linear only when the sine of the angle vanishes.
    """
    angle = np.arccos(gram.cosines()[..., 0, 1])
    return along_arc(float(normalised(weight)[1]), angle, np.sin(angle) < VANISHING_SINE)


def along_arc(t: float, angle: Array, linear: NDArray[np.bool]) -> Coefficients:
    """Coefficients (..., 2) of the point at `t` of the arc; those of the chord where `linear`."""
    sine = np.sin(angle)
    first = np.where(linear, 1.0 - t, divide(np.sin((1.0 - t) * angle), sine))
    second = np.where(linear, t, divide(np.sin(t * angle), sine))
    return np.stack([first, second], axis=-1)
