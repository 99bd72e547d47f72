"""`boom-merge` with `--push-to-hub`, `--publish` or `--keep-going`: merges and what follows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import rich_click as click
from click.exceptions import Exit

from ..errors import MergekitEmbedError, UsageError
from .console import failure, show_notes, shown_progress
from .plans import show_plans
from .push import summary as push_summary
from .results import as_dict, cost_of, point_of, summary

if TYPE_CHECKING:
    from ..engine import Plan
    from ..engine.adapter_plan import AdapterPlan
    from ..publish.batch import Outcome, Wish
    from ..publish.target import Target
    from ..recipe import Recipe

    AnyRecipe = Path | Recipe
    AnyPlan = Plan | AdapterPlan

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="Push what was merged to a repository of the Hub. `{name}` in it stands for the name "
        "of a recipe.",
    ),
    click.option("--publish", is_flag=True, help="Push to where the recipe's `publish` says."),
    click.option(
        "--stream-to-hub",
        is_flag=True,
        help="Send each shard while the next is merged, and keep nothing here: the disk holds two "
        "shards at most.",
    ),
    click.option("--private", is_flag=True, help="Make the repository private, if it is made."),
    click.option("--revision", metavar="BRANCH", help="The branch to push to, made if need be."),
    click.option(
        "--create-pr", is_flag=True, help="Propose the files as a pull request; change nothing."
    ),
    click.option(
        "--overwrite-on-hub",
        is_flag=True,
        help="Replace what the repository holds, if another merge or somebody's hand put it there.",
    ),
    click.option(
        "--skip-load",
        is_flag=True,
        help="Do not try whether the model loads in sentence-transformers before it is pushed.",
    ),
    click.option(
        "--keep-going",
        is_flag=True,
        help="Run each recipe by itself, and go on with the next when one fails.",
    ),
)


def options(command: Command) -> Command:
    """Give a command the options of this module, which it takes as one mapping."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Wanted:
    """What was asked for: how to push, if at all, and whether one failure ends all."""

    wish: Wish | None
    keep_going: bool


def wanted(given: Mapping[str, Any], *, repeats: bool) -> Wanted | None:
    """What the options ask for; None for a merge and nothing else.

    Args:
        given: the options of this module.
        repeats: a recipe is the lineage of a model.

    Raises:
        UsageError: when they contradict each other.
    """
    pushes = given["push_to_hub"] is not None or given["publish"]
    if given["push_to_hub"] is not None and given["publish"]:
        raise UsageError("--push-to-hub and --publish both say where to push; choose one")
    for name in (
        "stream_to_hub",
        "private",
        "revision",
        "create_pr",
        "overwrite_on_hub",
        "skip_load",
    ):
        if given[name] and not pushes:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} needs --push-to-hub OWNER/NAME, or --publish")
    if not pushes and not given["keep_going"]:
        return None
    if repeats:
        raise UsageError(
            "a merge_lineage.json is merged by itself; push what comes of it with boom-push"
        )
    if not pushes:
        return Wanted(None, keep_going=True)
    from ..publish.batch import Wish

    wish = Wish(
        repository=given["push_to_hub"],
        private=given["private"],
        revision=given["revision"],
        create_pr=given["create_pr"],
        overwrite=given["overwrite_on_hub"],
        loads=not given["skip_load"],
        streams=given["stream_to_hub"],
    )
    return Wanted(wish, given["keep_going"])


class PlannedOf(Protocol):
    """Plans recipes, or tells of their errors and exits."""

    def __call__(
        self, some: tuple[AnyRecipe, ...], places: list[Path | None], *, overwrite: bool
    ) -> list[AnyPlan]:
        """The plans, in the order of the recipes and of their sweeps."""


@dataclass(frozen=True)
class Ways:
    """How `boom-merge` plans, searches, runs and tells."""

    planned_of: PlannedOf
    searched_of: Callable[[tuple[AnyRecipe, ...]], tuple[AnyRecipe, ...]]
    run_as: Mapping[str, Any]
    overwrite: bool
    as_json: bool
    quiet: bool


