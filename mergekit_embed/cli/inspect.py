"""`boom-inspect`: what is in the members, before they are merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .. import __version__
from ..errors import UsageError
from .console import ends_with_failure, printable, run, show_notes, shown_progress
from .options import SETTINGS, device_option, json_option, markdown_help

if TYPE_CHECKING:
    from ..inspect import By

HELP = """Show what is in the members of a RECIPE, or in MODELs, before they are merged.

How far each member has moved from the base, and where; whether members point the same way or pull
against each other; whether two are the same, or one drowns the others.

```sh
boom-inspect recipe.yaml
boom-inspect members/a members/b --base bert-base --html report.html
```

Every weight is read once, in little memory. What is learned of lengths and angles is kept, and
spares later merges and searches of the same members a pass.
"""

EPILOG = """Exit codes: 0 done; 2 the recipe, the models or the command line are wrong; 1 anything
else. What every number means: docs/inspect.md."""


@click.command(name="inspect", help=HELP, epilog=EPILOG, context_settings=SETTINGS)
@markdown_help
@click.argument("what", nargs=-1, required=True, metavar="RECIPE | MODEL...")
@click.option("--base", metavar="MODEL", help="What the models were fine-tuned from.")
@click.option(
    "--by",
    type=click.Choice(["model", "component", "layer", "module", "tensor"]),
    default="layer",
    show_default=True,
    help="The parts of the model that have a line each.",
)
@click.option(
    "--sample",
    type=click.IntRange(64),
    metavar="COUNT",
    help="Count signs and largest elements on so many elements of a tensor. Default: 32768.",
)
@click.option(
    "--rank",
    is_flag=True,
    help="Measure effective ranks too, which takes minutes for models of a billion weights.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with pictures, which needs nothing but itself.",
)
@device_option()
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but the numbers and errors.")
@click.version_option(__version__, prog_name="boom-inspect")
@click.pass_context
def inspect(
    context: click.Context,
    what: tuple[str, ...],
    base: str | None,
    by: By,
    sample: int | None,
    rank: bool,
    html: Path | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Look at the members, and tell what was found."""
    from ..inspect import SAMPLE, as_dict, models, recipe, remarks, text, write_page
    from ..inspect import inspect as look
    from ..report import require

    with ends_with_failure(context, as_json=as_json):
        if html is not None:
            require()
        if len(what) == 1 and what[0].endswith((".yaml", ".yml", ".json")):
            if base is not None:
                raise UsageError("a recipe names its base itself; --base goes with models")
            subject = recipe(what[0])
        else:
            subject = models(what, base)
        with shown_progress(quiet=quiet or as_json) as progress:
            facts = look(
                subject, device=device, sample=sample or SAMPLE, rank=rank, progress=progress
            )
        said = remarks(facts)
        if html is not None:
            write_page(html, facts)
        if as_json:
            page = {} if html is None else {"html": str(html)}
            told = {"status": "done", "warnings": said, **as_dict(facts), **page}
            click.echo(json.dumps(told))
            return
        for line in text.lines(facts, by):
            click.echo(printable(line))
        show_notes(printable(note) for note in (() if quiet else facts.notes))
        for warning in said:
            click.echo(click.style("warning: ", fg="yellow", bold=True) + printable(warning))
        if html is not None and not quiet:
            click.echo(f"wrote {html}")


def main() -> None:
    """Entry point of `boom-inspect`."""
    run(inspect)
