"""`boom-train update`: a trained model learns new data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from . import cards
from .console import ends_with_failure, show_notes
from .options import SETTINGS, json_option, markdown_help
from .training import as_dict, is_first, one_voice, shown_training, summary

if TYPE_CHECKING:
    from ..train.update import Update

HELP = """Teach a trained model new data, at a part of what training it again would cost.

One member is trained from the model's base, on the new data and on the core (a random part of the
data that the model has learnt from, 0.4 of it by default), and merged into the model with an equal
weight.

```sh
boom-train plan.yaml -o out --merge
boom-train update --model out/merged --new tickets.jsonl -o out-2 --merge
boom-train update --model out-2/merged --new sts:similar.jsonl -o out-3 --merge
```

Beside a model that `boom-train` has made lies what it has learnt from: base, data, settings and
seed. For another model say them with `--base`, `--history` and `--plan`.

The core of a data set is the same in every update. What is new in this one is history in the next.

A file's kind is `retrieval`, `pair`, `classification`, `clustering` or `sts`, before the path and a
colon. Without one, it is that of the first row: `label` makes it classification, `score` sts,
`sentence1` without a score pair, `query` or `anchor` retrieval.
"""


@click.command(name="update", help=HELP, context_settings=SETTINGS)
@markdown_help
@click.option("--model", required=True, metavar="MODEL", help="The model to update.")
@click.option(
    "--new", multiple=True, required=True, metavar="[KIND:]FILE", help="New rows; may be repeated."
)
@click.option(
    "--history",
    multiple=True,
    metavar="[KIND:]FILE",
    help="Rows that the model has learnt from; may be repeated. Default: the data of its plan.",
)
@click.option(
    "--history-ratio",
    type=float,
    metavar="R",
    help="The part of the history that is trained on again. Default: that of the update before, "
    "else 0.4.",
)
@click.option(
    "--base",
    metavar="MODEL",
    help="What the model was trained from. Default: what lies beside it says so.",
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="The plan whose settings hold for the update. Default: the one beside the model.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write. Default: `trained/update-1`, `trained/update-2`, ...",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the cost, and stop.")
@click.option("--merge", is_flag=True, help="Merge too, into `merged` in the folder.")
@click.option("--restart", is_flag=True, help="Train anew, also what was interrupted.")
@json_option
@click.pass_context
def update(
    context: click.Context,
    model: str,
    new: tuple[str, ...],
    history: tuple[str, ...],
    history_ratio: float | None,
    base: str | None,
    plan: Path | None,
    output: Path | None,
    dry_run: bool,
    merge: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Show what the update takes, or make it."""
    from ..train.update import plan_update

    with one_voice(), ends_with_failure(context, as_json=as_json):
        planned = plan_update(
            model, new, history, ratio=history_ratio, base=base, plan=plan, output=output
        )
        if not dry_run:
            _make(planned, merge=merge, restart=restart, as_json=as_json)
        elif as_json:
            told = {"status": "planned", "output": str(planned.target), **planned.about}
            click.echo(json.dumps({**told, "notes": list(planned.notes)}))
        else:
            for label, value in _rows(planned):
                click.echo(click.style(f"{label:>12}  ", bold=True) + value)


def _make(planned: Update, *, merge: bool, restart: bool, as_json: bool) -> None:
    from ..train.update import update as make

    if not as_json:
        show_notes(planned.notes)
    with shown_training(quiet=as_json or not is_first()) as progress:
        result = make(planned, merge=merge, restart=restart, progress=progress)
    if is_first():
        cards.write(one.path for one in result.merged)
    if as_json:
        told = {"status": "done", **as_dict(result), "update": planned.about}
        click.echo(json.dumps({**told, "notes": list(planned.notes)}))
        return
    click.echo(f"update {planned.about['number']}: {_cost(planned)}")
    for line in summary(result):
        click.echo(line)


def _rows(planned: Update) -> Iterator[tuple[str, str]]:
    about = planned.about
    yield "update", f"{about['number']} of {planned.model}"
    yield "base", planned.plan.model
    yield "output", str(planned.target)
    for name, told in about["new"].items():
        yield "new", f"{name}   {told['rows']:,} rows, {planned.plan.datasets[name].kind}"
    for name, told in about["history"].items():
        core = about["core"].get(name, {"rows": 0})["rows"]
        kind = planned.plan.datasets[name].kind
        yield "history", f"{name}   {core:,} of {told['rows']:,} rows, {kind}"
    yield "cost", _cost(planned)
    for note in planned.notes:
        yield "note", note


def _cost(planned: Update) -> str:
    saving = planned.saving
    steps = f"{saving.steps:,} of {saving.full_steps:,} steps"
    rows = f"{saving.rows:,} of {saving.full_rows:,} rows ({100 * saving.part:.0f} %)"
    return f"{rows}, {steps} of a full training"
