"""Losses of cosines x against scores of similarity y, each (N,): Pearson, RankKL and PRO.

Source: CoDiEmb (arXiv 2508.11442), from the authors' code. Nothing can be learned about an order
from scores that are all the same: each is then 0, with no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from .numerics import unit

ROUNDING = 8
"""How many units in the last place of 1 may separate cosines that are in truth the same."""


def pearson_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - Pearson(x, y); 1 without a gradient when x does not vary.

    Any scale of y gives the same.
    """
    centred = x - x.mean()
    flat = x.max() - x.min() <= ROUNDING * torch.finfo(x.dtype).eps
    # Normalised rounding errors would be noise of length 1, with gradients of a million.
    direction = unit(centred.masked_fill(flat, 0))
    correlation = (direction * unit(y - y.mean())).sum()
    return (1 - correlation) * _varied(y)


def rank_kl_loss(x: Tensor, y: Tensor, temperature: float = 0.05) -> Tensor:
    """KL(softmax(g / T) || softmax(x / T)) with g = (N - 1 - r) / (N - 1).

    r is the rank of y from 0 for the largest; equal scores share the mean of their ranks. So only
    the order of y counts.
    """
    above = (y > y[:, None]).sum(1)
    equal = (y == y[:, None]).sum(1)
    rank = above + (equal - 1) / 2
    last = max(len(y) - 1, 1)
    wanted = log_softmax((last - rank.to(x.dtype)) / last / temperature, dim=0)
    given = log_softmax(x / temperature, dim=0)
    return kl_div(given, wanted, log_target=True, reduction="sum") * _varied(y)


def pro_loss(x: Tensor, y: Tensor, temperature: float = 0.05) -> Tensor:
    """Preference ranking: each pair against all that should be less similar.

    The mean over k, where T_k = {i: y_k > y_i} is not empty, of

        -log ( e^(c_k z_k) / ( e^(c_k z_k) + sum over i in T_k of e^(c_i z_i) ) )

    with z = x / T, c_i = y_k - y_i and c_k = max c_i. The differences of y multiply the logits, so
    the scale of y counts: scores from 0 to 5 make a sharper loss than the same from 0 to 1.
    """
    z = x / temperature
    difference = y[:, None] - y
    lower = difference > 0
    most = difference.amax(1)
    logits = (difference * z).masked_fill(~lower, -torch.inf)
    everything = torch.logaddexp(most * z, logits.logsumexp(1))
    ranked = lower.any(1)
    losses = (everything - most * z) * ranked
    return losses.sum() / ranked.sum().clamp(min=1)


def _varied(y: Tensor) -> Tensor:
    """1 when the scores are not all the same, else 0."""
    return (y.max() > y.min()).to(y.dtype)
