"""Hard negatives made of hard negatives.

Source: KaLM-Embedding-V2 (arXiv 2506.20923) says online mixing with Beta(2, 2). How is our reading,
after Kalantidis et al. 2020 (arXiv 2010.01028): two different negatives of the same row, between
them on the sphere, the gradient flowing to both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .numerics import unit


@dataclass(frozen=True)
class Draws:
    """Which negatives are mixed, and how much of the first: each (mixed, B); indices are int64."""

    first: Tensor
    second: Tensor
    share: Tensor


def draw(mixed: int, negatives: int, rows: int, like: Tensor) -> Draws:
    """Draw from torch's default generator of the device; `negatives` is 2 or more."""
    shape = (mixed, rows)
    first = torch.randint(negatives, shape, device=like.device)
    step = torch.randint(1, negatives, shape, device=like.device)
    # The middle one of three uniform numbers is distributed as Beta(2, 2).
    share = torch.rand((3, *shape), device=like.device, dtype=like.dtype).median(0).values
    return Draws(first, (first + step) % negatives, share)


def mix(negatives: Tensor, draws: Draws) -> Tensor:
    """unit(share n_first + (1 - share) n_second) for every draw: (K, B, d) -> (mixed, B, d).

    Args:
        negatives: the unit vectors of the hard negatives of every row.
        draws: what to mix.
    """
    rows = torch.arange(negatives.shape[1], device=negatives.device)
    share = draws.share[..., None]
    return unit(share * negatives[draws.first, rows] + (1 - share) * negatives[draws.second, rows])
