"""RAM: what one member alone changed is kept whole, what several changed is averaged."""

from __future__ import annotations

from typing import Annotated

from .consensus import Above, Consensus, ones
from .registry import Members, Param, consensus

Epsilon = Annotated[float, Param("an element this close to the base is unchanged", minimum=0.0)]


@consensus("ram")
def ram(members: Members, epsilon: Epsilon = 1e-5) -> Consensus:
    """The deltas' own elements, and the mean of those that members share.

    An element belongs to a member when its delta is above `epsilon`.
    """
    return Consensus(Above(epsilon), ones(members), vote=False, mean=True)


@consensus("ramplus_tl")
def ramplus_tl(
    members: Members,
    epsilon: Epsilon = 1e-5,
    r: Annotated[float, Param("how much own elements are enhanced", minimum=0.0)] = 0.1,
    alpha: Annotated[float, Param("where the enhancement ends", minimum=0.0)] = 0.2,
) -> Consensus:
    """As `ram`, with each member's own elements enhanced by how much it shares.

    Own elements count `1 + r min(rho, alpha)` times, `rho` the member's shared over its own
    elements in the tensor.
    """
    return Consensus(Above(epsilon), ones(members), vote=False, mean=True, lone=(r, alpha))
