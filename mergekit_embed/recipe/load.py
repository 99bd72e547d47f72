"""From a YAML file or a dict to a validated `Recipe`, with every error of the file in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dtypes import FLOAT_NAMES
from ..errors import Problem, RecipeError
from ..methods import Method, available
from . import source, values
from .bombs import refuse_large_numbers
from .into_adapter import unsuited_for_an_adapter
from .model import (
    AdapterOutput,
    Edit,
    ExtendPositions,
    Member,
    Publish,
    Recipe,
    Slice,
    TempScale,
)
from .nested import Around, name_of, nested_sources
from .shape import Words, shape_problem, unknown
from .source import Source
from .suited import at, doubled, lists_of_models, members_among, spelled, unsuited
from .sweep import points
from .tokenizer import TOKENS_REFUSED, misnamed_vocabulary, vocabulary_of

if TYPE_CHECKING:
    from .schema import EditEntry, ModelEntry, RecipeFile

MERGEKIT_HINTS = {"int8_mask"}
"""Parameters of mergekit that only tune its memory: accepted, without effect on the result."""


def load(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Validate a recipe given as a file, a mapping, or already done.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    found = load_all(recipe)
    if len(found) > 1:
        told = f"stands for {len(found)} models; load them with `load_recipes`, or use `merge_many`"
        raise RecipeError([found[0].source.problem(("sweep",), told)])
    return found[0]


def load_all(recipe: str | Path | Mapping[str, Any] | Recipe) -> tuple[Recipe, ...]:
    """Validate a recipe, and return it, or those of all points of its sweep.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    if isinstance(recipe, Recipe):
        return (recipe,)
    if isinstance(recipe, Mapping):
        origin = Source(source.plain(recipe), None, "recipe")
    else:
        origin = source.read(Path(recipe))
    found: list[Recipe] = []
    problems: list[Problem] = []
    for name, point in points(origin):
        try:
            found.append(replace(validate(point), point=name))
        except RecipeError as error:
            problems.extend(error.problems)
    if problems:
        raise RecipeError(source.in_file_order(problems))
    return tuple(found)


def validate(origin: Source, around: Around | None = None) -> Recipe:
    """Turn parsed YAML into a `Recipe`; `around` are the recipes that it is nested in.

    Raises:
        RecipeError: with every problem, in the order of the file.
    """
    refuse_large_numbers(origin)
    problems: list[Problem] = []
    parsed, shape_problems = _parse(origin)
    problems.extend(shape_problems)
    problems.extend(_listed(origin))
    problems.extend(doubled(origin))
    problems.extend(misnamed_vocabulary(origin))
    method = _method(origin, problems)
    given = _parameter_values(origin, method, problems)
    if method is not None:
        problems.extend(unsuited(origin, method))
        problems.extend(unsuited_for_an_adapter(origin, method))
    nested = _nested(origin, (around or Around()).within(origin), problems)
    if problems or parsed is None or method is None:
        raise RecipeError(source.in_file_order(problems))
    return replace(_build(origin, parsed, method, given), nested=nested)


def _nested(origin: Source, around: Around, problems: list[Problem]) -> Mapping[str, Recipe]:
    """The members that are recipes, validated; their problems are added to the others."""
    places: list[values.Path] = [("base_model",)]
    for place, models in lists_of_models(origin.data):
        places += [(*place, index, "model") for index in range(len(models))]
    found: dict[str, Recipe] = {}
    for place in places:
        try:
            for name, inner in nested_sources(origin, [place]):
                wrong = around.refusal(name, inner)
                if wrong:
                    problems.append(origin.problem(place, wrong))
                elif "sweep" in inner.data:
                    message = "a member is one model, and cannot have a sweep; sweep here instead"
                    problems.append(inner.problem(("sweep",), message, key=True))
                elif inner.data.get("search") is not None:
                    message = "is no part of a member; run boom-search, and list what it finds"
                    problems.append(inner.problem(("search",), message, key=True))
                else:
                    found[name] = around.once(inner, validate)
        except RecipeError as error:
            problems.extend(error.problems)
    return found


