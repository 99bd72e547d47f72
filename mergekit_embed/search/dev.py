"""Dev tasks: what a model is worth on data that is kept apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..samples import Samples, borda, drawn
from .specs import Doubles, Evaluation

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MIDDLE = (0.025, 0.975)
"""The quantiles of draws that an interval of 95 percent has."""

Scores = Mapping[str, float]
"""What a model reaches in every task; more is better."""


@dataclass(frozen=True)
class Measured:
    """What a model reaches in every task, and the scores of single texts that this is made of."""

    scores: Scores
    samples: Mapping[str, Samples]


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

        self._evaluators = {folder.name: evaluator(folder, self.BATCH) for folder in folders}

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """The primary metric of every task, where the model stands."""
        return dict(self.measured(model).scores)

    def measured(self, model: SentenceTransformer) -> Measured:
        """The primary metric of every task, and of every text, where the model stands."""
        scores, samples = {}, {}
        for name, evaluator in self._evaluators.items():
            found = evaluator(model)
            assert evaluator.primary_metric is not None  # it is there once something was measured
            scores[name] = float(found[evaluator.primary_metric])
            samples[name] = evaluator.samples
        return Measured(scores, samples)


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


def compared(models: Mapping[str, Measured], ours: str, seed: int) -> dict[str, Any]:
    """Means over tasks, and intervals of the lead of one model over every other.

    The texts of every task are drawn again with replacement, the same for all models, so that an
    interval says how far a lead depends on which texts there are.
    """
    draws = {name: _drawn(model.samples, seed) for name, model in models.items()}
    means = {name: float(np.mean(list(one.scores.values()))) for name, one in models.items()}
    found: dict[str, Any] = {}
    for name, model in models.items():
        told: dict[str, Any] = {"mean": means[name], "tasks": dict(model.scores)}
        if name != ours:
            low, high = np.quantile(draws[ours] - draws[name], MIDDLE)
            lead = means[ours] - means[name]
            told["lead"] = {"mean": lead, "interval": [float(low), float(high)]}
        found[name] = told
    return found


def _drawn(samples: Mapping[str, Samples], seed: int) -> Doubles:
    """The mean over tasks for every draw of their texts."""
    own = [one for _, one in sorted(samples.items())]
    each = [drawn({"": one}, seed + place) for place, one in enumerate(own)]
    found: Doubles = np.mean(each, axis=0)
    return found
