"""The module around `contrast`: columns of a data set in, InfoNCE out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn

from ...errors import UsageError
from . import mixing
from .cached import WholeBatch
from .citations import BIBTEX, Paper
from .contrast import Batch, Contrast, row_losses
from .devices import first_row, gather
from .numerics import exact, unit, wide


class InfoNCELoss(nn.Module):
    """InfoNCE of rows (anchor, positive_1 .. positive_P, negative_1 .. negative_K)."""

    def __init__(
        self,
        model: SentenceTransformer,
        contrast: Contrast | None = None,
        positives: int = 1,
        mixed: int = 0,
        across_devices: bool = True,
    ):
        """Set up the loss.

        Args:
            model: what embeds the columns.
            contrast: what counts as a negative, and how much.
            positives: how many columns after the first are positives.
            mixed: how many negatives to mix of each row's own ones.
            across_devices: whether texts of other processes are candidates too.

        Raises:
            UsageError: when a number is out of range.
        """
        super().__init__()
        if positives < 1 or mixed < 0:
            raise UsageError(f"a row needs a positive, not {positives}; mixed must be 0 or more")
        self.model = model
        self.contrast = contrast or Contrast()
        self.positives = positives
        self.mixed = mixed
        self.across_devices = across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The mean over this process's rows; `labels` are the rows' classes, where they matter."""
        return self.compute_loss_from_embeddings(
            embed_columns(self.model, sentence_features), labels
        )

    @exact
    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> Tensor:
        """The mean over this process's rows, from one (B, d) tensor a column."""
        return row_losses(self.batch(embeddings, labels), self.contrast).mean()

    def batch(self, embeddings: list[Tensor], labels: Tensor | None) -> Batch:
        """What is compared: mixed, gathered and normalised.

        Raises:
            UsageError: when columns or classes are missing.
        """
        if len(embeddings) < 1 + self.positives:
            raise UsageError(
                f"info_nce got {len(embeddings)} columns; it takes an anchor, {self.positives} "
                "positive(s), and any number of negatives, in this order"
            )
        anchors, *columns = (unit(wide(column)) for column in embeddings)
        texts = torch.stack(columns)
        if self.mixed:
            texts = torch.cat((texts, self._mixtures(texts[self.positives :])))
        classes = self._classes(labels, len(anchors))
        # A row that sees only its own texts needs nobody else's.
        if not self.across_devices or self.contrast.negatives == "own":
            return Batch(anchors, texts, self.positives, classes=classes)
        return Batch(
            anchors,
            gather(texts.transpose(0, 1)).transpose(0, 1),
            self.positives,
            first_row(len(anchors)),
            None if classes is None else gather(classes),
        )

    def _mixtures(self, negatives: Tensor) -> Tensor:
        if len(negatives) < 2:
            raise UsageError(
                f"mixed: {self.mixed} needs two negatives a row or more, not {len(negatives)}"
            )
        draws = mixing.draw(self.mixed, len(negatives), negatives.shape[1], negatives)
        return mixing.mix(negatives, draws)

    def _classes(self, labels: Tensor | None, rows: int) -> Tensor | None:
        if self.contrast.negatives != "class":
            return None
        if labels is None or labels.shape != (rows,) or labels.is_floating_point():
            raise UsageError("negatives: class needs a column of labels: a whole number a row")
        return labels

    def get_config_dict(self) -> dict[str, Any]:
        """The parameters, for the model card."""
        return {
            **asdict(self.contrast),
            "positives": self.positives,
            "mixed": self.mixed,
            "across_devices": self.across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX of what it is made of."""
        used: dict[Paper, bool] = {
            "info_nce": True,
            "codiemb": self.positives > 1,
            "qwen3": self.contrast.false_negative_margin is not None,
            "embeddinggemma": self.contrast.hardness > 0,
            "kalm": self.contrast.focal > 0 or self.mixed > 0,
        }
        return "\n".join(BIBTEX[paper] for paper, is_used in used.items() if is_used)


class CachedInfoNCELoss(WholeBatch, InfoNCELoss):
    """The same by GradCache: one mini-batch of activations, and of cosines, in memory at a time."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings in mini-batches, sent back to them when `with_backward`."""
        if not with_backward:
            return super().calculate_loss(reps, labels)
        return self._sent_back([torch.cat(column) for column in reps], labels)

    @exact
    def _sent_back(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        batch = self.batch(embeddings, labels)
        leaves = batch.leaves()
        rows = len(batch.anchors)
        total = batch.anchors.new_zeros(())
        for begin in range(0, rows, self.mini_batch_size):
            chunk = slice(begin, begin + self.mini_batch_size)
            loss = row_losses(leaves, self.contrast, chunk).sum() / rows
            torch.autograd.backward(loss)
            total += loss.detach()
        batch.backward(leaves)
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """The parameters, for the model card."""
        return {**super().get_config_dict(), "mini_batch_size": self.mini_batch_size}