def _listed(origin: Source) -> list[Problem]:
    """What is wrong with the choice between `models` and `slices`."""
    present = [key for key in ("models", "slices") if key in origin.data]
    if not present:
        return [origin.problem(("models",), "is required and not there")]
    if len(present) > 1:
        return [origin.problem(("slices",), "and `models` exclude each other", key=True)]
    if origin.data[present[0]] is None:
        return [origin.problem((present[0],), "must be a list, not nothing")]
    return []


def _parse(origin: Source) -> tuple[RecipeFile | None, list[Problem]]:
    from pydantic import ValidationError

    from .schema import RecipeFile

    words = Words(_unknown_key, _example, _item)
    try:
        return RecipeFile.model_validate(origin.data), []
    except ValidationError as error:
        return None, [shape_problem(origin, detail, words) for detail in error.errors()]


def _example(path: values.Path) -> str:
    """What a mapping at this place of a recipe looks like."""
    examples = {
        "post": "{temp_scale: 0.9}",
        "publish": "{repository: me/my-model}",
        "tokenizer": "{source: union}",
    }
    return examples.get(str(path[0]), "{model: ./folder}")


def _item(path: values.Path) -> str:
    """What a list at this place of a recipe holds."""
    return "edit" if path[0] == "post" else "model"


def _unknown_key(path: values.Path) -> str:
    """The message for a key that a recipe, or one of its models, does not have."""
    from .schema import (
        AdapterEntry,
        EditEntry,
        ModelEntry,
        PublishEntry,
        RecipeFile,
        SliceEntry,
        SliceSource,
        TokenizerEntry,
    )

    name = str(path[-1])
    if path[0] == "tokenizer" and len(path) == 2:
        if name == "tokens":
            return TOKENS_REFUSED
        return unknown("key", name, TokenizerEntry.model_fields)
    if path[0] == "publish" and len(path) == 2:
        return unknown("key", name, PublishEntry.model_fields)
    entries = {"slices": SliceEntry.model_fields, "post": EditEntry.model_fields}
    entry = entries.get(str(path[0]), ModelEntry.model_fields)
    known = {1: RecipeFile.model_fields, 2: AdapterEntry.model_fields, 3: entry}
    if any(name in method.parameters for method in available().values()):
        return f"unknown key; {name} is a parameter: put it under `parameters:`"
    return unknown("key", name, known.get(len(path), SliceSource.model_fields))


def _method(origin: Source, problems: list[Problem]) -> Method | None:
    name = origin.data.get("merge_method")
    if not isinstance(name, str):
        return None
    methods = available()
    if name not in methods:
        message = f'"{name}": {unknown("merge method", name, methods)}'
        problems.append(origin.problem(("merge_method",), message))
        return None
    return methods[name]


Given = dict[values.Path, dict[str, values.Value]]
"""The parameters of each place that has some: ("parameters",) or ("models", 1, "parameters")."""


def _parameter_values(origin: Source, method: Method | None, problems: list[Problem]) -> Given:
    """Check every parameter against the method; without a method only the shape of the values."""
    places: list[values.Path] = [("parameters",)]
    for group, models in lists_of_models(origin.data):
        places += [(*group, index, "parameters") for index in range(len(models))]
    found: Given = {}
    for place in places:
        raw = at(origin.data, place)
        if not isinstance(raw, dict):
            continue
        found[place] = {}
        for name in filter(lambda key: isinstance(key, str), raw):
            value = _parameter(origin, method, (*place, name), raw[name], problems)
            if value is not None and name not in MERGEKIT_HINTS:
                found[place][name] = value
    return found


def _parameter(
    origin: Source, method: Method | None, path: values.Path, raw: Any, problems: list[Problem]
) -> values.Value | None:
    def report(where: values.Path, message: str, *, key: bool = False) -> None:
        problems.append(origin.problem(where, message, key=key))

    name = str(path[-1])
    if method is not None and name not in method.parameters and name not in MERGEKIT_HINTS:
        report(path, unknown("key", name, method.parameters), key=True)
        return None
    value = values.parse(raw, path, report)
    if method is None or value is None or name in MERGEKIT_HINTS:
        return value
    parameter = method.parameters[name]
    if path[0] != "parameters" and not parameter.per_member:
        report(
            path, f"is one for the whole merge; move it to the top-level {spelled(name)}", key=True
        )
        return None
    for scalar in value.scalars():
        wrong = parameter.check(scalar)
        if wrong:
            report(path, wrong)
            return None
    return value


