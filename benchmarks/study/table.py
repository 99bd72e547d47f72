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
    """A table: its title, what it is about, and its rows for a seed, measured.

    `whole`: on the whole of the dev tasks, at any scale.
    """

    number: int
    title: str
    about: str
    measured: Callable[[Lab, int], OfSeed]
    whole: bool = False


def side_by_side(rows: Callable[[Lab, int], Rows]) -> Callable[[Lab, int], OfSeed]:
    """Models that are trained on the same data, measured on all tasks."""

    def measured(lab: Lab, seed: int) -> OfSeed:
        found = rows(lab, seed)
        return found, lab.measured(found, set(lab.corpus.train))

    return measured


def left_out(rows: Callable[[Lab, int, Sequence[str]], Rows]) -> Callable[[Lab, int], OfSeed]:
    """Every row is several models, each without one of the data sets, measured on its task alone.

    The cost of a row is that of all its models.
    """

    def measured(lab: Lab, seed: int) -> OfSeed:
        names = list(lab.corpus.train)
        made: list[Rows] = []
        found: list[Comparison] = []
        for name in names:
            others = [other for other in names if other != name]
            made.append(rows(lab, seed, others))
            found.append(lab.measured(made[-1], set(others), [name]))
        joined = [_joined(models) for models in zip(*made, strict=True)]
        together = [_together(own) for own in zip(*(one.rows for one in found), strict=True)]
        return joined, Comparison(
            tuple(task for one in found for task in one.tasks), tuple(together)
        )

    return measured


def _joined(models: Sequence[Candidate]) -> Candidate:
    first = models[0]
    return Candidate(first.label, first.reference, 0.0, sum((one.cost for one in models), Cost()))


def _together(rows: Sequence[Row]) -> Row:
    """One row of what several reach, each in tasks of its own."""
    scores = {name: score for row in rows for name, score in row.scores.items()}
    samples = {name: own for row in rows for name, own in row.samples.items()}
    return Row(rows[0].label, "", None, scores, samples, sum(row.seconds for row in rows))
