"""`boom-merge`: merge models as recipes say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from ..errors import MergekitEmbedError, UsageError
from . import adapter, cards, repeats
from .console import (
    bytes_from,
    duration_of,
    failure,
    run,
    show_notes,
    shown_progress,
    size_of,
)
from .options import SETTINGS, markdown_help

if TYPE_CHECKING:
    from ..engine import MergeResult, Plan, Planner
    from ..engine.adapter_plan import AdapterPlan
    from ..recipe import Recipe

HELP = """Merge text-embedding models as a RECIPE says, and write a model folder.

The folder loads in sentence-transformers and transformers as the members do. A recipe is a YAML
file; this one averages two fine-tunes of one base:

```yaml
merge_method: linear
models:
  - model: ./bert-legal
  - model: ./bert-medical
    parameters: {weight: 0.5}
```

A recipe with a `search` block is searched first, as `boom-search` does, then merged. The
`merge_lineage.json` of a merged model is a recipe too: its merge is made again, from members that
have the hashes of then, and has to give the same bytes.

Look before you leap with `--dry-run`. Several recipes are all checked before the first is run.
"""

EPILOG = """Exit codes: 0 done; 2 the recipe or the command line is wrong, nothing was touched; 1
anything else, and the destination is as it was before. What is done of a merge that was
interrupted is kept beside it, and the same command continues. All keys of a recipe:
docs/recipe.md."""


@click.command(help=HELP, epilog=EPILOG, context_settings=SETTINGS)
@markdown_help
@click.argument(
    "recipes", nargs=-1, required=True, metavar="RECIPE...", type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write. Default: the recipe's `output`, else `merged/<recipe name>`. With "
    "several recipes, each gets a folder of its name in DIR.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a model (or adapter) that is there already, whole.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Begin anew where an interrupted merge would be continued.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Before continuing an interrupted merge, compare its tensors and its members with the "
    "hashes of then.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be done (members, bytes, files, memory, disk) and stop.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="Where to compute: `auto` (a CUDA device when there is one), `cpu`, `cuda`, `cuda:1`.",
)
@click.option(
    "--memory",
    callback=bytes_from,
    metavar="SIZE",
    help="Stay below so much memory, such as `512MB` or `2GB`. Default: what is read is kept for "
    "another pass up to 256 MB; `--dry-run` tells what that comes to.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to run: on threads of this machine, or on the machines of a Ray cluster, which see "
    "models and output on the same storage (docs/scaling.md).",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="The head of the Ray cluster, as printed by `ray start --head`. Default: the cluster that "
    "this machine belongs to, else this machine alone.",
)
@click.option(
    "--members",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For a `merge_lineage.json`: a folder in which its members lie. Default: beside the "
    "lineage, and in the working directory. May be given several times.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a recipe on standard output."
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(__version__, prog_name="boom-merge")
@click.pass_context
def merge(
    context: click.Context,
    recipes: tuple[Path, ...],
    output: Path | None,
    overwrite: bool,
    restart: bool,
    verify: bool,
    dry_run: bool,
    device: str,
    memory: int | None,
    executor: str,
    ray_address: str | None,
    members: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Check and plan every recipe, then run all together."""
    try:
        names = _distinct_names(recipes)
        targets = [output / n if output and len(names) > 1 else output for n in names]
        again = repeats.wanted(recipes, members)
        given = tuple(again[one].recipe if one in again else one for one in recipes)
        planned = _planned(given, targets, overwrite=overwrite, as_json=as_json, context=context)
        if not dry_run and any(one.search is not None for one in _loaded(given)):
            found = tuple(_searched(one, device, restart, quiet=quiet or as_json) for one in given)
            planned = _planned(
                found, targets, overwrite=overwrite, as_json=as_json, context=context
            )
        if dry_run:
            _show_plans(planned, as_json=as_json)
        else:
            run_as = {
                "device": device,
                "restart": restart,
                "verify": verify,
                "memory": memory,
                "executor": executor,
                "ray_address": ray_address,
            }
            _merge_all(planned, run_as, as_json=as_json, quiet=quiet)
            repeats.compare(again.values(), planned, quiet=quiet or as_json)
    except MergekitEmbedError as error:
        running = str(recipes[0]) if len(recipes) == 1 else None
        failure(error, as_json=as_json, recipe=error.recipe or running)
        context.exit(error.exit_code)