def run(
    recipes: Sequence[AnyRecipe],
    places: Sequence[Path | None],
    asked: Wanted,
    ways: Ways,
    *,
    dry_run: bool,
) -> int:
    """Merge and push; the exit code."""
    taken: dict[tuple[str, str], Recipe] = {}
    groups = [(tuple(recipes), list(places))]
    if asked.keep_going:
        groups = [((r,), [p]) for r, p in zip(recipes, places, strict=True)]
    failed = 0
    for some, where in groups:
        try:
            _run_group(some, where, asked.wish, ways, taken, dry_run=dry_run)
        except MergekitEmbedError as error:
            running = str(some[0]) if len(some) == 1 and isinstance(some[0], Path) else None
            failure(error, as_json=ways.as_json, recipe=error.recipe or running)
            failed = max(failed, error.exit_code)
        except Exit as told:  # its errors were told of
            failed = max(failed, told.exit_code)
    return 1 if failed and asked.keep_going else failed


def _run_group(
    recipes: tuple[AnyRecipe, ...],
    places: list[Path | None],
    wish: Wish | None,
    ways: Ways,
    taken: dict[tuple[str, str], Recipe],
    *,
    dry_run: bool,
) -> None:
    from ..publish.batch import Wish, run_together, settled, targets_of

    streams = wish is not None and wish.streams
    plans = ways.planned_of(recipes, places, overwrite=True)
    first = [plan.recipe for plan in plans]
    targets = targets_of(first, wish, taken) if wish is not None else None
    if dry_run:
        show_plans(
            [settled(p, overwrite=ways.overwrite, streams=streams) for p in plans],
            as_json=ways.as_json,
        )
        _show_targets(targets or [], as_json=ways.as_json)
        return
    if any(recipe.search is not None for recipe in _loaded(recipes)):
        plans = ways.planned_of(ways.searched_of(recipes), places, overwrite=True)
    plans = [settled(plan, overwrite=ways.overwrite, streams=streams) for plan in plans]
    silent = ways.quiet or ways.as_json
    outcomes = run_together(
        plans,
        targets,
        wish or Wish(),
        ways.run_as,
        shown=lambda: shown_progress(quiet=silent),
        show_progress=not silent and sys.stderr.isatty(),
    )
    for outcome in outcomes:
        _show(outcome, ways, streams=streams)


def _loaded(recipes: tuple[AnyRecipe, ...]) -> list[Recipe]:
    from ..recipe import load_all

    return [point for recipe in recipes for point in load_all(recipe)]


def _show_targets(targets: Sequence[Target], *, as_json: bool) -> None:
    for target in targets:
        if as_json:
            told = {"status": "planned", **asdict(target), "revision": target.branch}
            click.echo(json.dumps(told))
        else:
            at = "a pull request" if target.create_pr else target.branch
            click.echo(
                click.style(f"{'pushes to':>12}  ", bold=True) + f"{target.repository} ({at})"
            )


def _show(outcome: Outcome, ways: Ways, *, streams: bool) -> None:
    """One line on a recipe, or a few for people."""
    plan, merged, pushed = outcome.plan, outcome.merged, outcome.pushed
    if ways.as_json:
        told: dict[str, Any] = {"status": "done", "recipe": plan.recipe.source.shown}
        told |= {**point_of(plan), "output": str(plan.output), "merged": merged is not None}
        told |= as_dict(merged) if merged else {}
        told |= {"pushed": asdict(pushed)} if pushed else {}
        click.echo(json.dumps(told))
        return
    if ways.quiet:
        return
    if merged is None:
        click.echo(f"merged before   {plan.output}")
    else:
        show_notes(merged.notes)
        on_its_way = f"merged on its way to the Hub   {cost_of(merged)}"
        click.echo(on_its_way if streams else summary(merged, alone=True))
    if pushed is not None:
        show_notes(pushed.notes)
        click.echo(push_summary(pushed))
