"""What a table is: models made for a seed, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergekit_embed.evaluate.compare import Comparison, Row

from .compare import OfSeed
from .lab import Candidate, Cost, Lab

Rows = list[Candidate]


@dataclass(frozen=True)
class Table:
    """Models that are trained on the same data, measured on all tasks.

    Attributes:
        rows: of a lab and a seed.
        whole: measured on the whole of the dev tasks, at any scale.
    """

    number: int
    title: str
    about: str
    rows: Callable[..., Rows]
    whole: bool = False

    def measured(self, lab: Lab, seed: int) -> OfSeed:
        """The rows for a seed, and what they reach."""
        found = self.rows(lab, seed)
        return found, lab.measured(found, set(lab.corpus.train))


class LeftOut(Table):
    """Every row is several models, each without one of the data sets, measured on its task alone.

    The cost of a row is that of all its models; `rows` are of a lab, a seed and the data sets.
    """

    def measured(self, lab: Lab, seed: int) -> OfSeed:
        """The rows for a seed, and what they reach where they were not taught."""
        names = list(lab.corpus.train)
        made: list[Rows] = []
        found: list[Comparison] = []
        for name in names:
            others = [other for other in names if other != name]
            made.append(self.rows(lab, seed, others))
            found.append(lab.measured(made[-1], set(others), [name]))
        joined = [_joined(models) for models in zip(*made, strict=True)]
        together = [_together(own) for own in zip(*(one.rows for one in found), strict=True)]
        tasks = tuple(task for one in found for task in one.tasks)
        return joined, Comparison(tasks, tuple(together))


def _joined(models: Sequence[Candidate]) -> Candidate:
    first = models[0]
    return Candidate(first.label, first.reference, 0.0, sum((one.cost for one in models), Cost()))


def _together(rows: Sequence[Row]) -> Row:
    """One row of what several reach, each in tasks of its own."""
    scores = {name: score for row in rows for name, score in row.scores.items()}
    samples = {name: own for row in rows for name, own in row.samples.items()}
    return Row(rows[0].label, "", None, scores, samples, sum(row.seconds for row in rows))
