"""What a consensus method asks of the kernels: an elementwise decision, after a reduction."""

from __future__ import annotations

from dataclasses import dataclass

from .gram import Array


@dataclass(frozen=True)
class Consensus:
    """Keep some elements of every delta, and combine what is kept.

    Attributes:
        weight: float64 (K,), the members' weights.
        density: float64 (K,) in [0, 1]: the share of the elements, largest magnitudes first, that
            each delta keeps; at least one element, and all that tie with the last kept.
        normalize: divide by the weights of the members that agree.
        rescale: multiply each kept delta by its L1 norm before over after.
        scale: factor on the combined delta (`lambda` in recipes).
    """

    weight: Array
    density: Array
    normalize: bool
    rescale: bool
    scale: float
