"""`boom extract-lora`: the difference of two models as a LoRA adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .adapter import show_parts
from .console import duration_of, ends_with_failure, show_notes, size_of
from .options import SETTINGS, json_option, markdown_help

if TYPE_CHECKING:
    from ..engine.extract import Extracted

HELP = """Write what MODEL has learned since BASE as a PEFT LoRA adapter.

MODEL and BASE are folders or Hub ids, each perhaps with `+ADAPTER`. Every matrix of the transformer
becomes the nearest one of rank R; biases and norms are stored whole. `kept` is the share of the
squared difference that the adapter keeps.

The result loads with `peft.PeftModel.from_pretrained`, and as `BASE+DIR` in recipes.
"""


@click.command(name="extract-lora", help=HELP, context_settings=SETTINGS)
@markdown_help
@click.argument("model")
@click.argument("base")
@click.option(
    "-r",
    "--rank",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Most singular values that are kept of a matrix.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write. Default: `adapters/<name of MODEL>`.",
)
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is there already, whole.")
@json_option
@click.pass_context
def extract_lora(
    context: click.Context,
    model: str,
    base: str,
    rank: int,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Extract, and say what was kept."""
    from ..engine.extract import extract_lora as extract

    with ends_with_failure(context, as_json=as_json):
        done = extract(model, base, output, rank=rank, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(_as_dict(done)))
    else:
        _show(done, base)


def _as_dict(done: Extracted) -> dict[str, object]:
    return {
        "status": "done",
        "output": str(done.path),
        "rank": done.rank,
        "kept": done.kept,
        "tensors": [asdict(part) for part in done.parts],
        "bytes_written": done.bytes_written,
        "seconds": round(done.seconds, 3),
        "notes": list(done.notes),
    }


def _show(done: Extracted, base: str) -> None:
    show_parts(done.parts, done.kept)
    show_notes(done.notes)
    told = f"{size_of(done.bytes_written)}, {duration_of(done.seconds)}"
    click.echo(f"extracted {len(done.parts)} tensors into {done.path}   {told}")
    click.echo(f"model: {json.dumps(f'{base}+{done.path}', ensure_ascii=False)}")
