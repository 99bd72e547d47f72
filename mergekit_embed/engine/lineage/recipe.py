"""The recipe of a merge as it was run: with every default that the bytes depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...methods.registry import REQUIRED
from ...recipe import Recipe
from ...recipe.source import plain
from ...recipe.suited import lists_of_models
from ..measured import statistics_folder
from ..plan import Plan
from .names import Names

LEFT_OUT = ("output", "publish", "search", "sweep")
"""What says where the result goes, or how the recipe came to be; the bytes do not depend on it."""

NO_KEYWORD = "./"
"""Before a model that is the source of the vocabulary: its name may be `base`."""

Call = Callable[[str], str | dict[str, Any]]
"""From what a recipe calls a model to what the lineage does; to a recipe, where it is one."""


def recipe_told(plan: Plan, names: Names) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The recipe, with models called by their names; nested recipes stand in their places.

    Returns:
        the recipe; and those of its members that are recipes and cannot stand in their places, by
        what it calls them: where an adapter is added, or the vocabulary is named after one.
    """
    files: dict[str, dict[str, Any]] = {}
    return resolved(plan.recipe, names, _of(plan, names, files)), files


def _of(plan: Plan, names: Names, files: dict[str, dict[str, Any]]) -> Call:
    recipe = plan.recipe
    opened = {m.reference: model for m, model in zip(recipe.members, plan.members, strict=True)}
    if recipe.base is not None and plan.base is not None:
        opened[recipe.base] = plan.base
    inner_plans = {inner.recipe.source.fingerprint: inner for inner in plan.nested}

    def call(reference: str) -> str | dict[str, Any]:
        model = opened[reference]
        behind = f"+{names[model.adapter]}" if model.adapter else ""
        nested, _ = recipe.nested_in(reference)
        if nested is None:
            return names[model.root] + behind
        within = inner_plans[nested.source.fingerprint]
        inner = resolved(within.recipe, names, _of(within, names, files))
        if not behind and reference != recipe.tokenizer_source:
            return inner
        known = next((name for name, one in files.items() if one == inner), None)
        name = known or f"recipe-{len(files) + 1}.yaml"  # see NESTED
        files[name] = inner
        return name + behind

    return call


def resolved(recipe: Recipe, names: Names, call: Call) -> dict[str, Any]:
    """What a recipe says and what it leaves to defaults, with its models called otherwise."""
    data: dict[str, Any] = plain(recipe.source.data)
    for key in LEFT_OUT:
        data.pop(key, None)
    data |= _defaults(data)
    data["granularity"] = recipe.granularity
    parameters = _parameters(recipe, data.get("parameters") or {})
    data |= {"parameters": parameters} if parameters else {}
    if recipe.base is not None:
        data["base_model"] = call(recipe.base)
    members = {member.place: member for one in recipe.slices for member in one}
    for place, models in lists_of_models(data):
        for index, model in enumerate(models):
            member = members.get((*place, index))
            reference = recipe.base if member is None else member.reference
            assert reference is not None  # what is listed and no member is the base
            model["model"] = call(reference)
            if member is not None and member.statistics is not None:
                model["statistics"] = names[statistics_folder(recipe, member.statistics)]
    return _with_tokenizer(recipe, data, call)


def _defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys that a recipe leaves out, where they have some."""
    from ...recipe.schema import RecipeFile

    return {
        name: field.default
        for name, field in RecipeFile.model_fields.items()
        if not field.is_required() and field.default is not None and data.get(name) is None
    }


def _parameters(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(given)
    for name, parameter in recipe.method.parameters.items():
        if parameter.default is REQUIRED:
            continue
        value = found.setdefault(name, parameter.default)
        last = value[-1] if isinstance(value, list) and value else None
        if isinstance(last, dict) and last.get("filter") is not None:
            found[name] = [*value, {"value": parameter.default}]
    return found


def _with_tokenizer(recipe: Recipe, data: dict[str, Any], call: Call) -> dict[str, Any]:
    """A vocabulary that is a model's is called as the model is."""
    source = recipe.tokenizer_source
    if source in {None, "base", "union"}:
        return data
    assert source is not None
    called = f"{NO_KEYWORD}{call(source)}"
    if isinstance(data.get("tokenizer"), dict) and data["tokenizer"].get("source") is not None:
        return data | {"tokenizer": {**data["tokenizer"], "source": called}}
    return data | {"tokenizer_source": called}
