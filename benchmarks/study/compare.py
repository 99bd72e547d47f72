"""Rows over seeds: means, spreads, and how sure a lead is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergekit_embed.evaluate.compare import MIDDLE, SEED, Comparison
from mergekit_embed.samples import Doubles, drawn

from .lab import Candidate, Cost


@dataclass(frozen=True)
class Mean:
    """A mean over some tasks and all seeds, in points.

    Attributes:
        spread: the standard deviation over seeds of the mean over tasks; None with one seed.
        lead: over the first row, with the middle 95 percent of draws of texts; None of the first.
    """

    value: float
    spread: float | None
    lead: tuple[float, float, float] | None


@dataclass(frozen=True)
class Line:
    """A row of a table; costs are means over seeds."""

    label: str
    inside: Mean | None
    outside: Mean | None
    tasks: Mapping[str, float]
    cost: Cost


OfSeed = tuple[Sequence[Candidate], Comparison]
"""Candidates of a seed, and what they reach, in the same order."""

Measured = Sequence[OfSeed]
"""For every seed."""


def lines(measured: Measured) -> list[Line]:
    """The rows of a table; the first is what leads are over."""
    count = len(measured[0][0])
    if any(len(candidates) != count for candidates, _ in measured):
        raise ValueError("every seed of a table must have the same rows")
    inside = measured[0][1].members_of("in-domain")
    outside = measured[0][1].members_of("out-of-domain")
    return [
        Line(
            label=measured[0][0][place].label,
            inside=_mean(measured, place, inside),
            outside=_mean(measured, place, outside),
            tasks=_scores(measured, place),
            cost=_cost([candidates[place] for candidates, _ in measured]),
        )
        for place in range(count)
    ]


def _scores(measured: Measured, place: int) -> dict[str, float]:
    rows = [comparison.rows[place] for _, comparison in measured]
    return {task: float(np.mean([row.scores[task] for row in rows])) for task in rows[0].scores}


def _cost(candidates: Sequence[Candidate]) -> Cost:
    count = len(candidates)
    total = sum((one.cost for one in candidates), Cost())
    return Cost(*(round(value / count) for value in (total.steps, total.tokens, total.searched)))


def _mean(measured: Measured, place: int, tasks: Sequence[str]) -> Mean | None:
    if not tasks:
        return None
    own = [comparison.mean(comparison.rows[place], tasks) for _, comparison in measured]
    spread = float(np.std(own, ddof=1)) if len(own) > 1 else None
    return Mean(float(np.mean(own)), spread, _lead(measured, place, tasks) if place else None)


def _lead(measured: Measured, place: int, tasks: Sequence[str]) -> tuple[float, float, float]:
    """The mean lead over the first row, and its interval when texts are drawn anew.

    All seeds and both rows see the same draws of texts; seeds are not drawn.
    """
    values: list[float] = []
    draws: list[Doubles] = []
    for _, comparison in measured:
        first, row = comparison.rows[0], comparison.rows[place]
        for task in tasks:
            values.append(row.scores[task] - first.scores[task])
            seed = SEED + zlib.crc32(task.encode())
            own = drawn(row.samples[task], seed) - drawn(first.samples[task], seed)
            draws.append(100 * own)
    low, high = np.quantile(np.mean(draws, axis=0), MIDDLE)
    return float(np.mean(values)), float(low), float(high)


def told(rows: Sequence[Line]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [
        {
            "label": row.label,
            "in_domain": _told(row.inside),
            "out_of_domain": _told(row.outside),
            "tasks": {name: round(score, 3) for name, score in row.tasks.items()},
            "steps": row.cost.steps,
            "tokens": row.cost.tokens,
            "search_steps": row.cost.searched,
        }
        for row in rows
    ]


def _told(mean: Mean | None) -> dict[str, Any] | None:
    if mean is None:
        return None
    found: dict[str, Any] = {"mean": round(mean.value, 3)}
    if mean.spread is not None:
        found["spread"] = round(mean.spread, 3)
    if mean.lead is not None:
        found["lead"], *interval = (round(value, 3) for value in mean.lead)
        found["interval"] = interval
    return found
