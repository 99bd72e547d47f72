"""Self-Positioning: a point reached along arcs from task vector to task vector."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from .gram import Array, Coefficients, Gram, divide
from .registry import Param, mixture
from .slerp import VANISHING_SINE, along_arc

Scalars = Annotated[
    Array,
    Param("the member's scalar `a_k`, found on a probe set", per_member=True, default=1.0, above=0),
]


@mixture("self_positioning", base="origin", granularity="model")
def self_positioning(
    gram: Gram,
    weight: Scalars,
    lambda_: Annotated[float, Param("factor on the combined task vector", name="lambda")] = 1.0,
) -> Coefficients:
    """Base plus the task vectors joined one after the other by slerp, at coefficients found before.

    `V_(1..n) = slerp(V_(1..n-1), V_n; t)` with `t = a_n / (mean(a_1 .. a_(n-1)) + a_n)`, from
    `V_(1) = V_1` on, and `lambda V_(1..K)` is added to the base. The order of the members counts.
    That much follows arXiv 2410.15035. Our reading is which slerp it is: of the vectors as they
    are, so that lengths are interpolated with the directions (`along_arc`); linear where the sine
    of the angle vanishes; a vector of length zero, or one that cancelled, is perpendicular.
    """
    members = np.eye(gram.count)
    point = np.broadcast_to(members[0], gram.matrix.shape[:-1])
    for index in range(1, gram.count):
        t = float(weight[index] / (weight[:index].mean() + weight[index]))
        angle = _angle(gram, point, members[index])
        arc = along_arc(t, angle, np.sin(angle) < VANISHING_SINE)
        point = arc[..., :1] * point + arc[..., 1:] * members[index]
    return lambda_ * point


def _angle(gram: Gram, left: Coefficients, right: Coefficients) -> Array:
    """The angle (...) between two vectors; a right angle when one of them is zero."""
    cosine = divide(gram.inner(left, right), gram.clear_length_of(left))
    return np.arccos(np.clip(divide(cosine, gram.clear_length_of(right)), -1.0, 1.0))
