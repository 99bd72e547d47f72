"""GradCache for losses of a whole batch: memory for one mini-batch of activations at a time.

Source: Gao et al. 2021 (arXiv 2101.06983), through sentence-transformers' `CachedLossMixin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from torch import Tensor

from ...errors import UsageError


def check_mini_batches(model: SentenceTransformer, mini_batch_size: int) -> None:
    """Refuse what cannot be split.

    Raises:
        UsageError: when the size is below 1, or the model takes flat bags of tokens.
    """
    if mini_batch_size < 1:
        raise UsageError(f"mini_batch_size must be at least 1, not {mini_batch_size}")
    if has_static_embedding_input(model):
        raise UsageError(
            "mini_batch_size: a model of static embeddings takes flat inputs, which cannot be "
            "split; leave it out"
        )


class WholeBatch(CachedLossMixin):
    """For a loss with `compute_loss_from_embeddings`: put it before the loss among the bases."""

    compute_loss_from_embeddings: Callable[[list[Tensor], Tensor | None], Tensor]

    def __init__(
        self, model: SentenceTransformer, *arguments: Any, mini_batch_size: int = 32, **named: Any
    ):
        """As the loss; `mini_batch_size` is how many texts are embedded at a time.

        Raises:
            UsageError: when the model's inputs cannot be split so.
        """
        loss: Any = super()  # the next of the bases, whose arguments these are
        loss.__init__(model, *arguments, **named)
        check_mini_batches(model, mini_batch_size)
        self.mini_batch_size = mini_batch_size

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """As the loss; the gradients of the parameters are computed as it is sent back."""
        return self.forward_cached(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings in mini-batches, sent back to them when `with_backward`."""
        embeddings = [torch.cat(column) for column in reps]
        loss = self.compute_loss_from_embeddings(embeddings, labels)
        if with_backward:
            torch.autograd.backward(loss)
            loss = loss.detach()
        return loss
