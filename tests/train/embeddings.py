"""Embeddings without a model: what tests of losses compute with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def columns(rows: int, count: int, dim: int = 6, seed: int = 0, spread: float = 1.0) -> list[Array]:
    """Columns of embeddings (rows, dim) that have something in common."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(rows, dim))
    return [common + spread * generator.normal(size=(rows, dim)) for _ in range(count)]


def tensors(arrays: Iterable[Array], gradient: bool = False) -> list[Tensor]:
    """The arrays in torch, float64."""
    return [torch.tensor(array, requires_grad=gradient) for array in arrays]


def features(columns: Iterable[Any]) -> list[dict[str, Tensor]]:
    """Columns as `Linear` below takes them."""
    return [{"input_ids": torch.as_tensor(column)} for column in columns]


class Linear(torch.nn.Module):
    """A model that embeds vectors by a matrix."""

    def __init__(self, dim: int = 6, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(start)

    def __getitem__(self, number: int) -> torch.nn.Module:
        return self

    def get_embedding_dimension(self) -> int:
        return len(self.weight)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": inputs["input_ids"] @ self.weight}
