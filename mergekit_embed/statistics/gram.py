"""Gram matrices of what goes into the linear layers: `X^T X` over all tokens that are not padding.

Source: Jin et al. 2023, arXiv 2212.09849, whose released code divides by the number of tokens and
counts padding; here it is the paper's sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..checkpoint import Shape
from ..errors import NonFiniteError
from ..rows import Role, Row, texts_of
from .embedder import Embedder
from .progress import Progress

Doubles = NDArray[np.float64]


class GramSums:
    """Sums of `X^T X` of every linear layer, in files.

    A sum takes 8 bytes for each pair of a layer's inputs, which for a whole model is more than the
    model itself: they are kept in files that are mapped, so that the system may write them out.
    """

    def __init__(self, embedder: Embedder, folder: Path):
        self.embedder, self.folder = embedder, folder
        self.sums: dict[str, np.memmap[Any, np.dtype[np.float64]]] = {}
        self.transposed: set[str] = set()
        self.shapes: dict[str, Shape] = {}
        self.tokens = self.texts = 0
        self.layers = dict(self._layers())
        self._mask: Tensor | None = None
        self._latest: tuple[Tensor, Doubles] | None = None

    def _layers(self) -> Iterator[tuple[nn.Module, str]]:
        """Every linear layer whose weight the model's folder holds, and the weight's name there.

        By the weight itself: one that several layers share has one name, and one sum.
        """
        names = {id(parameter): key for key, parameter in self.embedder.parameters()}
        for module in self.embedder.model.modules():
            is_linear, is_transposed = isinstance(module, nn.Linear), isinstance(module, Conv1D)
            if (is_linear or is_transposed) and id(module.weight) in names:
                key = names[id(module.weight)]
                self.transposed |= {key} if is_transposed else set()
                yield module, key

    def taken(self, name: str) -> Doubles:
        """A sum, which is then no longer kept."""
        self._file(name).unlink()
        return self.sums.pop(name)

    def _file(self, name: str) -> Path:
        return self.folder / str(list(self.shapes).index(name))

    @property
    def unused(self) -> list[str]:
        """Weights of layers that no text went through."""
        return sorted(set(self.layers.values()) - self.shapes.keys())

    def measure(self, rows: Sequence[Row], batch_size: int, progress: Progress) -> None:
        """Run every text of the rows through the model.

        Raises:
            NonFiniteError: when what goes into a layer is not finite.
        """
        batches = _batches(rows, batch_size)
        progress.start("Gram matrices", sum(len(texts) for _, texts in batches))
        with self._hooks(), torch.no_grad():
            for role, texts in batches:
                features = self.embedder.features(role, texts)
                self._mask = features["attention_mask"].bool()
                self.tokens += int(self._mask.sum())
                self.texts += len(texts)
                self.embedder.model(features)
                self._latest = None
                progress.advance(len(texts))
        for name, total in self.sums.items():
            if not np.isfinite(np.diagonal(total)).all():
                raise NonFiniteError(
                    f"{self.embedder.checkpoint.label}: what goes into {name} is not finite in "
                    "float32. Repair the model, or measure on other texts"
                )

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(self._add, with_kwargs=True) for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self._latest is None or self._latest[0] is not inputs:
            # Queries, keys and values are made of the same input: one product serves all three.
            self._latest = inputs, self._product(inputs)
        name = self.layers[layer]
        product = self._latest[1]
        if name not in self.sums:
            self.shapes[name] = product.shape
            self.sums[name] = np.memmap(self._file(name), np.float64, "w+", shape=product.shape)
        self.sums[name] += product

    def _product(self, inputs: Tensor) -> Doubles:
        """`X^T X` in float32, rows of padding left out where the input has one for each token."""
        mask = self._mask
        if mask is not None and inputs.shape[:-1] == mask.shape:
            inputs = inputs[mask]
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        product: Doubles = (rows.T @ rows).cpu().numpy().astype(np.float64)
        return product


def _batches(rows: Sequence[Row], batch_size: int) -> list[tuple[Role, list[str]]]:
    """All texts, those of a role together, long ones first.

    So there is little padding, and what takes the most memory comes first.
    """
    by_role: dict[Role, list[str]] = {}
    for row in rows:
        for role, text in texts_of(row):
            by_role.setdefault(role, []).append(text)
    batches: list[tuple[Role, list[str]]] = []
    for role, texts in by_role.items():
        texts.sort(key=len, reverse=True)
        batches += [(role, texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    return batches