def _slice(
    method: Method,
    base: str | None,
    entries: Sequence[ModelEntry],
    names: Sequence[str],
    place: values.Path,
    given: Given,
) -> Slice:
    """The members among the models of one list, which are called by the names."""
    ranges = [_range_of(entry) for entry in entries]
    return tuple(
        Member(
            reference=str(base) if index is None else names[index],
            parameters=given.get((*place, index, "parameters"), {}) if index is not None else {},
            place=("base_model",) if index is None else (*place, index),
            layers=ranges[0 if index is None else index],
            group=None if index is None else entries[index].group,
            statistics=None if index is None else entries[index].statistics,
        )
        for index in members_among(method, names, base)
    )


def _range_of(entry: ModelEntry) -> tuple[int, int] | None:
    layers = getattr(entry, "layer_range", None)
    return (layers[0], layers[1]) if layers else None


def _edit(entry: EditEntry) -> Edit | None:
    """What an entry of `post` does to weights; None for `cast`, which is the stored type."""
    if entry.temp_scale is not None:
        return TempScale(entry.temp_scale)
    if entry.extend_positions is not None:
        return ExtendPositions(entry.extend_positions)
    return None


def _build(origin: Source, parsed: RecipeFile, method: Method, given: Given) -> Recipe:
    from .schema import TokenizerEntry, parse_size

    groups: list[tuple[values.Path, Sequence[ModelEntry]]] = [(("models",), parsed.models or [])]
    if parsed.slices:
        groups = [
            (("slices", index, "sources"), entry.sources)
            for index, entry in enumerate(parsed.slices)
        ]
    base = None
    if parsed.base_model is not None:
        base = name_of(parsed.base_model, (*origin.prefix, "base_model"))
    based = [[e for e in entries if e.model == base] or entries for _, entries in groups]
    slices = []
    for place, entries in groups:
        names = [name_of(e.model, (*origin.prefix, *place, i)) for i, e in enumerate(entries)]
        slices.append(_slice(method, base, entries, names, place, given))
    edits = parsed.post or []
    cast = next((edit.cast for edit in edits if edit.cast is not None), None)
    stored = cast or parsed.out_dtype or parsed.dtype
    same = ("pooling", "normalisation", "prompts", "other_modules", "config")
    accepted = {name for name in same if getattr(parsed, name) == "base"}
    tokenizer = parsed.tokenizer or TokenizerEntry()
    wanted = parsed.tokenizer_source or tokenizer.source
    if wanted is not None:
        accepted |= {"tokenizer", "vocabulary"}
    return Recipe(
        name=origin.file.stem if origin.file else "recipe",
        source=origin,
        method=method,
        slices=tuple(slices),
        base_layers=tuple(_range_of(entries[0]) for entries in based),
        base=base,
        parameters=given.get(("parameters",), {}),
        granularity=parsed.granularity or method.granularity,
        seed=parsed.seed,
        output=parsed.output,
        dtype=FLOAT_NAMES[stored] if stored else None,
        edits=tuple(edit for entry in edits if (edit := _edit(entry)) is not None),
        accepted=frozenset(accepted),
        drop_extra_tensors=parsed.extra_tensors == "drop",
        copy_missing_tensors=parsed.missing_tensors == "copy",
        allow_non_finite=parsed.allow_non_finite,
        max_shard_size=parse_size(parsed.max_shard_size),
        adapter_output=AdapterOutput(adapter.rank) if (adapter := parsed.adapter_output) else None,
        tokenizer_source=vocabulary_of(wanted, origin),
        pad_to_multiple_of=parsed.pad_to_multiple_of or tokenizer.pad_to_multiple_of,
        search=None if parsed.search is None else origin.data["search"],
        publish=Publish(**parsed.publish.model_dump()) if parsed.publish else None,
    )
