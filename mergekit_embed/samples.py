"""Scores of tasks: what a model wins by them, and what one is when its texts are drawn anew.

A draw with replacement is how often it takes each text: counts (N,). Every metric here is a
function of the counts, so that thousands of draws are a few matrix operations, and two models are
compared on the same draws.

Source of the bootstrap: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]

Metric = Literal["mean", "spearman", "precision"]
"""The mean of texts' own scores; Spearman's rank correlation; average precision, the best of some
ways to compare."""

DRAWS = 2000
BLOCK = 2**22
"""Counts that are in memory at once."""

CLOSE = 1e-4
"""How far the metric of the kept scores may be from the task's score; files round to 1e-6."""


def borda(own: Mapping[str, float], rivals: Sequence[Mapping[str, float]]) -> float:
    """How many rivals a model is better than, summed over its tasks; a draw counts a half.

    Source: MMTEB (arXiv 2502.13595), section 3.
    """
    found = 0.0
    for task, score in own.items():
        for rival in rivals:
            found += 1.0 if score > rival[task] else 0.5 if score == rival[task] else 0.0
    return found


@dataclass(frozen=True)
class Samples:
    """What a task's score is made of, a column a text.

    Attributes:
        metric: what makes a score of it.
        columns: float64 (rows, N): of "mean" the scores; of "spearman" what was found, and what is
            right; of "precision" what is right (0 or 1), and what was found in every way.
    """

    metric: Metric
    columns: Doubles

    @property
    def size(self) -> int:
        """Number of texts."""
        return int(self.columns.shape[1])

    def score(self) -> float:
        """The score of all texts, each taken once."""
        return float(self.scores(np.ones((1, self.size), dtype=np.int64))[0])

    def scores(self, counts: Counts) -> Doubles:
        """The score of every draw (B,), from how often it takes each text (B, N)."""
        return _METRICS[self.metric](self.columns, counts)


def mean(columns: Doubles, counts: Counts) -> Doubles:
    """The mean of the first row, each text taken so often."""
    found: Doubles = (counts @ columns[0]) / counts.sum(axis=1)
    return found


def spearman(columns: Doubles, counts: Counts) -> Doubles:
    """Pearson's correlation of the ranks in the two rows, as `scipy.stats.spearmanr` has it."""
    left, right = (_ranks(row, counts) for row in columns[:2])
    total = counts.sum(axis=1, keepdims=True)
    left = left - (counts * left).sum(axis=1, keepdims=True) / total
    right = right - (counts * right).sum(axis=1, keepdims=True) / total
    shared = (counts * left * right).sum(axis=1)
    lengths = np.sqrt((counts * left**2).sum(axis=1) * (counts * right**2).sum(axis=1))
    found: Doubles = np.divide(shared, lengths, out=np.zeros_like(shared), where=lengths > 0)
    return found


def _ranks(values: Doubles, counts: Counts) -> Doubles:
    """Ranks (B, N) from 1 among the texts that a draw takes; equal values share the mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    together = np.add.reduceat(counts[:, order], starts, axis=1)
    before = np.cumsum(together, axis=1) - together
    ranks: Doubles = (before + (together + 1) / 2)[:, place]
    return ranks


def precision(columns: Doubles, counts: Counts) -> Doubles:
    """Average precision, sum of (R_k - R_k-1) P_k over thresholds, the highest of all rows."""
    right = columns[0]
    every = np.array([_precision(right, row, counts) for row in columns[1:]])
    found: Doubles = every.max(axis=0)
    return found


def _precision(right: Doubles, found: Doubles, counts: Counts) -> Doubles:
    _, place = np.unique(-found, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    taken = np.add.reduceat(counts[:, order], starts, axis=1)
    hits = np.add.reduceat((counts * right)[:, order], starts, axis=1)
    total = hits.sum(axis=1)
    seen = np.cumsum(taken, axis=1)
    share = np.divide(np.cumsum(hits, axis=1), seen, out=np.zeros(hits.shape), where=seen > 0)
    summed = (hits * share).sum(axis=1)
    result: Doubles = np.divide(summed, total, out=np.zeros_like(summed), where=total > 0)
    return result


_METRICS: Mapping[Metric, Callable[[Doubles, Counts], Doubles]] = {
    "mean": mean,
    "spearman": spearman,
    "precision": precision,
}


def drawn(samples: Mapping[str, Samples], seed: int, draws: int = DRAWS) -> Doubles:
    """The score of a task for every draw of its texts (B,), the mean over its parts.

    The same seed draws the same texts, whatever was found for them.

    Args:
        samples: of each part of the task: a split, a language.
        seed: of the draws.
        draws: their number, B.
    """
    random = np.random.default_rng(seed)
    found = np.zeros(draws)
    for _, part in sorted(samples.items()):
        for start in range(0, draws, step := max(1, BLOCK // part.size)):
            stop = min(start + step, draws)
            even = np.full(part.size, 1 / part.size)
            counts = random.multinomial(part.size, even, size=stop - start)
            found[start:stop] += part.scores(counts)
    return found / len(samples)


def save(path: Path, samples: Mapping[str, Samples]) -> None:
    """Write the samples of a task's parts."""
    arrays = {f"{one.metric}:{part}": one.columns for part, one in samples.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read(path: Path) -> dict[str, Samples]:
    """The samples of a task's parts; none where there is no such file, or none that is whole."""
    found: dict[str, Samples] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                metric, _, part = name.partition(":")
                if metric in _METRICS:
                    found[part] = Samples(metric, file[name])
    except (OSError, ValueError, EOFError, BadZipFile):
        return {}
    return found


def agree(samples: Mapping[str, Samples], score: float) -> bool:
    """Whether a task's score (of 1) is what the samples of its parts give."""
    if not samples:
        return False
    return abs(float(np.mean([part.score() for part in samples.values()])) - score) < CLOSE
