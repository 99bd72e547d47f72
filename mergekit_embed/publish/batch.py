"""Merges that are pushed: one or many, safe to run again, and each with its own outcome."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import MergeResult, Plan, execute
from ..engine.adapter_plan import AdapterPlan
from ..engine.adapters import merge_adapters
from ..engine.destination import check_destination
from ..engine.done import is_done
from ..engine.run import Progress
from ..errors import MergekitEmbedError, RecipeError, UsageError
from ..recipe import Recipe
from .card import write_card
from .push import Pushed, check_place, open_hub, push, quiet
from .stream import stream_to_hub
from .target import Target

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PLACE = "{name}"
"""Stands for what a recipe is called, in the name of a repository or a branch."""

AnyPlan = Plan | AdapterPlan

Shown = Callable[[], AbstractContextManager[Progress | None]]
"""Opens what is told how a merge gets on."""


def unseen() -> AbstractContextManager[Progress | None]:
    """Nothing is told."""
    return nullcontext()


@dataclass(frozen=True)
class Wish:
    """What is to be done with models once they are merged.

    Attributes:
        repository: OWNER/NAME, perhaps with `{name}`; None: what each recipe's `publish` says.
        private: for repositories that are made.
        revision: the branch, perhaps with `{name}`.
        create_pr: propose, and change nothing.
        overwrite: replace what is there on the Hub.
        loads: try whether models load before they are pushed.
        streams: send shards as they are merged, and keep nothing here.
    """

    repository: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    loads: bool = True
    streams: bool = False

    def target(self, recipe: Recipe) -> Target:
        """Where the result of a recipe goes.

        Raises:
            RecipeError: when only the recipe could tell, and does not.
            UsageError: when it is no name of a repository.
        """
        said, name = recipe.publish, hub_name(recipe)
        if self.repository is None and said is None:
            told = "is not there; say where to publish, or pass --push-to-hub OWNER/NAME"
            raise RecipeError([recipe.source.problem(("publish",), told)])
        repository = self.repository or (said.repository if said else "")
        revision = self.revision or (said.revision if said else None)
        return Target(
            repository.replace(PLACE, name),
            private=self.private or (said.private if said else False) or None,
            revision=revision and revision.replace(PLACE, name),
            create_pr=self.create_pr or (said.create_pr if said else False),
            overwrite=self.overwrite,
        )


def hub_name(recipe: Recipe) -> str:
    """What a recipe, or a point of its sweep, is called in names of the Hub."""
    whole = f"{recipe.name}-{recipe.point}" if recipe.point else recipe.name
    plain = re.sub(r"[^\w.-]+", "-", whole, flags=re.ASCII)
    return re.sub(r"([-.])[-.]+", r"\1", plain).strip("-.")


def targets_of(
    recipes: Sequence[Recipe], wish: Wish, taken: dict[tuple[str, str], Recipe] | None = None
) -> list[Target]:
    """Where each result goes.

    Args:
        recipes: whose results.
        wish: what is to be done with them.
        taken: the places of others, which those of these are added to.

    Raises:
        UsageError: when two would go to one place.
        RecipeError: as `Wish.target` does.
    """
    found = [wish.target(recipe) for recipe in recipes]
    taken = {} if taken is None else taken
    for recipe, target in zip(recipes, found, strict=True):
        if target.create_pr:
            continue
        place = (target.repository.lower(), target.branch)
        first = taken.setdefault(place, recipe)
        if first is not recipe:
            raise UsageError(
                f"{target.repository}: two models would go there; write '{PLACE}' in its name or "
                "in the revision, for what a recipe is called"
            )
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a merge that was to be pushed.

    Attributes:
        plan: of the merge.
        merged: what it took; None where its model was there already.
        pushed: where it is; None where it was not to be pushed.
    """

    plan: AnyPlan
    merged: MergeResult | None
    pushed: Pushed | None


def run_together(
    plans: Sequence[AnyPlan],
    targets: Sequence[Target] | None,
    wish: Wish,
    run_as: Mapping[str, Any],
    *,
    shown: Shown = unseen,
    show_progress: bool = False,
) -> Iterator[Outcome]:
    """Merge what was not merged before, in one run, and push one after the other.

    Args:
        plans: of the merges, made with `overwrite`; see `settled`.
        targets: where each goes; None: nowhere.
        wish: how to push.
        run_as: arguments of `execute`.
        shown: opens what is told how merges get on, for as long as one runs.
        show_progress: let the Hub's client draw its bars.

    Yields:
        the outcome of each as it is pushed.

    Raises:
        MergekitEmbedError: what `execute`, `push` and `stream_to_hub` raise, at the first failure.
    """
    if wish.streams and targets is not None:
        yield from _streamed(plans, targets, run_as, shown)
        return
    api = open_hub() if targets is not None else None
    if api is not None:
        for plan, target in zip(plans, targets or (), strict=True):
            check_one(api, plan, target)
    wanted = [plan for plan in plans if isinstance(plan, Plan) and not is_done(plan)]
    results = []
    if wanted:
        with shown() as progress:
            results = execute(wanted, progress=progress, **run_as)
    done: dict[Path, MergeResult] = {
        plan.output: result for plan, result in zip(wanted, results, strict=True)
    }
    for place, plan in enumerate(plans):
        if isinstance(plan, AdapterPlan):
            with shown() as progress:
                done[plan.output] = merge_adapters(plan, progress=progress)
        pushed = None
        if targets is None:
            write_card(plan.output)
        else:
            with of_recipe(plan.recipe):
                pushed = push(
                    plan.output,
                    targets[place],
                    loads=wish.loads,
                    show_progress=show_progress,
                    api=api,
                )
        yield Outcome(plan, done.get(plan.output), pushed)


@contextmanager
def of_recipe(recipe: Recipe) -> Iterator[None]:
    """Errors in the block say which recipe they are about, unless they know better."""
    try:
        yield
    except MergekitEmbedError as error:
        error.recipe = error.recipe or recipe.source.shown
        raise


def check_one(api: HfApi, plan: AnyPlan, target: Target) -> None:
    """Refuse a place that a result could not be pushed to; see `check_place`."""
    with quiet(show_progress=False), of_recipe(plan.recipe):
        check_place(api, target, plan.recipe if isinstance(plan, Plan) else None)


def _streamed(
    plans: Sequence[AnyPlan],
    targets: Sequence[Target],
    run_as: Mapping[str, Any],
    shown: Shown,
) -> Iterator[Outcome]:
    options = dict(run_as)
    if options.pop("executor", "local") != "local" or options.pop("ray_address", None):
        raise UsageError("straight to the Hub goes what this machine merges; leave out --executor")
    api = open_hub()
    for plan, target in zip(plans, targets, strict=True):
        if isinstance(plan, AdapterPlan):
            raise UsageError(
                f"{plan.recipe.source.shown}: an adapter is small, and not streamed; push it with "
                "--push-to-hub alone"
            )
        with of_recipe(plan.recipe), shown() as progress:
            found = stream_to_hub(plan, target, progress=progress, api=api, **options)
        yield Outcome(plan, found.merge, found.pushed)


def settled(plan: AnyPlan, *, overwrite: bool, streams: bool) -> AnyPlan:
    """A plan that was made with `overwrite`, with what was really asked for.

    A model that the same merge has put there may stay, and is pushed as it is.

    Raises:
        OutputExistsError: when the place holds something else, and that is not to be replaced.
    """
    if streams:
        return plan
    asked = replace(plan, overwrite=overwrite)
    if isinstance(asked, AdapterPlan):
        asked.check()
    elif not is_done(asked):
        check_destination(asked)
    return asked
