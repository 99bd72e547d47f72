"""`boom-merge`: merge models as recipes say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .. import __version__
from ..errors import MergekitEmbedError, UsageError
from . import adapter, cards, publishing, repeats
from .console import (
    bytes_from,
    failure,
    run,
    show_notes,
    shown_progress,
)
from .options import SETTINGS, device_option, markdown_help
from .plans import show_plans
from .results import as_dict, cost_of, point_of, summary

if TYPE_CHECKING:
    from ..engine import MergeResult, Plan, Planner
    from ..engine.adapter_plan import AdapterPlan
    from ..recipe import Recipe

Recipes = tuple["Path | Recipe", ...]
Plans = list["Plan | AdapterPlan"]

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

With `--push-to-hub` the model is put on the Hub, where `boom-push` would put it, and run again
that goes on where it was.

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
@device_option()
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
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page about members and merge (HTML with pictures, which needs nothing but "
    "itself). The members are read once more for it.",
)
@click.option(
    "--members",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For a `merge_lineage.json`: a folder in which its members lie. Default: beside the "
    "lineage, and in the working directory. May be given several times.",
)
@publishing.options
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a recipe on standard output."
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(__version__, prog_name="boom-merge")
@click.pass_context
def merge(
    context: click.Context,
    /,
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
    report: Path | None,
    members: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **pushing: Any,
) -> None:
    """Check and plan every recipe, then run all together."""
    try:
        names = _distinct_names(recipes)
        targets = [output / n if output and len(names) > 1 else output for n in names]
        again = repeats.wanted(recipes, members)
        given = tuple(again[one].recipe if one in again else one for one in recipes)
        run_as = {
            "device": device,
            "restart": restart,
            "verify": verify,
            "memory": memory,
            "executor": executor,
            "ray_address": ray_address,
        }

        def planned_of(some: Recipes, places: list[Path | None], *, overwrite: bool) -> Plans:
            return _planned(some, places, overwrite=overwrite, as_json=as_json, context=context)

        def searched_of(some: Recipes) -> Recipes:
            return tuple(_searched(one, device, restart, quiet=quiet or as_json) for one in some)

        wanted = publishing.wanted(pushing, repeats=bool(again))
        if wanted is not None:
            if report is not None:
                raise UsageError("--report goes with a plain merge; push its result with boom-push")
            ways = publishing.Ways(planned_of, searched_of, run_as, overwrite, as_json, quiet)
            context.exit(publishing.run(given, targets, wanted, ways, dry_run=dry_run))
        planned = planned_of(given, targets, overwrite=overwrite)
        if not dry_run and any(one.search is not None for one in _loaded(given)):
            planned = planned_of(searched_of(given), targets, overwrite=overwrite)
        if dry_run:
            show_plans(planned, as_json=as_json)
        else:
            if report is None:
                _merge_all(planned, run_as, as_json=as_json, quiet=quiet)
            else:
                from ..inspect.merge_page import reported

                with reported(report, planned, device) as write:
                    write(_merge_all(planned, run_as, as_json=as_json, quiet=quiet))
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
) -> list[MergeResult]:
    from ..engine import Plan

    models = [one for one in planned if isinstance(one, Plan)]
    results = _merge_models(models, run_as, as_json=as_json, quiet=quiet) if models else []
    for one in planned:
        if not isinstance(one, Plan):
            adapter.run_one(one, dry_run=False, as_json=as_json, quiet=quiet)
    return results


def _merge_models(
    planned: list[Plan], run_as: dict[str, Any], *, as_json: bool, quiet: bool
) -> list[MergeResult]:
    from ..engine import execute

    with shown_progress(quiet=quiet or as_json) as progress:
        results = execute(planned, progress=progress, **run_as)
    cards.write(one.path for one in results)
    for one, result in zip(planned, results, strict=True):
        if as_json:
            named = {"recipe": one.recipe.source.shown, **point_of(one)}
            click.echo(json.dumps({"status": "done", **named, **as_dict(result)}))
            continue
        if quiet:
            continue
        show_notes(result.notes)
        if result.resumed:
            click.echo(f"continued: {result.resumed} of {len(one.jobs)} tensors were there")
        click.echo(summary(result, alone=len(results) == 1))
        loader = "SentenceTransformer" if one.shell.modules else "AutoModel.from_pretrained"
        click.echo(f"{loader}({json.dumps(str(result.path), ensure_ascii=False)})")
    if len(results) > 1 and not (as_json or quiet):
        click.echo(f"{len(results)} models in one run   {cost_of(results[0])}")
    return results


def main() -> None:
    """Entry point of `boom-merge`."""
    run(merge)
