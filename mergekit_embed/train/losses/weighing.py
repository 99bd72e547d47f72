"""What counts more: hard negatives within a row, hard rows within a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def hardness_logits(cosine: Tensor, weighted: Tensor, strength: float) -> Tensor:
    """The logarithm of the weights exp(strength cos) of hard negatives, else 0: (B, 1 + K, N).

    Added to a logit it multiplies the candidate's term in the denominator. The weight is a constant
    to the gradient. Source: EmbeddingGemma (arXiv 2509.20354), with a strength of 5.

    Args:
        cosine: of anchors and candidates, (B, 1 + K, N).
        weighted: which candidates are weighed, bool, broadcast to the same shape.
        strength: 0 weighs all alike.
    """
    return strength * cosine.detach() * weighted


def log_focal(margin: Tensor, gamma: float) -> Tensor:
    """The logarithm of the focal weight (1 - p)^gamma of every row: (B,).

    p is the softmax probability of the positive. The gradient flows through the weight, as in
    Lin et al. 2017 (arXiv 1708.02002). Source: KaLM-Embedding-V2 (arXiv 2506.20923), gamma 0.5.

    Args:
        margin: log p - log (1 - p), (B,); infinite where there are no negatives.
        gamma: 0 weighs all rows alike.
    """
    return gamma * torch.nn.functional.logsigmoid(-margin)
