"""The diagonal of the empirical Fisher matrix: squared gradients of a loss, averaged.

Source: Matena and Raffel 2022, arXiv 2111.09832, who average over single examples. The losses of
embedding models compare the examples of a batch with each other, so that an example has no gradient
of its own: here the unit is the batch, and the Fisher of a parameter is

    F_i = sum_b n_b (dL_b / dx_i)^2 / sum_b n_b

over batches b of n_b examples, with L_b the batch's loss as it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from ..errors import DataError, NonFiniteError, Problem
from ..rows import SHAPES, Ranked, Row, Scored
from .embedder import Embedder, Features
from .progress import Progress

Batch = Sequence[Ranked] | Sequence[Scored]


@dataclass
class FisherSums:
    """Squared gradients of every parameter, float32, where the model is.

    Attributes:
        sums: by the folder's name, of the parameters that the losses depend on.
        examples: how many rows had a part; `batches`: in how many batches.
        left_out: rows without a loss: plain texts, and a last row that is alone in its batch.
    """

    embedder: Embedder
    temperature: float
    sums: dict[str, Tensor]
    examples: int = 0
    batches: int = 0
    left_out: int = 0

    @property
    def unused(self) -> list[str]:
        """Parameters that no loss depends on."""
        return sorted({key for key, _ in self.embedder.parameters()} - self.sums.keys())

    @property
    def norm(self) -> float:
        """L2 norm over all parameters, in float64."""
        squares = (float(total.double().square().sum()) for total in self.sums.values())
        return math.sqrt(math.fsum(squares))

    def measure(self, rows: Sequence[Row], batch_size: int, progress: Progress) -> None:
        """Add the squared gradients of every batch, and divide by the number of examples.

        Raises:
            DataError: when no rows have a loss.
            NonFiniteError: when a gradient is not finite.
        """
        batches = _batches(rows, batch_size)
        used = sum(len(batch) for batch in batches)
        self.left_out = len(rows) - used
        if not used:
            problem = f"no rows have a loss to take gradients of; {LOSSES}. A row is {SHAPES}"
            raise DataError([Problem("", problem)])
        progress.start("Fisher", used)
        for batch in batches:
            self._add(batch)
            progress.advance(len(batch))
        for total in self.sums.values():
            total /= self.examples
        self._check()

    def _add(self, batch: Batch) -> None:
        model = self.embedder.model
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            torch.autograd.backward(self._loss(batch))
        for key, parameter in self.embedder.parameters():
            if parameter.grad is None:
                continue
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(parameter.grad)
            self.sums[key] += len(batch) * parameter.grad.square()
        model.zero_grad(set_to_none=True)
        self.examples += len(batch)
        self.batches += 1

    def _loss(self, batch: Batch) -> Tensor:
        model, scale = self.embedder.model, 1.0 / self.temperature
        first = batch[0]
        features: list[Features]
        loss: Tensor
        if isinstance(first, Ranked):
            ranked = [row for row in batch if isinstance(row, Ranked)]
            features = [self.embedder.features("query", [row.query for row in ranked])]
            columns = zip(*((row.positives[0], *row.negatives) for row in ranked), strict=True)
            features += [self.embedder.features("document", column) for column in columns]
            labels = torch.arange(len(batch), device=model.device)
            loss = MultipleNegativesRankingLoss(model, scale=scale)(features, labels)
        else:
            scored = [row for row in batch if isinstance(row, Scored)]
            features = [
                self.embedder.features("text", [row.left for row in scored]),
                self.embedder.features("text", [row.right for row in scored]),
            ]
            labels = torch.tensor([row.score for row in scored], device=model.device)
            loss = CoSENTLoss(model, scale=scale)(features, labels)
        return loss

    def _check(self) -> None:
        label = self.embedder.checkpoint.label
        for name, total in self.sums.items():
            if not bool(total.isfinite().all()):
                raise NonFiniteError(
                    f"{label}: the gradient of {name} is not finite in float32. Repair the model, "
                    "or measure on other rows"
                )
        if not self.norm:
            told = f"every gradient of {label} is zero on these rows; {LOSSES}"
            raise DataError([Problem("", told)])


LOSSES = (
    "a query needs negatives or other queries in its batch, a scored pair others with another score"
)


def _batches(rows: Sequence[Row], batch_size: int) -> list[Batch]:
    """Rows of one kind, and of one number of negatives, in their order.

    A row whose batch has nothing to compare it with has no gradient, and is left out.
    """
    ranked: dict[int, list[Ranked]] = {}
    scored: list[Scored] = []
    for row in rows:
        if isinstance(row, Ranked):
            ranked.setdefault(len(row.negatives), []).append(row)
        elif isinstance(row, Scored):
            scored.append(row)
    batches: list[Batch] = []
    groups: list[tuple[int, Batch]] = [(1 + count, group) for count, group in ranked.items()]
    for documents, group in [*groups, (1, scored)]:
        cut = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        batches += [batch for batch in cut if documents * len(batch) > 1]
    return batches
