"""The page of a training, made of nothing but training.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report import Section, Series, figure, heat_map, lines, page, paragraph, table, write
from .record import read_all

SMOOTH = 25
"""Points of a curve, at most, that each point of the drawn one is the mean of."""

MOST_POINTS = 200
"""Points of a drawn curve."""


def write_page(path: Path, output: Path) -> None:
    """Write the page of the training that is in a folder.

    Raises:
        OutputError: when the record cannot be read, or the page not be written.
        UsageError: when matplotlib is not there.
    """
    record = read_all(output)
    model = record["model"]["name"]
    subtitle = f"{len(record['members'])} members of {model}, schedule {record['schedule']}"
    write(path, page(f"Training of {record['plan']}", subtitle, sections(record)))


def sections(record: Mapping[str, Any]) -> list[Section]:
    """What was trained, on what, and how it went."""
    members: Mapping[str, Any] = record["members"]
    scored = any(member["evaluations"] for member in members.values())
    return [
        Section("Members", _members(members, record["cost"])),
        Section("Loss", _losses(members)),
        *([Section("Dev scores", _scores(members))] if scored else []),
        Section("Data", _data(record["data"], members)),
        Section("Settings", _settings(record)),
    ]


def _members(members: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    told = (
        f"{cost['steps']:,.0f} steps over {cost['examples']:,.0f} examples and "
        f"{cost['tokens']:,.0f} tokens in {cost['seconds']:,.0f} seconds, all members together."
    )
    header = ["member", "rows", "epochs", "steps", "examples", "tokens", "seconds", "last loss"]
    rows = [
        [
            name,
            sum(one["rows"] for one in member["rows"].values()),
            member["epochs"],
            *(member[key] for key in ("steps", "examples", "tokens", "seconds")),
            member["curve"][-1]["loss"] if member["curve"] else None,
        ]
        for name, member in members.items()
    ]
    return paragraph(told) + table(header, rows)


def _losses(members: Mapping[str, Any]) -> str:
    series = []
    for name, member in members.items():
        curve = member["curve"]
        x, y = _smoothed([point["step"] for point in curve], [point["loss"] for point in curve])
        series.append(Series(name, x, y))
    drawn = lines(series, "step", "loss")
    told = "Training loss over the steps"
    return figure(
        drawn,
        f"{told} of each member",
        f"{told}; in long trainings each point is the mean of its neighbourhood. Members that take "
        "turns among data sets have losses of different sizes side by side.",
    )


def _smoothed(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Means of runs of points, so that no more than `MOST_POINTS` are left."""
    of = min(SMOOTH, max(1, -(-len(x) // MOST_POINTS)))
    runs = [slice(start, start + of) for start in range(0, len(x), of)]
    return [x[run][-1] for run in runs], [_mean(y[run]) for run in runs]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _scores(members: Mapping[str, Any]) -> str:
    series = [
        Series(
            name,
            [point["step"] for point in member["evaluations"]],
            [point["score"] for point in member["evaluations"]],
        )
        for name, member in members.items()
        if member["evaluations"]
    ]
    told = "The dev task's score as training went on"
    return figure(lines(series, "step", "score"), f"{told}, of each member", f"{told}.")


def _data(data: Mapping[str, Any], members: Mapping[str, Any]) -> str:
    names = list(data)
    shares = [
        [
            member["rows"][name]["rows"] / max(member["rows"][name]["of"], 1)
            if name in member["rows"]
            else math.nan
            for name in names
        ]
        for member in members.values()
    ]
    header = ["data set", "kind", "rows", "bad rows", "negatives", "batch", "loss"]
    keys = ("kind", "rows", "bad_rows", "negatives", "batch_size")
    rows = [[name, *(one[key] for key in keys), one["loss"]["name"]] for name, one in data.items()]
    counts = [
        [name, *(member["rows"].get(one, {}).get("rows") for one in names)]
        for name, member in members.items()
    ]
    return (
        figure(
            heat_map(shares, list(members), names, label="share of rows", limits=(0.0, 1.0)),
            "The share of each data set's rows in each member's bag",
            "The share of each data set's rows that each member was trained on.",
        )
        + table(["rows in bag", *names], counts)
        + table(header, rows)
    )


def _settings(record: Mapping[str, Any]) -> str:
    training = [
        [key, "–" if value is None else str(value)] for key, value in record["training"].items()
    ]
    lora = record["lora"] or {}
    training += [[f"lora: {key}", str(value)] for key, value in lora.items()]
    versions = [[name, version] for name, version in record["versions"].items()]
    return table(["setting", "value"], [["seed", str(record["seed"])], *training]) + table(
        ["library", "version"], versions
    )
