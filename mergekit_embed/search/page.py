"""The page of a search, made of nothing but search.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..report import (
    Interval,
    Point,
    Section,
    Series,
    bars,
    figure,
    heat_map,
    lines,
    page,
    paragraph,
    scatter,
    table,
    write,
)

MOST_GROUPS = 6
"""Groups of tensors whose weights are drawn along the way; of more, where they ended."""


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page of a search.

    Args:
        path: the HTML file.
        report: the content of search.json.

    Raises:
        OutputError: when it cannot be written.
        UsageError: when matplotlib is not there.
    """
    subtitle = f"{report['method']}, found by {report['strategy']}, judged by {report['objective']}"
    write(path, page(f"Search of {report['recipe']}", subtitle, sections(report)))


def sections(report: Mapping[str, Any]) -> list[Section]:
    """What a search has found, and how it got there."""
    return [
        Section("Found", _found(report)),
        Section("Way", _way(report)),
        Section("Vectors", _vectors(report)),
        *([Section("Trade-offs", _front(report))] if report.get("front") else []),
        *([Section("Dev tasks", _dev(report["dev"]))] if report.get("dev") else []),
        *([Section("Probe set", _probe(report["probe"]))] if report.get("probe") else []),
    ]


def _found(report: Mapping[str, Any]) -> str:
    found, members, groups = report["found"], report["members"], report["groups"]
    told = (
        f"{found['label']}: {_number(found['value'])}, and {_number(report['judged'][0]['value'])} "
        f"at first. The search ended because {report['stopped']}, after "
        f"{report['seconds']:.0f} seconds and {len(report['judged'])} judgements."
    )
    body = paragraph(told)
    if len(groups) > 1:
        body += figure(
            heat_map(found["weights"], groups, members, label="weight"),
            "The weight found for each member in each group of tensors",
            "Weights found, by group of tensors.",
        )
    else:
        body += figure(
            bars(members, found["weights"][0], x_label="weight"),
            "The weight found for each member",
            "Weights found for the whole model.",
        )
    factors = [[group, factor] for group, factor in zip(groups, found["factor"], strict=False)]
    body += table(["group", "factor (lambda)"], factors) if factors else ""
    others = [[name, _plain(value)] for name, value in found["parameters"].items()]
    return body + (table(["parameter", "value"], others) if others else "")


def _way(report: Mapping[str, Any]) -> str:
    judged = report["judged"]
    values = [_or_gap(point["value"]) for point in judged]
    best: list[float] = []
    for value in values:
        known = [one for one in (*best[-1:], value) if math.isfinite(one)]
        best.append(min(known, default=math.nan))
    x = range(1, len(judged) + 1)
    body = figure(
        lines([Series("judged", x, values), Series("best so far", x, best)], "judgement", "value"),
        "What each point was judged at, and the best so far",
        "What each point was judged at; small is good.",
    )
    steps = [_or_gap(loss) for loss in report["losses"]]
    if steps:
        drawn = lines([Series("loss", range(1, len(steps) + 1), steps)], "step", "loss")
        told = "Loss of every step, on its own batch."
        body += figure(drawn, "The loss of every step", told)
    if len(report["groups"]) <= MOST_GROUPS and len(judged) > 1:
        series = [
            Series(_named(member, group, report), x, [point["weights"][g][m] for point in judged])
            for g, group in enumerate(report["groups"])
            for m, member in enumerate(report["members"])
        ]
        told = "The weights at every point that was judged."
        body += figure(lines(series, "judgement", "weight"), told, told)
    tasks = dict.fromkeys(task for point in judged for task in point["tasks"])
    if len(tasks) > 1:
        series = [
            Series(task, x, [_or_gap(point["tasks"].get(task)) for point in judged])
            for task in tasks
        ]
        told = "Each data set or task at every point that was judged."
        body += figure(lines(series, "judgement", "value"), told, told)
    return body


def _vectors(report: Mapping[str, Any]) -> str:
    members, vectors = report["members"], report["vectors"]
    lengths = [vectors["lengths"].get(member) for member in members]
    drawn = heat_map(
        vectors["angles"], members, members, label="degrees", limits=(0.0, 180.0), digits=1
    )
    return table(
        ["member", "length"], [list(row) for row in zip(members, lengths, strict=True)]
    ) + figure(
        drawn,
        "Angles between the members' vectors in degrees",
        "Angles between the members' vectors over the whole model: of task vectors, where the "
        "method has a base.",
    )


def _dev(dev: Mapping[str, Any]) -> str:
    names = list(dev)
    leads = [(name, told["lead"]) for name, told in dev.items() if told.get("lead")]
    tasks = list(dict.fromkeys(task for told in dev.values() for task in told["tasks"]))
    rows = [
        [name, dev[name]["mean"], *(dev[name]["tasks"].get(task) for task in tasks)]
        for name in names
    ]
    body = figure(
        bars(names, [dev[name]["mean"] for name in names], x_label="mean score", from_zero=False),
        "Mean scores on the dev tasks",
        "Mean over the dev tasks.",
    )
    if leads:
        intervals = [Interval(*one["interval"]) for _, one in leads]
        drawn = bars(
            [f"over {name}" for name, _ in leads],
            [one["mean"] for _, one in leads],
            intervals,
            x_label="lead of what was found",
        )
        told = (
            "By how much what was found leads; the line holds 95 % of the means when texts are "
            "drawn anew. One that crosses zero is no lead to rely on."
        )
        body += figure(drawn, "Lead of what was found over other merges", told)
    return body + table(["model", "mean", *tasks], rows, best=range(1, len(tasks) + 2))


def _front(report: Mapping[str, Any]) -> str:
    """The points that no other beats on all axes; drawn where there are two."""
    front = report["front"]
    names = list(front[0]["axes"])
    rows = [[one["point"], one["label"], *(one["axes"][name] for name in names)] for one in front]
    told = f"{len(front)} points that no other beats on all of {', '.join(names)}."
    body = paragraph(told)
    if len(names) == 2:
        points = [Point(f"point {one['point']}", *one["axes"].values()) for one in front]
        better: Literal["larger", "smaller"] = (
            "smaller" if report["objective"] == "loss" else "larger"
        )
        drawn = scatter(points, *names, front=better)
        body += figure(drawn, f"{names[0]} against {names[1]}", f"{better.title()} is better.")
    return body + table(["point", "label", *names], rows)


def _probe(probe: Mapping[str, Any]) -> str:
    rows = [[name, count, probe["digests"].get(name)] for name, count in probe["rows"].items()]
    told = f"{probe['batches']} batches gave gradients, {probe['judged_on']} others were judged on."
    return paragraph(told) + table(["data set", "rows", "digest"], rows)


def _named(member: str, group: str, report: Mapping[str, Any]) -> str:
    return member if len(report["groups"]) == 1 else f"{member}, {group}"


def _or_gap(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"


def _plain(value: Any) -> str | float:
    return value if isinstance(value, float | int | str) else str(value)
