"""InfoNCE on cosines: one formula, in which a mask says what counts and a weight how much.

    L_i = -log ( e^(s_i+ / T) / ( e^(s_i+ / T) + sum over negatives c of w_ic e^(s_ic / T) ) )

with s the cosines and T the temperature. Source: van den Oord et al. 2018 (arXiv 1807.03748).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...errors import UsageError
from .candidates import NEGATIVES, Negatives, Places, beyond, counted
from .weighing import hardness_logits, log_focal


@dataclass(frozen=True)
class Contrast:
    """How anchors are told apart from other texts; the parameters of `info_nce` tell of each."""

    temperature: float = 0.02
    negatives: Negatives = "batch"
    false_negative_margin: float | None = None
    hardness: float = 0.0
    focal: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature must be above 0 and finite, not {self.temperature}")
        if self.negatives not in NEGATIVES:
            listed = ", ".join(NEGATIVES)
            raise UsageError(f"negatives must be one of {listed}, not {self.negatives!r}")
        if self.hardness < 0 or self.focal < 0:
            raise UsageError("hardness and focal must be 0 or more")


@dataclass(frozen=True)
class Batch:
    """Unit vectors that are compared.

    Attributes:
        anchors: of this process, (B, d).
        texts: of all rows, (P + K, N, d): P positives, then K hard negatives.
        positives: P.
        first: the row of the first anchor among the N.
        classes: the rows' classes, int64 (N,), where they matter.
    """

    anchors: Tensor
    texts: Tensor
    positives: int
    first: int = 0
    classes: Tensor | None = None

    def leaves(self) -> Batch:
        """The same numbers, cut off from what made them and collecting gradients of their own."""
        return replace(
            self,
            anchors=self.anchors.detach().requires_grad_(),
            texts=self.texts.detach().requires_grad_(),
        )

    def backward(self, leaves: Batch) -> None:
        """Send back the gradients that the leaves have collected."""
        torch.autograd.backward(
            [self.anchors, self.texts], [leaves.anchors.grad, leaves.texts.grad]
        )


def info_nce(
    cosine: Tensor, places: Places, contrast: Contrast, same_class: Tensor | None = None
) -> Tensor:
    """The loss of every anchor: (B,).

    Written with the log odds of the positive, log p - log (1 - p), which keep their precision when
    p is near 1, and are infinite when nothing counts as a negative.

    Args:
        cosine: of anchors with the positive and the K hard negatives of every row, (B, 1 + K, N).
        places: where the anchors' own rows are.
        contrast: what counts, and how much.
        same_class: whether row n is of the anchor's class, (B, N); for `negatives: class`.
    """
    positive = (cosine[:, 0] * places.own[:, 0]).sum(1)
    counts = counted(contrast.negatives, places, same_class)
    if contrast.false_negative_margin is not None:
        counts = counts & ~beyond(cosine, positive, contrast.false_negative_margin)
    logits = cosine / contrast.temperature
    if contrast.hardness:
        logits = logits + hardness_logits(cosine, places.own_negative, contrast.hardness)
    against = logits.masked_fill(~counts, -torch.inf).logsumexp((1, 2))
    margin = positive / contrast.temperature - against
    loss = -logsigmoid(margin)
    return loss * log_focal(margin, contrast.focal).exp() if contrast.focal else loss


def row_losses(batch: Batch, contrast: Contrast, rows: slice = slice(None)) -> Tensor:
    """The loss of these anchors, a mean over passes with one positive of every row each: (b,).

    The other positives of a row are in no denominator of that pass. Source: CoDiEmb (arXiv
    2508.11442), from the authors' code.
    """
    numbers = torch.arange(len(batch.anchors), device=batch.anchors.device)[rows] + batch.first
    cosine = torch.einsum("bd,knd->bkn", batch.anchors[rows], batch.texts)
    negatives = cosine[:, batch.positives :]
    places = Places.of(numbers, 1 + negatives.shape[1], cosine.shape[2])
    classes = batch.classes
    same = None if classes is None else classes[numbers][:, None] == classes
    passes = [
        info_nce(torch.cat((cosine[:, k : k + 1], negatives), 1), places, contrast, same)
        for k in range(batch.positives)
    ]
    return torch.stack(passes).mean(0)