def _distinct_names(recipes: tuple[Path, ...]) -> list[str]:
    """What the recipes are called, which their folders are called after."""
    names = [repeats.name_of(recipe) for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recipes are called {name}; their models would share a folder")
    return names


def _loaded(recipes: tuple[Path | Recipe, ...]) -> list[Recipe]:
    from ..recipe import load_all

    return [point for recipe in recipes for point in load_all(recipe)]


def _searched(recipe: Path | Recipe, device: str, restart: bool, *, quiet: bool) -> Path | Recipe:
    """The recipe with the parameters that its search has found; itself where it has none."""
    from .search import searched

    if not isinstance(recipe, Path) or all(one.search is None for one in _loaded((recipe,))):
        return recipe
    return searched(recipe, device=device, restart=restart, quiet=quiet).recipe


def _planned(
    recipes: tuple[Path | Recipe, ...],
    targets: list[Path | None],
    *,
    overwrite: bool,
    as_json: bool,
    context: click.Context,
) -> list[Plan | AdapterPlan]:
    """The plans of every recipe, or every recipe's errors.

    One with a search is planned at the parameters that it starts from, which are as many.
    """
    from ..recipe import load_all

    found: list[Plan | AdapterPlan] = []
    failed: list[MergekitEmbedError] = []
    planner: Planner | None = None
    for recipe, target in zip(recipes, targets, strict=True):
        try:
            points = load_all(recipe)
            from ..engine import Planner, plan_many, refuse_shared_outputs

            planner = planner or Planner()
            for point in (replace(point, search=None) for point in points):
                found += plan_many(point, target, overwrite=overwrite, planner=planner)
            refuse_shared_outputs(found)
        except MergekitEmbedError as error:
            shown = str(recipe) if isinstance(recipe, Path) else recipe.source.shown
            failure(error, as_json=as_json, recipe=shown)
            failed.append(error)
    if failed:
        context.exit(max(error.exit_code for error in failed))
    return found


def _merge_all(
    planned: list[Plan | AdapterPlan], run_as: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    from ..engine import Plan

    models = [one for one in planned if isinstance(one, Plan)]
    if models:
        _merge_models(models, run_as, as_json=as_json, quiet=quiet)
    for one in planned:
        if not isinstance(one, Plan):
            adapter.run_one(one, dry_run=False, as_json=as_json, quiet=quiet)


def _merge_models(
    planned: list[Plan], run_as: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    from ..engine import execute

    with shown_progress(quiet=quiet or as_json) as progress:
        results = execute(planned, progress=progress, **run_as)
    cards.write(one.path for one in results)
    for one, result in zip(planned, results, strict=True):
        if as_json:
            named = {"recipe": one.recipe.source.shown, **_point_of(one)}
            click.echo(json.dumps({"status": "done", **named, **_as_dict(result)}))
            continue
        if quiet:
            continue
        show_notes(result.notes)
        if result.resumed:
            click.echo(f"continued: {result.resumed} of {len(one.jobs)} tensors were there")
        click.echo(_summary(result, alone=len(results) == 1))
        loader = "SentenceTransformer" if one.shell.modules else "AutoModel.from_pretrained"
        click.echo(f"{loader}({json.dumps(str(result.path), ensure_ascii=False)})")
    if len(results) > 1 and not (as_json or quiet):
        click.echo(f"{len(results)} models in one run   {_cost(results[0])}")


def _point_of(planned: Plan) -> dict[str, str]:
    return {"point": planned.recipe.point} if planned.recipe.point else {}


def _summary(result: MergeResult, *, alone: bool) -> str:
    models = "1 model" if result.members == 1 else f"{result.members} models"
    cost = f", {_cost(result)}" if alone else ""
    return f"merged {models} into {result.path}   {size_of(result.bytes_written)}{cost}"


def _cost(result: MergeResult) -> str:
    times = result.bytes_read / max(result.bytes_in, 1)
    often = "once" if times < 1.01 else f"{times:.1f} times"
    read = f"{size_of(result.bytes_in)} read {often}"
    if times < 0.99:  # of a merge that was continued
        read = f"{size_of(result.bytes_read)} of {size_of(result.bytes_in)} read"
    return f"{duration_of(result.seconds)}, peak {size_of(result.peak_memory)}, {read}"


def _as_dict(result: MergeResult) -> dict[str, Any]:
    return {
        "output": str(result.path),
        "members": result.members,
        "seconds": round(result.seconds, 3),
        "bytes_read": result.bytes_read,
        "bytes_in": result.bytes_in,
        "bytes_written": result.bytes_written,
        "peak_memory": result.peak_memory,
        "notes": list(result.notes),
        "resumed": result.resumed,
    }


def _show_plans(planned: list[Plan | AdapterPlan], *, as_json: bool) -> None:
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
            json.dumps({"status": "planned", "recipe": recipe, **_point_of(planned), **facts})
        )
        return
    rows = [
        ("recipe", recipe),
        *(("point", point) for point in _point_of(planned).values()),
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


def main() -> None:
    """Entry point of `boom-merge`."""
    run(merge)
