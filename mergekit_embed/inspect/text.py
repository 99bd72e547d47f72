"""What was found as lines for a console."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .facts import By, Facts, Summary


def lines(facts: Facts, by: By = "layer") -> list[str]:
    """Tables of the members, of their pairs, and of the parts of the model."""
    told = [*_aligned(*_members(facts))]
    if len(facts.labels) > 1:
        for title, pairs in pair_tables(facts.model):
            told += ["", *_aligned(["", *numbered(facts)], _pairs(facts, pairs, title), title)]
    if by != "model":
        told += ["", *_aligned(*_parts(facts, by))]
    return told


def numbered(facts: Facts) -> list[str]:
    """Short names of the members for columns: 1, 2, ..."""
    return [str(number + 1) for number in range(len(facts.labels))]


def pair_tables(model: Summary) -> list[tuple[str, NDArray[np.float64]]]:
    """What is told of pairs, with its title."""
    return [
        ("cosine", model.cosines),
        ("sign conflicts", model.conflicts),
        ("overlap of the largest 1 %", model.overlap),
    ]


def _members(facts: Facts) -> tuple[list[str], list[list[str]]]:
    model = facts.model
    header = ["", "member", "length"]
    columns = [numbered(facts), list(facts.labels), [f"{one:.4g}" for one in model.lengths]]
    if model.relative is not None:
        header.append("of the base")
        columns.append([_percent(one) for one in model.relative])
        header.append("moved")
        columns.append([_percent(one) for one in model.moved])
    if model.rank is not None:
        header.append("rank")
        columns.append([_percent(one) for one in model.rank])
    if model.coefficients is not None and model.shares is not None:
        header += ["coefficient", "share"]
        columns.append([f"{one:.4f}" for one in model.coefficients])
        columns.append([_percent(one) for one in model.shares])
    return header, [list(row) for row in zip(*columns, strict=True)]


def _pairs(facts: Facts, pairs: NDArray[np.float64], title: str) -> list[list[str]]:
    shown = _cosine if title == "cosine" else _percent
    return [
        [name, *("" if i == j else shown(float(one)) for j, one in enumerate(row))]
        for i, (name, row) in enumerate(zip(numbered(facts), pairs, strict=True))
    ]


def _parts(facts: Facts, by: By) -> tuple[list[str], list[list[str]]]:
    several = len(facts.labels) > 1
    header = [by, *(f"length {name}" for name in numbered(facts))]
    header += ["mean cosine", "split signs"] if several else []
    rows = []
    for part in facts.by(by):
        row = [part.name, *(f"{one:.4g}" for one in part.lengths)]
        if several:
            row += [_cosine(mean_pair(part.cosines)), _percent(part.split)]
        rows.append(row)
    return header, rows


def mean_pair(pairs: NDArray[np.float64]) -> float:
    """The mean over pairs of different members."""
    apart = ~np.eye(len(pairs), dtype=bool)
    return float(pairs[apart].mean()) if apart.any() else float("nan")


def _cosine(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # adding 0 takes the sign of -0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> list[str]:
    """Rows in columns: names to the left, numbers to the right."""
    every = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    names = {"member", "layer", "module", "component", "tensor"}
    left = [column for column, name in enumerate(header) if name in names]
    told = [title] if title else []
    for row in every:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        told.append("  ".join(cells).rstrip())
    return told
