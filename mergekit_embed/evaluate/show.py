"""A comparison as people and programs read it: text, Markdown, CSV, JSON, a card's model-index."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import write_whole
from ..errors import OutputError
from .compare import Comparison, Group, Lead, Row

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

Table = tuple[list[str], list[list[str]]]
"""The names of the columns, and the lines."""

GROUPS: tuple[Group, ...] = ("in-domain", "out-of-domain")

SOURCES = {"texts": "drawing texts anew", "tasks": "drawing tasks anew"}

HUB_TYPES = {
    "BitextMining": "translation",
    "Classification": "text-classification",
    "PairClassification": "text-classification",
    "STS": "sentence-similarity",
    "Reranking": "text-ranking",
    "Retrieval": "text-retrieval",
}
"""What the Hub calls a type of mteb; others are feature extraction."""


def summary(comparison: Comparison) -> Table:
    """A line a model: means, ranks, and the lead over the first with its interval."""
    header = ["model", "mean", "mean of types"]
    groups = [group for group in GROUPS if comparison.members_of(group)]
    header += groups
    header += ["Borda", f"lead over {comparison.rows[0].label} (95 %)"]
    lines = []
    for row, borda in zip(comparison.rows, comparison.borda(), strict=True):
        cells = [row.label, _points(comparison.mean(row)), _points(comparison.mean_of_types(row))]
        cells += [_points(comparison.mean(row, comparison.members_of(one))) for one in groups]
        first = row is comparison.rows[0]
        cells += [f"{borda:g}", "" if first else told_lead(comparison.lead(row))]
        lines.append(cells)
    return header, lines


def per_task(comparison: Comparison) -> Table:
    """A line a task: its type and metric, and the points of every model."""
    header = ["task", "type", "metric", *(row.label for row in comparison.rows)]
    lines = [
        [task.name, task.type, task.metric]
        + [_points(row.scores[task.name]) for row in comparison.rows]
        for task in comparison.tasks
    ]
    return header, lines


def told_lead(lead: Lead) -> str:
    """A lead in words: +0.41 (-0.12 to +0.95)."""
    if lead.low is None or lead.high is None:
        return f"{lead.value:+.2f}"
    return f"{lead.value:+.2f} ({lead.low:+.2f} to {lead.high:+.2f})"


def remark(comparison: Comparison) -> str:
    """What the intervals of the table are of; nothing where there are none."""
    found = {comparison.lead(row).over for row in comparison.rows[1:]} - {None}
    if not found:
        return ""
    told = " or ".join(SOURCES[str(over)] for over in sorted(map(str, found)))
    return f"intervals: the middle 95 % of 2000 draws, {told}, the same for both models"


def text(comparison: Comparison) -> str:
    """Tables for a terminal or a log."""
    parts = [aligned(*summary(comparison)), aligned(*per_task(comparison))]
    told = remark(comparison)
    return "\n\n".join([*parts, *([told] if told else [])])


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what they hold; the first, and words, on the left."""
    rows = [list(header), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    left = [i == 0 or not any(_numeric(line[i]) for line in lines) for i in range(len(header))]
    told = [
        "  ".join(
            cell.ljust(width) if on_left else cell.rjust(width)
            for cell, width, on_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(told)


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("+", "-")


def markdown(comparison: Comparison) -> str:
    """The two tables for a model card, and what the intervals are of."""
    parts = [_markdown_table(*summary(comparison)), _markdown_table(*per_task(comparison))]
    told = remark(comparison)
    return "\n\n".join([*parts, *([told[:1].upper() + told[1:] + "."] if told else [])]) + "\n"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    left = [i == 0 or not any(_numeric(one[i]) for one in lines) for i in range(len(header))]
    rule = "|" + "|".join("---" if on_left else "---:" for on_left in left) + "|"
    return "\n".join([line(header), rule, *map(line, lines)])


def as_csv(comparison: Comparison) -> str:
    """A line a model, a column a task, numbers as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [task.name for task in comparison.tasks]
    columns = ["model", "revision", "dimension", "mean", "mean_of_types", "in_domain"]
    columns += ["out_of_domain", "borda", "lead", "lead_low", "lead_high", "lead_over"]
    writer.writerow([*columns, *names])
    for row, borda in zip(comparison.rows, comparison.borda(), strict=True):
        lead = comparison.lead(row)
        groups = [_group_mean(comparison, row, group) for group in GROUPS]
        means = [comparison.mean(row), comparison.mean_of_types(row), *groups]
        cells: list[Any] = [row.model, row.revision, row.dimension, *map(_rounded, means), borda]
        cells += [*map(_rounded, (lead.value, lead.low, lead.high)), lead.over]
        writer.writerow([*cells, *(_rounded(row.scores[name]) for name in names)])
    return out.getvalue()


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """All that a program may want."""
    return {
        "tasks": [vars(task) for task in comparison.tasks],
        "models": [
            {
                "model": row.model,
                "revision": row.revision,
                "dimension": row.dimension,
                "mean": _rounded(comparison.mean(row)),
                "mean_of_types": _rounded(comparison.mean_of_types(row)),
                "types": {name: _rounded(score) for name, score in comparison.types(row).items()},
                "in_domain": _rounded(_group_mean(comparison, row, "in-domain")),
                "out_of_domain": _rounded(_group_mean(comparison, row, "out-of-domain")),
                "borda": borda,
                "lead": _lead_dict(comparison.lead(row)),
                "tasks": {
                    task.name: {
                        "score": _rounded(row.scores[task.name]),
                        "lead": _lead_dict(comparison.lead(row, [task.name])),
                    }
                    for task in comparison.tasks
                },
                "seconds": round(row.seconds, 3),
            }
            for row, borda in zip(comparison.rows, comparison.borda(), strict=True)
        ],
    }


def _lead_dict(lead: Lead) -> dict[str, Any]:
    interval = None if lead.low is None else [_rounded(lead.low), _rounded(lead.high)]
    return {"value": _rounded(lead.value), "interval": interval, "over": lead.over}


def _group_mean(comparison: Comparison, row: Row, group: Group) -> float | None:
    tasks = comparison.members_of(group)
    return comparison.mean(row, tasks) if tasks else None


def model_index(comparison: Comparison, row: Row) -> list[EvalResult]:
    """What a model card's metadata says of a row: a result a task, in points."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=HUB_TYPES.get(task.type, "feature-extraction"),
            task_name=task.type,
            dataset_type=task.path,
            dataset_name=task.name,
            dataset_split=task.split,
            dataset_revision=task.revision,
            metric_type=task.metric,
            metric_name=task.metric,
            metric_value=_rounded(row.scores[task.name]),
        )
        for task in comparison.tasks
    ]


def write(path: Path, content: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: when that fails.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _points(score: float) -> str:
    return f"{score:.2f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
