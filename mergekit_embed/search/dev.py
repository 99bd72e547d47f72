"""Dev tasks: what a model is worth on data that is kept apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .specs import Doubles, Evaluation

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RESAMPLED = 10_000
"""Draws of a bootstrap."""

Scores = Mapping[str, float]
"""What a model reaches in every task; more is better."""


class DevTasks:
    """Local tasks, each measured by its own metric."""

    BATCH = 32
    """Texts that are embedded at once."""

    def __init__(self, folders: Sequence[Path]):
        """Open the tasks.

        Raises:
            DataError: when a folder is no task.
        """
        from ..train.dev import evaluator

        self._evaluators: dict[str, Callable[[Any], Any]] = {
            folder.name: evaluator(folder, self.BATCH) for folder in folders
        }

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """The primary metric of every task, where the model stands."""
        found = {}
        for name, evaluator in self._evaluators.items():
            result = evaluator(model)
            metric = getattr(evaluator, "primary_metric", None)
            found[name] = float(result[metric] if isinstance(result, Mapping) else result)
        return found


class DevObjective:
    """Judges by dev tasks, by their mean or a Borda count against models. See `Objective`."""

    def __init__(
        self,
        tasks: Callable[[], Scores],
        rivals: Sequence[Scores] | None = None,
    ):
        """Set up the judgement.

        Args:
            tasks: measures the model where it stands.
            rivals: what the models reach that a Borda count is against; None for the mean.
        """
        self._tasks, self._rivals = tasks, rivals

    def step(self, number: int) -> float:
        """A metric has no gradient, so that nothing asks for a step."""
        raise NotImplementedError(f"step {number}: dev tasks have no gradient")

    def start_from(self, tasks: Mapping[str, float]) -> None:
        """See `Objective`: scores are alike from the start."""

    def judge(self) -> Evaluation:
        """See `Objective`: the negative of the mean, or of the Borda count."""
        own = self._tasks()
        if self._rivals is None:
            return Evaluation(-sum(own.values()) / len(own), tasks=own)
        return Evaluation(-borda(own, self._rivals), tasks=own)


def borda(own: Scores, rivals: Sequence[Scores]) -> float:
    """How many rivals a model is better than, summed over tasks; a draw counts a half.

    Source: MMTEB (arXiv 2502.13595) compares models so.
    """
    found = 0.0
    for task, score in own.items():
        for rival in rivals:
            found += 1.0 if score > rival[task] else 0.5 if score == rival[task] else 0.0
    return found


def compared(models: Mapping[str, Scores], ours: str, seed: int) -> dict[str, Any]:
    """Means over tasks, and intervals of the lead of one model over every other.

    Tasks are drawn again with replacement, so that the interval says how far the lead depends on
    which tasks there are; with a single task there is none.
    """
    tasks = list(models[ours])
    table = {name: np.array([scores[task] for task in tasks]) for name, scores in models.items()}
    found: dict[str, Any] = {}
    for name, scores in table.items():
        told: dict[str, Any] = {"mean": float(scores.mean()), "tasks": dict(models[name])}
        if name != ours:
            lead = table[ours] - scores
            told["lead"] = {"mean": float(lead.mean()), "interval": _interval(lead, seed)}
        found[name] = told
    return found


def _interval(values: Doubles, seed: int) -> list[float] | None:
    """The middle 95 percent of means of values drawn with replacement."""
    if len(values) < 2:
        return None
    random = np.random.default_rng(seed)
    means = values[random.integers(0, len(values), (RESAMPLED, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]
