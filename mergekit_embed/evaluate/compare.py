"""Models side by side: means, ranks, and how sure a lead is. Scores are points, 0 to 100."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from ..samples import DRAWS, Doubles, Samples, borda, drawn

SEED = 0
"""Of the draws of intervals, so that a table is the same whenever it is printed."""

MIDDLE = (0.025, 0.975)
"""The quantiles of draws that an interval of 95 percent has."""

Group = Literal["in-domain", "out-of-domain"]


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task without a model.

    Attributes:
        name: as the table prints it.
        type: of MTEB: Retrieval, STS, ...
        metric: the main one.
        group: whether the members were trained on such data; None where nobody said.
        path: of the data set on the Hub, or the name of a local folder.
        revision: of the data.
        split: what was measured.
    """

    name: str
    type: str
    metric: str
    group: Group | None
    path: str
    revision: str
    split: str


@dataclass(frozen=True)
class Row:
    """A model, perhaps cut to a number of dimensions, and its score in every task, in points.

    `samples` are those of tasks where scores of single texts are there, by the task and its parts.
    """

    model: str
    revision: str
    dimension: int | None
    scores: Mapping[str, float]
    samples: Mapping[str, Mapping[str, Samples]] = field(default_factory=dict, repr=False)
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.model if self.dimension is None else f"{self.model}:{self.dimension}"


@dataclass(frozen=True)
class Lead:
    """How far a row is ahead of the first, in points, and the middle 95 percent of draws.

    `over` says what was drawn anew: "texts", "tasks", or nothing, and then there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    over: Literal["texts", "tasks"] | None = None


@dataclass(frozen=True)
class Comparison:
    """Rows over the same tasks; the first row is what the others are compared with."""

    tasks: tuple[TaskFacts, ...]
    rows: tuple[Row, ...]

    def row(self, label: str) -> Row:
        """The row of this name; it must be there."""
        return next(row for row in self.rows if label in (row.label, row.model))

    def members_of(self, group: Group) -> list[str]:
        """The tasks of a group."""
        return [task.name for task in self.tasks if task.group == group]

    def mean(self, row: Row, tasks: Iterable[str] | None = None) -> float:
        """The mean over these tasks, or all."""
        names = [task.name for task in self.tasks] if tasks is None else list(tasks)
        return float(np.mean([row.scores[name] for name in names]))

    def mean_of_types(self, row: Row) -> float:
        """The mean over types of the means over their tasks."""
        return float(np.mean(list(self.types(row).values())))

    def types(self, row: Row) -> dict[str, float]:
        """The mean over the tasks of every type."""
        found: dict[str, list[float]] = {}
        for task in self.tasks:
            found.setdefault(task.type, []).append(row.scores[task.name])
        return {kind: float(np.mean(scores)) for kind, scores in found.items()}

    def borda(self) -> tuple[float, ...]:
        """For each row, how many others it beats, summed over tasks."""
        return tuple(
            borda(row.scores, [other.scores for other in self.rows if other is not row])
            for row in self.rows
        )

    def lead(self, row: Row, tasks: Sequence[str] | None = None) -> Lead:
        """How far a row is ahead of the first in the mean over these tasks, or all.

        The texts of every task are drawn anew where scores of texts are there for all of these
        tasks, else the tasks are, when there are two or more. Both rows see the same draws.
        """
        names = [task.name for task in self.tasks] if tasks is None else list(tasks)
        first = self.rows[0]
        value = self.mean(row, names) - self.mean(first, names)
        if not names or row is first:
            return Lead(value)
        pairs = [(self._draws(row, name), self._draws(first, name)) for name in names]
        texts = [a - b for a, b in pairs if a is not None and b is not None]
        if len(texts) == len(names):
            return _interval(value, np.mean(texts, axis=0), "texts")
        if len(names) < 2:
            return Lead(value)
        leads = np.array([row.scores[name] - first.scores[name] for name in names])
        chosen = np.random.default_rng(SEED).integers(0, len(names), (DRAWS, len(names)))
        return _interval(value, leads[chosen].mean(axis=1), "tasks")

    def own_interval(self, row: Row, task: str) -> tuple[float, float] | None:
        """The middle 95 percent of a row's score in a task, drawing its texts anew."""
        draws = self._draws(row, task)
        if draws is None:
            return None
        low, high = np.quantile(draws, MIDDLE)
        return float(low), float(high)

    def _draws(self, row: Row, task: str) -> Doubles | None:
        """The scores of a row in a task for every draw of its texts, in points."""
        known = self._drawn.get((row.label, task))
        if known is None and row.samples.get(task):
            seed = zlib.crc32(task.encode()) + SEED  # not of all tasks the same texts
            known = self._drawn[row.label, task] = 100 * drawn(row.samples[task], seed)
        return known

    @cached_property
    def _drawn(self) -> dict[tuple[str, str], Doubles]:
        return {}


def _interval(value: float, draws: Doubles, over: Literal["texts", "tasks"]) -> Lead:
    low, high = np.quantile(draws, MIDDLE)
    return Lead(value, float(low), float(high), over)
