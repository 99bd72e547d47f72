"""What embeddings tell of a model without labels. Pure NumPy, in float64.

Vectors are rows of (N, D). Where a formula is for unit vectors, it takes any and scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Vectors = NDArray[Any]

DEAD = 1e-3
"""A dimension is dead when it varies less than this part of the median one."""

ALIKE = 0.999
"""Two dimensions are duplicates from this correlation on, whatever its sign."""

BUCKETS = 4
"""Groups of texts of like length, each as large as the others."""


def unit(vectors: Vectors) -> Doubles:
    """Rows scaled to length 1; a row of zeros stays one."""
    found = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    scaled: Doubles = found / np.where(lengths > 0, lengths, 1)
    return scaled


def centred(vectors: Vectors) -> Doubles:
    """Rows less their mean."""
    found = np.asarray(vectors, dtype=np.float64)
    result: Doubles = found - found.mean(axis=0)
    return result


def effective_rank(vectors: Vectors) -> float:
    """exp(-sum p log p), p the singular values of the centred rows over their sum; 0 of a point.

    Source: Roy and Vetterli 2007, "The effective rank"; of embeddings RankMe (arXiv 2210.02885).
    """
    values = np.linalg.svd(centred(vectors), compute_uv=False)
    if not values.size or values[0] <= np.finfo(np.float64).eps * len(vectors):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def isotropy(vectors: Vectors) -> float:
    """Min Z(c) / max Z(c), Z(c) = sum exp(c . x) over unit rows, c the eigenvectors of X'X; 0..1.

    Source: Mu and Viswanath 2018 (arXiv 1702.01417), equation 7. Of both directions of every
    eigenvector, as its sign is no property of the vectors.
    """
    rows = unit(vectors)
    _, directions = np.linalg.eigh(rows.T @ rows)
    inner = rows @ np.hstack([directions, -directions])
    sums = np.exp(inner).sum(axis=0)
    return float(sums.min() / sums.max())


def mean_cosine(vectors: Vectors) -> float:
    """The mean cosine of two different rows: near 0 where they look in all directions.

    Source: Ethayarajh 2019 (arXiv 1909.00512). |sum of unit rows|^2 = N + the sum over all pairs.
    """
    rows = unit(vectors)
    count = len(rows)
    total = float(np.sum(rows.sum(axis=0) ** 2) - np.sum(rows**2))
    return total / (count * (count - 1))


def uniformity(vectors: Vectors, t: float = 2.0) -> float:
    """Log of the mean of exp(-t |x - y|^2) over pairs of unit rows; lower is more even.

    Source: Wang and Isola 2020 (arXiv 2005.10242), equation 3.
    """
    rows = unit(vectors)
    squares = np.clip(2 - 2 * (rows @ rows.T), 0, None)[np.triu_indices(len(rows), 1)]
    return float(np.log(np.exp(-t * squares).mean()))


def alignment(left: Vectors, right: Vectors, alpha: float = 2.0) -> float:
    """The mean of |x - y|^alpha over pairs (N, D) that belong together, unit rows; lower is nearer.

    Source: Wang and Isola 2020 (arXiv 2005.10242), equation 2.
    """
    distances = np.linalg.norm(unit(left) - unit(right), axis=1)
    return float((distances**alpha).mean())


def length_buckets(vectors: Vectors, lengths: Sequence[int]) -> tuple[float, ...]:
    """The mean cosine among texts of like length, from the shortest quarter to the longest.

    Long texts that are more alike than short ones are length collapse: arXiv 2410.24200.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    parts = [part for part in np.array_split(order, BUCKETS) if len(part) > 1]
    return tuple(mean_cosine(np.asarray(vectors)[part]) for part in parts)


def dead_dimensions(vectors: Vectors) -> int:
    """How many dimensions hardly vary; see `DEAD`."""
    spread = np.asarray(vectors, dtype=np.float64).std(axis=0)
    return int((spread <= DEAD * np.median(spread)).sum())


def duplicated_dimensions(vectors: Vectors) -> int:
    """How many dimensions say what one before them says; see `ALIKE`. Dead ones do not count."""
    rows = centred(vectors)
    spread = np.asarray(vectors, dtype=np.float64).std(axis=0)
    rows = rows[:, spread > DEAD * np.median(spread)]
    rows = rows / np.linalg.norm(rows, axis=0)
    return int((np.triu(np.abs(rows.T @ rows), 1) >= ALIKE).any(axis=0).sum())


def cka(left: Vectors, right: Vectors) -> float:
    """|Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms, centred (N, D) and (N, E) of the same texts; 0..1.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), linear CKA.
    """
    one, other = centred(left), centred(right)
    shared = np.linalg.norm(other.T @ one) ** 2
    alone = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    return float(shared / alone) if alone > 0 else 0.0


def rank_sum(layers: Sequence[Vectors]) -> float:
    """The effective ranks of what every layer gives for the same texts, summed over depth.

    A merge whose layers have lost directions has a lower sum than its parents, before any score
    shows it. The sum is our own summary of `effective_rank`.
    """
    return float(sum(effective_rank(layer) for layer in layers))
