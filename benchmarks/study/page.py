"""docs/study.md and its pictures, from the results of all tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_embed.report.charts import Point, scatter
from mergekit_embed.report.drawing import described
from mergekit_embed.report.style import STYLE

from .tables import TABLES

HEAD = """# The study: does bagging and merging help embeddings?

Made by `python benchmarks/boom_study.py --write` from `benchmarks/results/study/`. One command
repeats a table: `python benchmarks/boom_study.py --data DATA --base MODEL --table 3`. `DATA` is a
folder in the layout that `benchmarks/corpus.py` writes; a study that was killed continues.
"""

NOTE = """Points are means over dev tasks and seeds; +/- is the standard deviation over seeds. Leads
are over the first row, with the middle 95 % of draws when the texts of all tasks are drawn anew
(2000 draws, the same for both rows; seeds are not drawn). Cost counts all training behind a
model, also that of members which other rows share.
"""


def page(results: Mapping[int, Mapping[str, Any]], findings: str) -> str:
    """The page on the study.

    Args:
        results: by the number of the table, as `results/study/table-N.json` has it.
        findings: what reproduces and what does not, in Markdown, written by hand.
    """
    parts = [HEAD, findings.strip() + "\n", "## Tables\n", NOTE]
    parts += [
        _table(results[table.number], table.number, table.title, table.about)
        for table in TABLES
        if table.number in results
    ]
    return "\n".join(parts)


COLOURS = STYLE.partition("* {")[0] + "svg { color: var(--ink); background: var(--paper); }"
"""Those of our pages, in light and dark, for a picture that is a file of its own."""


def picture(result: Mapping[str, Any]) -> str | None:
    """In-domain against out-of-domain means of a table's rows but the base; None without both."""
    points = _points_of(result)
    if len(points) < 2:
        return None
    drawn = scatter(points, "in-domain mean", "out-of-domain mean", front="larger")
    svg = described(drawn, _alt(points))
    head, end, rest = svg.partition(">")
    return f"{head}{end}<style>{COLOURS}</style>{rest}\n"


def _points_of(result: Mapping[str, Any]) -> list[Point]:
    return [
        Point(row["label"], row["in_domain"]["mean"], row["out_of_domain"]["mean"])
        for row in result["rows"]
        if row["label"] != "base" and row["in_domain"] and row["out_of_domain"]
    ]


def _alt(points: Sequence[Point]) -> str:
    inside, outside = max(points, key=lambda one: one.x), max(points, key=lambda one: one.y)
    return (
        f"{len(points)} models by their means: {inside.label} is best in domain ({inside.x:.2f}), "
        f"{outside.label} out of domain ({outside.y:.2f})"
    )


def _table(result: Mapping[str, Any], number: int, title: str, about: str) -> str:
    setting = result["setting"]
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    base = f"{setting['base']}, {100 * setting['scale']:g} % of the training rows"
    head = (
        f"{about} Base {base}, {setting['epochs']} epoch(s) of batches of {setting['rows']}, rate "
        f"{setting['learning_rate']:g}, {setting['max_length']} tokens, {setting['precision']}; "
        f"{100 * setting['measured']:g} % of the dev queries; seeds {seeds}; {result['device']}."
    )
    lines = [
        f"### {number}. {title}\n",
        head + "\n",
        "| model | in-domain | lead | out of domain | lead | steps | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        inside, outside = row["in_domain"], row["out_of_domain"]
        searched = f" + {row['search_steps']} of search" if row["search_steps"] else ""
        cells = [
            row["label"],
            _points(inside),
            _lead(inside),
            _points(outside),
            _lead(outside),
            f"{row['steps']}{searched}",
            f"{row['tokens'] / 1000:.0f} k",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if len(_points_of(result)) > 1:
        lines.append(f"\n![In-domain against out-of-domain means](study-{number}.svg)")
    return "\n".join([*lines, "", *_tasks(result["rows"])]) + "\n"


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores of every task, folded away."""
    names = list(rows[0]["tasks"])
    lines = ["<details><summary>Every task</summary>", ""]
    lines += ["| model | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for row in rows:
        scores = (f"{row['tasks'][name]:.2f}" for name in names)
        lines.append("| " + " | ".join([row["label"], *scores]) + " |")
    return [*lines, "", "</details>"]


def _points(mean: Mapping[str, Any] | None) -> str:
    if mean is None:
        return "-"
    spread = f" +/- {mean['spread']:.2f}" if "spread" in mean else ""
    return f"{mean['mean']:.2f}{spread}"


def _lead(mean: Mapping[str, Any] | None) -> str:
    if mean is None or "lead" not in mean:
        return "-"
    low, high = mean["interval"]
    return f"{mean['lead']:+.2f} ({low:+.2f} to {high:+.2f})"
