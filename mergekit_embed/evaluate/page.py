"""A comparison as one HTML page: leads with intervals, tasks, both domains, health."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import (
    Interval,
    Point,
    Section,
    Series,
    bars,
    bullets,
    figure,
    heat_map,
    lines,
    page,
    paragraph,
    scatter,
    table,
)
from ..report.page import Cell
from . import examine, show
from .compare import Comparison, Lead
from .examine import Health


def comparison_page(comparison: Comparison, health: Sequence[Health] = ()) -> str:
    """The whole page. The same comparison gives the same text."""
    first = comparison.rows[0].label
    count = len(comparison.rows)
    models = "1 model" if count == 1 else f"{count} models"
    tasks = "1 task" if len(comparison.tasks) == 1 else f"{len(comparison.tasks)} tasks"
    sections = [_summary(comparison), _tasks(comparison)]
    sections += [_domains(comparison)] if _has_domains(comparison) else []
    sections += [_health(health)] if health else []
    return page("Evaluation", f"{models} on {tasks}, compared with {first}", sections)


def _summary(comparison: Comparison) -> Section:
    header, rows = show.summary(comparison)
    body = table(header, rows, caption="Points, 0 to 100. Borda: rivals beaten, over all tasks.")
    others = comparison.rows[1:]
    if others:
        leads = [comparison.lead(row) for row in others]
        first = comparison.rows[0].label
        drawn = bars(
            [row.label for row in others],
            [lead.value for lead in leads],
            [_interval(lead) for lead in leads],
            x_label=f"points ahead of {first}, mean over tasks",
            from_zero=False,
            digits=3,
        )
        told = show.remark(comparison) or "no intervals: there is one task, without scores of texts"
        body += figure(drawn, f"How far each model is ahead of {first}", f"Lines: {told}.")
    return Section("Models", body)


def _tasks(comparison: Comparison) -> Section:
    names = [task.name for task in comparison.tasks]
    rows: list[list[Cell]] = [
        [row.label, *(row.scores[name] for name in names)] for row in comparison.rows
    ]
    columns = list(range(1, len(names) + 1))
    body = table(["model", *names], rows, best=columns, caption="Points; the best of each task.")
    metrics = [[task.name, task.type, task.metric, task.group or ""] for task in comparison.tasks]
    others = comparison.rows[1:]
    if others:
        first = comparison.rows[0]
        grid = [[row.scores[name] - first.scores[name] for row in others] for name in names]
        drawn = heat_map(
            grid,
            names,
            [row.label for row in others],
            label=f"points ahead of {first.label}",
            diverging=True,
        )
        told = f"Where each model gains on {first.label}, and where it loses."
        body += figure(drawn, told, told)
    body += table(["task", "type", "metric", "group"], metrics)
    return Section("Tasks", body)


def _has_domains(comparison: Comparison) -> bool:
    return all(comparison.members_of(group) for group in show.GROUPS)


def _domains(comparison: Comparison) -> Section:
    inside, outside = (comparison.members_of(group) for group in show.GROUPS)
    points = [
        Point(row.label, comparison.mean(row, inside), comparison.mean(row, outside))
        for row in comparison.rows
    ]
    drawn = scatter(points, "in-domain, points", "out-of-domain, points", front="larger")
    told = "Means over both groups of tasks. No other model beats those on the line in both."
    return Section("In-domain and out-of-domain", figure(drawn, told, told))


def _health(health: Sequence[Health]) -> Section:
    warnings = [f"{one.model}: {warning}" for one in health for warning in one.warnings]
    good = paragraph("Nothing has collapsed.")
    body = bullets(warnings, warning=True) if warnings else good
    header, rows = examine.table(health)
    body += table(header, rows)
    depths = [Series(one.model, range(len(one.ranks)), one.ranks) for one in health if one.ranks]
    if depths:
        drawn = lines(depths, "layer", "effective rank")
        told = "In how many directions the texts differ after each layer; a collapse shows here."
        body += figure(drawn, told, told)
    drifts = [
        Series(f"{one.model} from {drift.parent}", range(len(drift.layers)), drift.layers)
        for one in health
        for drift in one.drift
        if drift.layers
    ]
    if drifts:
        drawn = lines(drifts, "layer", "linear CKA")
        told = "How much each layer says what the parent's says: 1 is the same up to a rotation."
        body += figure(drawn, told, told)
    return Section("Health", body)


def _interval(lead: Lead) -> Interval | None:
    return None if lead.low is None or lead.high is None else Interval(lead.low, lead.high)
