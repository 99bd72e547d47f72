"""The recipe that merges what was trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Problem, RecipeError
from ..methods import Method, available
from ..recipe.load import validate
from ..recipe.source import Source, plain
from ..recipe.sweep import points
from .specs import MemberSpec, TrainingPlan

FOLDER = "members"
"""Where the trained models lie, beside the recipe."""


def merge_recipe(plan: TrainingPlan, rows: Mapping[str, int], base: str) -> dict[str, Any]:
    """The content of merge.yaml.

    Args:
        plan: says how to merge.
        rows: how many rows each member was trained on, by its name.
        base: the model that all started from, as the recipe is to call it.

    Returns:
        A recipe as plain data, that lists the trained models as `members/NAME`.
    """
    members = [member for member in plan.members if member.merged]
    weights = weights_of(members, rows, plan.weights)
    adapters = plan.lora is not None and not plan.lora.fold
    return _recipe(plan.merge, members, weights, base, adapters=adapters)


def write_recipe(path: Path, recipe: Mapping[str, Any], comment: str) -> None:
    """Write a recipe as YAML, down to the disk, under a line of comment.

    Raises:
        OSError: when that fails.
    """
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {comment}\n")
        yaml.dump(plain(recipe), file)
        file.flush()
        os.fsync(file.fileno())


def weights_of(
    members: Sequence[MemberSpec], rows: Mapping[str, int], weights: str
) -> dict[str, float]:
    """What each model weighs, by its name; the checkpoints of a run share what it weighs."""
    found: dict[str, float] = {}
    for member in members:
        weight = member.weight
        if weight is None:
            weight = float(rows[member.name]) if weights == "rows" else 1.0
        found |= dict.fromkeys(member.models, weight / len(member.models))
    return found


def _recipe(
    merge: Mapping[str, Any],
    members: Sequence[MemberSpec],
    weights: Mapping[str, float],
    base: str,
    *,
    adapters: bool,
) -> dict[str, Any]:
    recipe = copy.deepcopy(merge)
    assert isinstance(recipe, dict)
    method = _method(merge)
    also = recipe.get("models")
    models = list(also) if isinstance(also, list) else []
    for member in members:
        for name in member.models:
            path = f"{FOLDER}/{name}"
            model: dict[str, Any] = {"model": f"{base}+{path}" if adapters else path}
            if method is None or _has_weights(method):
                model["parameters"] = {"weight": weights[name]}
            if member.group is not None:
                model["group"] = member.group
            models.append(model)
    recipe["models"] = models
    if method is not None and method.base != "first member":
        recipe.setdefault("base_model", base)
    return recipe


def _method(merge: Mapping[str, Any]) -> Method | None:
    name = merge.get("merge_method")
    return available().get(name) if isinstance(name, str) else None


def _has_weights(method: Method) -> bool:
    parameter = method.parameters.get("weight")
    return parameter is not None and parameter.per_member


def problems_of_merge(
    origin: Source,
    merge: Mapping[str, Any],
    members: Sequence[MemberSpec],
    weights: str,
    base: str,
    *,
    adapters: bool,
) -> Iterator[Problem]:
    """What is wrong with the recipe of a plan, at its places in the plan."""
    members = [member for member in members if member.merged]
    if not members:
        yield origin.problem(("members",), "none is merged; leave out one `merge: false`")
        return
    if merge.get("models") is not None and not isinstance(merge["models"], list):
        yield origin.problem(("merge", "models"), "must be a list")
        return
    if not isinstance(merge.get("parameters") or {}, dict):
        yield origin.problem(("merge", "parameters"), "must be a mapping of names to values")
        return
    yield from _problems_of_weights(origin, merge, members, weights)
    ones = {name: 1.0 for member in members for name in member.models}
    # As read and not as parsed: what ruamel has read still knows its lines.
    read = origin.data.get("merge", merge)
    data = _recipe(read, members, ones, base, adapters=adapters)
    recipe = Source(data, origin.file, origin.shown, ("merge",))
    try:
        for _, point in points(recipe):
            validate(point)
    except RecipeError as error:
        yield from error.problems


def _problems_of_weights(
    origin: Source, merge: Mapping[str, Any], members: Sequence[MemberSpec], weights: str
) -> Iterator[Problem]:
    method = _method(merge)
    given = [member for member in members if member.weight is not None]
    if method is not None and not _has_weights(method):
        if given:
            message = f"{method.name} has no weights, but {given[0].name} has one; leave it out"
            yield origin.problem(("members",), message)
        return
    if weights == "equal":
        return
    if given and len(given) < len(members):
        other = next(member.name for member in members if member.weight is None)
        message = (
            f"{given[0].name} has a weight of its own, and {other} weighs its rows, which are "
            "thousands; give every member a weight, or set `weights: equal`"
        )
        yield origin.problem(("members",), message)
    for index, model in enumerate(merge.get("models") or ()):
        parameters = model.get("parameters") if isinstance(model, dict) else None
        if not given and not (isinstance(parameters, dict) and "weight" in parameters):
            message = (
                "needs a weight, as the members weigh their rows, which are thousands; or set "
                "`weights: equal`"
            )
            yield origin.problem(("merge", "models", index), message)
