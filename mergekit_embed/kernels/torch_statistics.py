"""Means that weigh by statistics, in PyTorch: by the Fisher of elements, and by regression."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import Doubles, FisherWeights

FLOAT32 = 2.0**-24
"""The relative error of a stored statistic."""


def mean_of(values: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """`sum s_k x_k` for shares that sum to 1; what all have in common comes back to the bit."""
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total += value * share
    same = torch.ones_like(total, dtype=torch.bool)
    for value in values[1:]:
        same &= value.view(torch.int64) == values[0].view(torch.int64)
    return torch.where(same, values[0], total)


def shares_by_weight(weight: Doubles, like: Tensor) -> list[Tensor]:
    """`w_k / sum w` for every element: the same numbers that `linear` multiplies with."""
    return [torch.full_like(like, float(share)) for share in weight / weight.sum()]


def fisher_mean(
    values: Sequence[Tensor], fishers: Sequence[Tensor], weights: FisherWeights
) -> Tensor:
    """See `Kernels.fisher_mean`: float64 (n,), from float64 (n,)."""
    low = torch.ones_like(values[0], dtype=torch.bool)
    total = torch.zeros_like(values[0])
    pulls = []
    for fisher, weight, norm in zip(fishers, weights.weight, weights.norms, strict=True):
        divisor = torch.full_like(fisher, float(norm))  # a tensor: see `TorchKernels.centre`
        relative = fisher / divisor
        low &= relative <= weights.floor
        pull = relative.clamp(min=weights.floor) * float(weight)
        if not weights.normalize:
            pull *= divisor
        total += pull
        pulls.append(pull)
    low |= total == 0
    plain = shares_by_weight(weights.weight, total)
    shares = [
        torch.where(low, share, pull / total) for share, pull in zip(plain, pulls, strict=True)
    ]
    return mean_of(values, shares)


class Solved(NamedTuple):
    """The matrices of a regression.

    Attributes:
        weighted: `w_k G_k` of every member, float64 (n, n) each.
        inverse: of their sum S with rows and columns divided by `scale`, (n, n).
        scale: square roots of the diagonal of S, (n,); 0 for inputs that are always 0.
        weight: float64 (K,).
    """

    weighted: tuple[Tensor, ...]
    inverse: Tensor
    scale: Tensor
    weight: Doubles


def solve(grams: Iterable[Tensor], weight: Doubles, alpha: float) -> Solved:
    """See `Kernels.regressor`: from float64 (n, n).

    Divided by its diagonal, S has eigenvalues of at least 1 - alpha, and a Cholesky factor. With
    alpha next to 1 it may have none, where there were fewer tokens than inputs: then directions
    that the tokens do not reach, to float32, are left alone.
    """
    weighted = []
    for gram, share in zip(grams, weight, strict=True):
        # Symmetric to the bit, which products of float32 need not be.
        scaled = gram + gram.T
        scaled *= 0.5 * alpha
        scaled.diagonal().copy_(gram.diagonal())
        scaled *= float(share)
        weighted.append(scaled)
    total = torch.zeros_like(weighted[0])
    for one in weighted:
        total += one
    diagonal = total.diagonal().clone()
    if bool((diagonal < 0).any()):
        raise ValueError("has negative numbers on its diagonal")
    scale = diagonal.sqrt()
    inverted = torch.where(scale > 0, 1.0 / scale, 0.0)
    total *= inverted[:, None]
    total *= inverted
    total.diagonal().copy_(torch.ones_like(scale))
    return Solved(tuple(weighted), _inverse(total, alpha), scale, weight)


def _inverse(matrix: Tensor, alpha: float) -> Tensor:
    """Of a matrix with ones on its diagonal, or of the part of it that can be told from zero."""
    noise = len(matrix) * FLOAT32
    if 1.0 - alpha > 4.0 * noise:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise ValueError("is not positive semidefinite")
        inverse: Tensor = torch.cholesky_inverse(factor)
        return inverse
    values, vectors = torch.linalg.eigh(matrix)
    if bool(values[0] < -4.0 * noise * values[-1]):
        raise ValueError("is not positive semidefinite")
    reached = values > noise * values[-1]
    kept = vectors[:, reached]
    pseudo: Tensor = (kept / values[reached]) @ kept.T
    return pseudo


def regress(matrices: Sequence[Tensor], solved: Solved) -> Tensor:
    """See `Kernels.regress`: float64 (rows, n), from float64 (rows, n)."""
    mean = mean_of(matrices, shares_by_weight(solved.weight, matrices[0]))
    pull = torch.zeros_like(mean)
    for matrix, gram in zip(matrices, solved.weighted, strict=True):
        pull += (matrix - mean) @ gram
    inverted = torch.where(solved.scale > 0, 1.0 / solved.scale, 0.0)
    change = ((pull * inverted) @ solved.inverse) * inverted
    return torch.where(change == 0, mean, mean + change)  # a zero keeps its sign
