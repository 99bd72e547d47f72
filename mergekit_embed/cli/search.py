"""`boom-search`: find the parameters of a merge on a probe set."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from .console import bytes_from, duration_of, ends_with_failure, run, size_of
from .options import SETTINGS, device_option, json_option, markdown_help, report_option

if TYPE_CHECKING:
    from ..search import SearchPreview, SearchResult

HELP = """Find the parameters of the merge that a RECIPE describes, and write `found.yaml`.

The recipe has a `search` block that names a probe set, a small labelled sample. This one finds the
weights and the factor of Self-Positioning:

```yaml
merge_method: self_positioning
base_model: ./bert-base
models:
  - model: ./members/retrieval
  - model: ./members/similarity
search:
  data:
    questions: {path: questions.jsonl, kind: retrieval}
    pairs: {path: pairs.jsonl, kind: sts}
```

```sh
boom-search recipe.yaml --dry-run    # what would be searched, and what it costs
boom-search recipe.yaml              # searched/recipe/found.yaml, search.json
boom-merge searched/recipe/found.yaml
boom-merge recipe.yaml               # both at once
```

Of the members no more than a chunk is in memory, unless there is room to keep them (`--cache`).
"""

EPILOG = """Exit codes: 0 done; 2 the recipe, its data or the command line is wrong; 1 anything
else. A search that was interrupted is continued by the same command. All keys: docs/search.md."""


def cache_from(context: click.Context, parameter: click.Parameter, value: str) -> str | int:
    """`auto`, `off`, or bytes, for an option.

    Raises:
        click.BadParameter: when it is none of these.
    """
    if value in {"auto", "off"}:
        return value
    size = bytes_from(context, parameter, value)
    assert size is not None
    return size


@click.command(name="search", help=HELP, epilog=EPILOG, context_settings=SETTINGS)
@markdown_help
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder for `found.yaml` and `search.json`. Default: `searched/<recipe name>`.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check recipe, data and the headers of models, tell what would be done, and stop.",
)
@device_option("Where the model is")
@click.option(
    "--cache",
    default="auto",
    show_default=True,
    callback=cache_from,
    metavar="SIZE",
    help="Keep the members on the device if they take no more than this, such as `4GB`: `auto` for "
    "half of the memory that is free; `off` to read them from their files at every step.",
)
@click.option("--restart", is_flag=True, help="Begin anew where a search would be continued.")
@report_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(__version__, prog_name="boom-search")
@click.pass_context
def search(
    context: click.Context,
    recipe: Path,
    output: Path | None,
    dry_run: bool,
    device: str,
    cache: str | int,
    restart: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search, and tell what was found."""
    with ends_with_failure(context, as_json=as_json):
        if dry_run:
            _preview(recipe, output, as_json=as_json)
            return
        if report is not None:
            from ..report import require

            require()
        found = searched(
            recipe,
            output,
            device=device,
            cache=cache,
            restart=restart,
            quiet=quiet or as_json,
        )
        if report is not None:
            from ..search.page import write_page

            write_page(report, found.report)
        if as_json:
            click.echo(json.dumps(_as_dict(recipe, found)))
        elif not quiet:
            _show(found)


def searched(
    recipe: Path,
    output: Path | None = None,
    *,
    device: str = "auto",
    cache: str | int = "auto",
    restart: bool = False,
    quiet: bool = False,
) -> SearchResult:
    """Search with a recipe, telling on standard error how it goes; errors as those of `search`."""
    from ..search import search as find

    return find(
        recipe,
        output,
        device=device,
        cache=cache,
        restart=restart,
        progress=None if quiet else Lines(),
    )


class Lines:
    """Progress as plain lines: every judgement, and the loss of steps every ten seconds."""

    EVERY = 10.0

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def judged(self, label: str, value: float, best: float) -> None:
        """See `search.loop.Progress.judged`."""
        mark = "  best" if value == best else ""
        click.echo(f"{label}: {value:.6g}{mark}", err=True)
        self._spoke = time.monotonic()

    def stepped(self, number: int, loss: float) -> None:
        """See `search.loop.Progress.stepped`."""
        if time.monotonic() - self._spoke >= self.EVERY:
            self._spoke = time.monotonic()
            click.echo(f"step {number}: loss {loss:.6g} on its batch", err=True)


