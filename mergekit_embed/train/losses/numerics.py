"""Directions and cosines in float32 at least, without NaN."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

Loss = TypeVar("Loss")
OfEmbeddings = Callable[[Loss, list[Tensor], Tensor | None], Tensor]


def wide(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are that already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., d) over their lengths. A zero vector stays zero, and gets no gradient."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths == 0, torch.inf)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of every row of one with the same row of the other: (n, d), (n, d) -> (n,)."""
    return (unit(wide(first)) * unit(wide(second))).sum(-1)


def exact(method: OfEmbeddings[Loss]) -> OfEmbeddings[Loss]:
    """Keep a method out of mixed precision.

    Under autocast a product of float32 matrices is computed in bf16, and an error of 2^-9 in a
    cosine is one of 0.1 in a logit at temperature 0.02.
    """

    @wraps(method)
    def without_autocast(self: Loss, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        with torch.autocast(embeddings[0].device.type, enabled=False):
            return method(self, embeddings, labels)

    return without_autocast
