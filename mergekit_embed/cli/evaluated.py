"""What `boom-eval` shows and writes of what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import printable

if TYPE_CHECKING:
    from ..evaluate.compare import Comparison
    from ..evaluate.examine import Health
    from ..evaluate.gate import Miss
    from ..evaluate.run import Unit
    from ..evaluate.tasks import Task

Files = Mapping[str, Path | None]
"""The files that are asked for, by what they hold: csv, markdown, html."""


def show_units(units: Sequence[Unit], *, as_json: bool) -> None:
    """Say what there is to compute, and what is there already."""
    if as_json:
        click.echo(json.dumps({"status": "planned", "results": [_unit(one) for one in units]}))
        return
    for unit in units:
        state = "to run" if unit.result is None else "there"
        click.echo(printable(f"{state:>6}  {unit.label} on {unit.task.name}   {_size(unit.task)}"))
    count = sum(unit.result is None for unit in units)
    click.echo(f"{count} of {len(units)} results to compute")


def _unit(unit: Unit) -> dict[str, Any]:
    return {
        "model": unit.model.name,
        "revision": unit.meta.revision,
        "dimension": unit.dimension,
        "task": unit.task.name,
        "there": unit.result is not None,
    }


def _size(task: Task) -> str:
    texts = "" if task.texts is None else f", {task.texts:,} texts"
    return f"{task.facts.type}, {task.facts.metric}{texts}"


def write_files(files: Files, comparison: Comparison, health: Sequence[Health]) -> None:
    """Write what was asked for.

    Raises:
        OutputError: when a file cannot be written.
    """
    from ..evaluate.show import write

    for kind, path in files.items():
        if path is not None:
            write(path, _written(kind, comparison, health))


def as_dict(
    comparison: Comparison, health: Sequence[Health], missed: Sequence[Miss] | None
) -> dict[str, Any]:
    """All of it as JSON has it; `missed` is None where no gate was asked for."""
    from ..evaluate.show import as_dict as told

    found: dict[str, Any] = {"status": "missed" if missed else "done", **told(comparison)}
    if health:
        found["health"] = [one.as_dict() for one in health]
    if missed is not None:
        found["missed"] = [str(miss) for miss in missed]
    return found


def show_found(
    comparison: Comparison,
    health: Sequence[Health],
    missed: Sequence[Miss],
    files: Sequence[Path | None],
) -> None:
    """Print the tables, and say which files were written and which gates were missed."""
    from ..evaluate.show import text

    _print(text(comparison))
    if health:
        _show_health(health)
    for path in files:
        if path is not None:
            click.echo(f"wrote {path}")
    for miss in missed:
        click.echo(click.style("gate: ", fg="red", bold=True) + printable(str(miss)), err=True)


def _written(kind: str, comparison: Comparison, health: Sequence[Health]) -> str:
    """What a file of this kind holds."""
    from ..evaluate import show

    if kind == "html":
        from ..evaluate.page import comparison_page

        return comparison_page(comparison, health)
    return show.as_csv(comparison) if kind == "csv" else show.markdown(comparison)


def _print(text: str) -> None:
    """Lines as they are, but for what may be in names that commands the terminal."""
    for line in text.split("\n"):
        click.echo(printable(line))


def _show_health(health: Sequence[Health]) -> None:
    from ..evaluate.examine import table
    from ..evaluate.show import aligned

    click.echo()
    _print(aligned(*table(health)))
    for one in health:
        for warning in one.warnings:
            told = click.style("warning: ", fg="yellow", bold=True)
            click.echo(told + printable(f"{one.model}: {warning}"), err=True)