def _preview(recipe: Path, output: Path | None, *, as_json: bool) -> None:
    from ..search import preview_search

    told = preview_search(recipe, output)
    if as_json:
        content = {**dataclasses.asdict(told), "output": str(told.output)}
        click.echo(json.dumps({"status": "planned", **content}))
        return
    for line in _lines(told):
        click.echo(line)


def _lines(told: SearchPreview) -> Iterator[str]:
    """What a search would do, in words."""
    yield f"{told.method} by {told.strategy}, judged by {told.objective}"
    for label, size in told.members.items():
        yield f"  {label}   {size_of(size)}"
    groups = len(told.groups)
    shared = "as one" if groups == 1 else f"in {groups} groups: {', '.join(told.groups)}"
    yield f"{told.tensors} tensors, {shared}"
    if told.rows:
        rows = ", ".join(f"{name} {count}" for name, count in told.rows.items())
        yield f"probe set: {rows} rows"
        yield f"  {told.taught} batches to learn on, {told.judged} to judge on"
    if told.dropped:
        yield f"  {told.dropped} rows left out, as dev tasks have them"
    if told.mined:
        yield f"negatives are looked for first in {', '.join(told.mined)}"
    if told.dev:
        yield f"dev tasks: {', '.join(told.dev)}"
    steps = f"{told.steps} steps, " if told.steps else ""
    yield f"{steps}{told.judgements} judgements at most"
    gradients = f" and {size_of(told.gradient_bytes)} of gradients" if told.gradient_bytes else ""
    kept = size_of(sum(told.members.values()))
    yield f"memory: {size_of(told.model_bytes)} of model{gradients}, beside activations"
    yield f"        {kept} more where members are kept (--cache)"
    yield f"would write {told.output}"


def _show(found: SearchResult) -> None:
    if found.resumed:
        click.echo(f"continued: {found.resumed} points were judged before")
    weights = found.point.weights
    if len(weights) == 1:
        for label, weight in zip(found.report["members"], weights[0], strict=True):
            click.echo(f"{label}   {weight:.4f}")
        if found.report["method"] == "self_positioning":
            click.echo(f"lambda   {found.point.factor[0]:.4f}")
    else:
        click.echo(f"{len(weights)} groups of tensors, each with weights of its own")
    for name, told in (found.report.get("dev") or {}).items():
        lead = told.get("lead")
        behind = "" if lead is None else f"   found leads by {lead['mean']:+.4f}{_sure(lead)}"
        click.echo(f"dev   {name}: {told['mean']:.4f}{behind}")
    chosen = found.report.get("chosen", "found")
    if chosen != "found":
        click.echo(f"{found.recipe.name} is {chosen}, as it is better on the dev tasks")
    better = f"{found.start_value:.6g} -> {found.value:.6g}"
    click.echo(f"found {found.recipe}   {better}, {duration_of(found.seconds)}, {found.stopped}")
    shown = str(found.recipe)
    quoted = shown if re.fullmatch(r"[\w./-]+", shown) else f"'{shown}'"
    click.echo(f"boom-merge {quoted}")


def _sure(lead: dict[str, Any]) -> str:
    low, high = lead["interval"]
    return f" ({low:+.4f} to {high:+.4f}, drawing texts anew)"


def _as_dict(recipe: Path, found: SearchResult) -> dict[str, Any]:
    return {
        "status": "found",
        "recipe": str(recipe),
        "found": str(found.recipe),
        "members": found.report["members"],
        "weights": found.point.weights.tolist(),
        "lambda": found.point.factor.tolist(),
        "value": found.value,
        "start": found.start_value if math.isfinite(found.start_value) else None,
        "stopped": found.stopped,
        "seconds": round(found.seconds, 3),
        "dev": found.report.get("dev"),
        "chosen": found.report.get("chosen", "found"),
    }


def main() -> None:
    """Entry point of `boom-search`."""
    run(search)
