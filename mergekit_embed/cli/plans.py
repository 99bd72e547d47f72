"""How plans of merges are told of, for `--dry-run`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import rich_click as click

from . import adapter
from .console import size_of
from .results import point_of

if TYPE_CHECKING:
    from ..engine import Plan
    from ..engine.adapter_plan import AdapterPlan


def show_plans(planned: list[Plan | AdapterPlan], *, as_json: bool) -> None:
    """Every plan, and whether the disk holds their results."""
    from ..engine import Plan, check_disk

    for index, one in enumerate(planned):
        if index and not as_json:
            click.echo()
        if isinstance(one, Plan):
            memory = one.shared_peak_memory if len(planned) > 1 else one.peak_memory
            _show_plan(one, memory, as_json=as_json)
        else:
            adapter.run_one(one, dry_run=True, as_json=as_json, quiet=False)
    check_disk([one for one in planned if isinstance(one, Plan)])


def _show_plan(planned: Plan, memory: int, *, as_json: bool) -> None:
    recipe = planned.recipe.source.shown
    merged = sum(job.parameters is not None for job in planned.jobs)
    facts = {
        "output": str(planned.output),
        "method": planned.recipe.method.name,
        "members": {model.label: model.nbytes for model in planned.members},
        "base": planned.base.label if planned.base else None,
        "files_from": planned.shell.label,
        "tensors_merged": merged,
        "tensors_copied": len(planned.jobs) - merged,
        "bytes_in": planned.bytes_in,
        "bytes_out": planned.bytes_out,
        "files": {file.path: file.size for file in planned.files},
        "peak_memory": memory,
        "disk_needed": planned.bytes_out,
        "disk_free": planned.disk_free,
        "edits": list(planned.edits),
        "notes": list(planned.notes),
    }
    if as_json:
        click.echo(
            json.dumps({"status": "planned", "recipe": recipe, **point_of(planned), **facts})
        )
        return
    rows = [
        ("recipe", recipe),
        *(("point", point) for point in point_of(planned).values()),
        ("method", planned.recipe.method.name),
        *(("member", f"{m.label}   {size_of(m.nbytes)}") for m in planned.members),
        *(
            [("base", f"{planned.base.label}   {size_of(planned.base.nbytes)}")]
            if planned.base
            else []
        ),
        ("other files", f"from {planned.shell.label}"),
        ("tensors", f"{merged} merged, {len(planned.jobs) - merged} copied"),
        *(("edit", edit) for edit in planned.edits),
        ("reads", size_of(planned.bytes_in)),
        *(("writes", f"{planned.output / f.path}   {size_of(f.size)}") for f in planned.files),
        ("memory", f"at most {size_of(memory)}"),
        ("disk", f"{size_of(planned.bytes_out)} needed, {size_of(planned.disk_free)} free"),
        *(("note", note) for note in planned.notes),
    ]
    for name, value in rows:
        click.echo(click.style(f"{name:>12}  ", bold=True) + value)
