"""From a recipe with a `search` block to a `SearchSpec`, with every error in one go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Problem, RecipeError
from ..recipe import Recipe, load
from ..recipe.shape import Words, shape_problem, unknown
from ..recipe.source import Source, in_file_order
from ..recipe.values import Constant
from ..recipe.values import Path as Place
from ..train.plan import validate as validate_plan
from ..train.schema import DatasetEntry, TaskEntry
from ..train.specs import TrainingPlan
from .schema import OF_THE_PROBE, SearchEntry
from .specs import Descent, SearchSpec

DESCENDED = ("self_positioning", "task_arithmetic", "linear")
"""Methods whose coefficients have gradients here."""

WEIGHED = ("task_arithmetic", "linear")
"""Methods of which a member may be left out by a weight of 0."""

ANY: tuple[str, ...] = ()

FITTING = {
    "gradient": DESCENDED,
    "few_shot": WEIGHED,
    "greedy_soup": WEIGHED,
    "forward_selection": WEIGHED,
    "cma_es": ANY,
    "optuna": ANY,
}
"""The methods whose parameters each strategy can find; those of any where none is named."""

BOXED = ("cma_es", "optuna")
"""Strategies that search parameters within bounds."""

GRADIENT_ONLY = (
    "steps",
    "optimizer",
    "learning_rate",
    "momentum",
    "learning_rate_schedule",
    "mu",
    "l1",
    "evaluate_every",
    "patience",
    "groups",
)
"""Keys that only descent along a gradient has a use for."""


def load_search(recipe: str | Path | Mapping[str, Any] | Recipe) -> SearchSpec:
    """Validate a recipe and its `search` block.

    Raises:
        RecipeError: with every problem of either.
    """
    found = load(recipe)
    origin = found.source
    if found.search is None:
        message = "is not there; it says what to search on, such as `search: {data: {...}}`"
        raise RecipeError([origin.problem(("search",), message)])
    parsed = _parse(origin)
    problems = list(_problems(found, parsed))
    folders, missing = _dev(origin, parsed)
    problems += missing
    try:
        probe = _probe(found, parsed) if parsed.data else None
    except RecipeError as error:
        raise RecipeError(in_file_order([*problems, *error.problems])) from error
    problems += _problems_of_axes(origin, parsed, probe, folders)
    if problems:
        raise RecipeError(in_file_order(problems))
    return SearchSpec(
        recipe=replace(found, search=None),
        probe=probe,
        strategy=parsed.strategy,
        objective=parsed.objective,
        groups=parsed.groups,
        blocks=parsed.blocks,
        descent=_descent(parsed),
        rows=parsed.probe,
        max_length=parsed.max_length,
        held_out=parsed.held_out,
        seed=parsed.seed,
        balanced=parsed.balance == "tasks",
        time_limit=parsed.time_limit,
        temperature=parsed.temperature,
        dev=folders,
        drops_overlap=parsed.overlap == "drop",
        falls_back=parsed.fallback,
        bounds={name: (least, most) for name, (least, most) in parsed.parameters.items()},
        evaluations=parsed.evaluations,
        axes={name: tuple(tasks) for name, tasks in parsed.axes.items()},
    )


def _parse(origin: Source) -> SearchEntry:
    from pydantic import ValidationError

    block = _block(origin)
    words = Words(_unknown_key, _example, lambda path: str(path[-1]).removesuffix("s"))
    try:
        return SearchEntry.model_validate(block.data)
    except ValidationError as error:
        found = [shape_problem(block, detail, words) for detail in error.errors()]
        raise RecipeError(in_file_order(found)) from error


def _block(origin: Source) -> Source:
    """The block as a source of its own, which knows its place in the file."""
    return Source(origin.data["search"], origin.file, origin.shown, (*origin.prefix, "search"))


def _unknown_key(path: Place) -> str:
    known: Mapping[str, Any] = SearchEntry.model_fields
    if len(path) > 1:
        entry = DatasetEntry if path[0] == "data" else TaskEntry
        known = entry.model_fields
    return unknown("key", str(path[-1]), known)


def _example(path: Place) -> str:
    return "{path: reviews.jsonl, kind: retrieval}" if path and path[0] == "data" else "{data: ...}"


def _descent(parsed: SearchEntry) -> Descent:
    return Descent(
        steps=parsed.steps,
        optimizer=parsed.optimizer,
        learning_rate=parsed.rate(),
        momentum=parsed.momentum,
        schedule=parsed.learning_rate_schedule,
        mu=parsed.mu,
        l1=parsed.l1,
        evaluate_every=parsed.evaluate_every,
        patience=parsed.patience,
    )


def _problems(recipe: Recipe, parsed: SearchEntry) -> Iterator[Problem]:
    """What does not go together."""
    origin, method = recipe.source, recipe.method.name
    fitting = FITTING[parsed.strategy]
    if fitting and method not in fitting:
        message = f"{parsed.strategy} finds the weights of {', '.join(fitting)}, not of {method}"
        yield origin.problem(("search", "strategy"), message)
    if parsed.mu and method != "self_positioning":
        message = f"is of self_positioning; {method} has no lambda that is searched"
        yield origin.problem(("search", "mu"), message, key=True)
    if parsed.l1 and (method == "self_positioning" or is_normalised(recipe)):
        message = "is of coefficients that may be 0 each by itself; here only their ratios count"
        yield origin.problem(("search", "l1"), message, key=True)
    if parsed.objective == "loss" and not parsed.data:
        message = "is required and not there; the loss is measured on it"
        yield origin.problem(("search", "data"), message)
    if parsed.objective != "loss" and parsed.data:
        message = "is for the loss; points are judged by dev tasks here, leave it out"
        yield origin.problem(("search", "data"), message, key=True)
    if parsed.objective != "loss" and "balance" in parsed.model_fields_set:
        message = "is of the loss; points are judged by dev tasks here, leave it out"
        yield origin.problem(("search", "balance"), message, key=True)
    if parsed.objective != "loss" and not parsed.dev:
        message = f'"{parsed.objective}" judges by dev tasks; name their folders under `dev:`'
        yield origin.problem(("search", "objective"), message)
    if parsed.objective != "loss" and parsed.strategy == "gradient":
        message = "a metric has no gradient; judge by the loss, or choose greedy_soup"
        yield origin.problem(("search", "objective"), message)
    if parsed.strategy != "gradient":
        for key in sorted(parsed.model_fields_set & set(GRADIENT_ONLY)):
            message = f"is of the strategy gradient, not of {parsed.strategy}"
            yield origin.problem(("search", key), message, key=True)
    yield from _problems_of_bounds(recipe, parsed)
    yield from _problems_of_recipe(recipe)


def _problems_of_bounds(recipe: Recipe, parsed: SearchEntry) -> Iterator[Problem]:
    """What is wrong with the parameters that are searched within bounds."""
    origin, known = recipe.source, recipe.method.parameters
    if parsed.strategy not in BOXED:
        for key in sorted({"parameters", "evaluations"} & parsed.model_fields_set):
            message = f"is of the strategies {' and '.join(BOXED)}, not of {parsed.strategy}"
            yield origin.problem(("search", key), message, key=True)
        return
    if not parsed.parameters:
        message = (
            f"{parsed.strategy} needs the parameters to search, such as {{lambda: [0.5, 1.5]}}"
        )
        yield origin.problem(("search", "parameters"), message)
    for name, (least, most) in parsed.parameters.items():
        place: Place = ("search", "parameters", name)
        if name not in known or known[name].type is not float:
            numbers = [one for one, parameter in known.items() if parameter.type is float]
            yield origin.problem(place, unknown("parameter", name, numbers), key=True)
        elif not least < most:
            yield origin.problem(place, f"the least, {least:g}, is not below the most, {most:g}")
        elif wrong := known[name].check(least) or known[name].check(most):
            yield origin.problem(place, wrong)


def _problems_of_axes(
    origin: Source, parsed: SearchEntry, probe: TrainingPlan | None, dev: Sequence[Path]
) -> list[Problem]:
    """What is wrong with the axes that are traded off."""
    place: Place = ("search", "axes")
    if not parsed.axes:
        return []
    if parsed.strategy != "optuna":
        message = f"is of the strategy optuna, not of {parsed.strategy}"
        return [origin.problem(place, message, key=True)]
    if len(parsed.axes) < 2:
        return [origin.problem(place, "needs two axes or more; one is traded off for the other")]
    if parsed.objective == "loss":
        tasks = [] if probe is None else [one.task for one in probe.datasets.values()]
        known = list(dict.fromkeys(tasks))
    else:
        known = [folder.name for folder in dev]
    return [
        origin.problem((*place, axis, index), unknown("task", task, known))
        for axis, tasks in parsed.axes.items()
        for index, task in enumerate(tasks)
        if task not in known
    ]


def is_normalised(recipe: Recipe) -> bool:
    """Whether the method divides weights by their sum."""
    known = recipe.method.parameters.get("normalize")
    if known is None:
        return False
    given = recipe.parameters.get("normalize")
    return bool(given.scalar if isinstance(given, Constant) else known.default)


def _problems_of_recipe(recipe: Recipe) -> Iterator[Problem]:
    """What a recipe may say that the model which is searched with could not follow."""
    origin = recipe.source
    for key, wanted in (
        ("sweep", "search one point; what is found can be swept around"),
        ("slices", "list whole models"),
        ("post", "edit what was found: add it to found.yaml"),
        ("tokenizer_source", "give the members one vocabulary first"),
        ("tokenizer", "give the members one vocabulary first"),
        ("pad_to_multiple_of", "add it to found.yaml"),
        ("adapter_output", "search for a model, and extract the adapter from it"),
    ):
        if origin.data.get(key) is not None or (key == "sweep" and recipe.point is not None):
            yield origin.problem((key,), f"does not go with a search; {wanted}", key=True)
    for name in recipe.nested:
        message = f"{name} is a recipe; merge it first, and search with the model"
        yield origin.problem(("models",), message)
    if "normalize" in recipe.parameters and not isinstance(
        recipe.parameters["normalize"], Constant
    ):
        message = "must be the same for all tensors in a search"
        yield origin.problem(("parameters", "normalize"), message)


def _dev(origin: Source, parsed: SearchEntry) -> tuple[tuple[Path, ...], list[Problem]]:
    found, problems = [], []
    for index, name in enumerate(parsed.dev):
        tried = [folder / Path(name).expanduser() for folder in origin.folders]
        folder = next((path for path in tried if path.is_dir()), None)
        if folder is None:
            listed = " or ".join(dict.fromkeys(map(str, tried)))
            problems.append(
                origin.problem(("search", "dev", index), f"there is no folder {listed}")
            )
        else:
            found.append(folder)
    return tuple(found), problems


def _probe(recipe: Recipe, parsed: SearchEntry) -> TrainingPlan:
    """The data of the probe set as a training plan, of which only the data sets matter."""
    block = _block(recipe.source)
    data = block.data.copy()  # of what YAML was read to it still knows the lines
    for key in [key for key in data if key not in OF_THE_PROBE]:
        del data[key]
    data["model"] = recipe.base or recipe.members[0].reference
    data["members"] = [100]
    data["training"] = {
        "batch_size": parsed.batch_size,
        "positives": parsed.positives,
        "negatives": parsed.negatives,
        "max_length": parsed.max_length,
    }
    return validate_plan(Source(data, block.file, block.shown, block.prefix))
