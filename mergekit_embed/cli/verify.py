"""`boom verify`: whether a merged model is what the merge wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .console import ends_with_failure
from .options import SETTINGS, device_option, json_option, markdown_help

if TYPE_CHECKING:
    from ..engine.verify import Verified

HELP = """Check the merged model in DIR against its `merge_manifest.json`.

Every tensor and every file has to have the hash that it had when it was written, and nothing may be
missing or added. With `--recipe`, random parts of random tensors are also merged again from the
members, and compared bit by bit.

Hashes find what changed by accident; they do not prove who wrote a model.
"""


@click.command(
    help=HELP,
    epilog="Exit codes: 0 all is as it was; 1 something is not, or cannot be read; 2 the command "
    "line or the recipe is wrong.",
    context_settings=SETTINGS,
)
@markdown_help
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="RECIPE",
    help="The recipe of the model, whose members are read again.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="How many parts are merged again.",
)
@device_option("Where to compute these")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    folder: Path,
    recipe: Path | None,
    samples: int,
    device: str,
    as_json: bool,
) -> None:
    """Verify, and name each fault."""
    from ..engine.verify import verify as check

    with ends_with_failure(context, as_json=as_json):
        found = check(folder, recipe, samples=samples, device=device)
    _show(found, as_json=as_json)
    context.exit(0 if found.is_whole else 1)


def _show(found: Verified, *, as_json: bool) -> None:
    if as_json:
        report = {
            "status": "whole" if found.is_whole else "faulty",
            "folder": str(found.path),
            "tensors": found.tensors,
            "files": found.files,
            "samples": found.samples,
            "faults": [{"where": one.where, "message": one.message} for one in found.faults],
        }
        click.echo(json.dumps(report))
        return
    for fault in found.faults:
        click.echo(str(fault), err=True)
    again = f", {found.samples} parts merged again" if found.samples else ""
    compared = f"{found.tensors} tensors, {found.files} other files{again}"
    if found.is_whole:
        click.echo(f"{found.path} is as it was merged: {compared}")
        return
    count = len(found.faults)
    line = f"{found.path}: {count} fault{'s' if count > 1 else ''}; compared {compared}"
    click.echo(click.style(line, fg="red", bold=True), err=True)
