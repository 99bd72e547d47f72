"""From a recipe and the headers of its models to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Component, Shape, is_derived_buffer, layout, places
from ..checkpoint.weights import INDEX, SINGLE
from ..dtypes import DType, Kind
from ..errors import PlanError, Problem
from ..methods import Gram, Unit
from ..methods.notes import collected_notes
from ..recipe import Recipe
from ..recipe.source import in_file_order
from .edits import Edits, plan_edits
from .matching import Match, match_tensors
from .models import disagreements, open_models, remarks
from .plan import Index, Job, Plan, WeightFile
from .slicing import shell_layers
from .vocabularies import plan_vocabulary


def make_plan(recipe: Recipe, output: Path) -> Plan:
    """Plan a merge without reading a weight or writing a byte.

    Raises:
        RecipeError: when a model is not there.
        CheckpointError: when a model's files are broken.
        PlanError: with everything that keeps the models from being merged as the recipe says.
    """
    vocabulary = plan_vocabulary(recipe, open_models(recipe))
    models = vocabulary.models
    problems = [*vocabulary.problems, *disagreements(recipe, models)]
    if vocabulary.problems:  # without one vocabulary, shapes differ that need not
        raise PlanError(in_file_order(problems))
    matches, misfits, notes = match_tensors(recipe, models)
    problems += misfits
    problems += [_opaque(recipe, match) for match in matches if _is_opaque(match)]
    wanted, wrong = _resolve(recipe, matches)
    problems += wrong
    if problems:
        raise PlanError(in_file_order(problems))
    edits = plan_edits(recipe, models, matches)
    kept = [(m, w) for m, w in zip(matches, wanted, strict=True) if m.name not in edits.dropped]
    matches, wanted = [match for match, _ in kept], [want for _, want in kept]
    files, indexes, addresses = _place(recipe, matches, edits)
    jobs = [
        _job(recipe, match, want, address, edits)
        for match, want, address in zip(matches, wanted, addresses, strict=True)
    ]
    return Plan(
        recipe=recipe,
        output=output,
        members=models.members,
        base=models.base,
        shell=models.shell,
        jobs=tuple(jobs),
        files=files,
        indexes=indexes,
        layers=shell_layers(recipe, models) if recipe.is_layered else None,
        notes=(*remarks(recipe, models), *vocabulary.notes, *notes),
        edits=edits.words,
        told=_told(edits.told, vocabulary.files.told),
        written=vocabulary.files.written,
        omitted=vocabulary.files.omitted,
    )


Told = Mapping[str, Mapping[str, Any]]


def _told(first: Told, second: Told) -> Told:
    """What two stages have to say in files, by their paths; they never speak of the same key."""
    paths = [*first, *(path for path in second if path not in first)]
    return {path: {**first.get(path, {}), **second.get(path, {})} for path in paths}


def _is_opaque(match: Match) -> bool:
    tensors = (match.tensor, *(match.members or ()))
    return any(tensor.dtype.kind is Kind.OPAQUE for tensor in tensors)


def _opaque(recipe: Recipe, match: Match) -> Problem:
    tensors = (match.tensor, *(match.members or ()))
    dtype = next(tensor.dtype for tensor in tensors if tensor.dtype.kind is Kind.OPAQUE)
    return recipe.source.problem(
        ("models",),
        f"{match.name} is stored as {dtype}, which cannot be merged; use the unquantised model",
    )


@dataclass(frozen=True)
class _Wanted:
    """What is to be done with one tensor. No parameters: it is copied."""

    group: str
    unit: Unit
    parameters: Mapping[str, Any] | None


def _resolve(recipe: Recipe, matches: Sequence[Match]) -> tuple[list[_Wanted], list[Problem]]:
    """Resolve the parameters of every tensor, and rehearse the method with them.

    A method that refuses its parameters (weights that cancel, say) does so here, before anything
    is read, because the rehearsal asks it for coefficients on an identity Gram matrix.
    """
    located = places(match.name for match in matches)
    problems: dict[str, Problem] = {}
    rehearsed: set[str] = set()
    wanted = []
    for match in matches:
        place = located[match.name]
        if not _is_merged(match):
            wanted.append(_Wanted(place.group, "tensor", None))
            continue
        members = recipe.slices[match.wanted.slice]
        depth = place.depth if match.wanted.depth is None else match.wanted.depth
        parameters = recipe.values_for(match.name, depth, members)
        unit = recipe.method.unit_of(parameters) or recipe.granularity
        wanted.append(_Wanted(place.group, unit, parameters))  # type: ignore[arg-type]
        seen = repr(sorted((n, np.asarray(value).tolist()) for n, value in parameters.items()))
        if seen in rehearsed:
            continue
        rehearsed.add(seen)
        wrong = _rehearse(recipe, parameters, len(members))
        if wrong and wrong not in problems:
            where = "" if len(rehearsed) == 1 else f" (for {match.name})"
            problems[wrong] = recipe.source.problem(_guilty(recipe), f"{wrong}{where}")
    return wanted, list(problems.values())


def _guilty(recipe: Recipe) -> tuple[str, ...]:
    own = any(member.parameters for member in recipe.members)
    if recipe.parameters and not own:
        return ("parameters",)
    return ("slices",) if recipe.is_layered else ("models",)


def _rehearse(recipe: Recipe, parameters: Mapping[str, Any], count: int) -> str | None:
    method = recipe.method
    arguments = method.arguments(parameters, count)
    try:
        if method.family == "mixture":
            absolute = np.ones(count) if method.absolute and method.absolute(**arguments) else None
            with collected_notes():
                method.function(Gram(np.eye(count), absolute), **arguments)
        else:
            method.function(**arguments)
    except ValueError as error:
        return str(error)
    return None


def _is_merged(match: Match) -> bool:
    return (
        match.members is not None
        and match.tensor.dtype.kind is Kind.FLOAT
        and not is_derived_buffer(match.tensor.name)
    )


@dataclass(frozen=True)
class _Address:
    file: int
    offset: int


def _stored_dtype(recipe: Recipe, match: Match) -> DType:
    cast = match.tensor.dtype.is_float and not is_derived_buffer(match.tensor.name)
    return recipe.dtype if cast and recipe.dtype else match.tensor.dtype


def _stored_shape(match: Match, edits: Edits) -> Shape:
    stretch = edits.stretches.get(match.name)
    return stretch.shape(match.tensor.shape) if stretch else match.tensor.shape


def _place(
    recipe: Recipe, matches: Sequence[Match], edits: Edits
) -> tuple[tuple[WeightFile, ...], tuple[Index, ...], list[_Address]]:
    """Give every tensor of the result its file and its offset in it."""
    files: list[WeightFile] = []
    indexes: list[Index] = []
    addresses: dict[str, _Address] = {}
    components = {match.component.path: match.component for match in matches}
    for path, component in components.items():
        own = [match for match in matches if match.component.path == path]
        shapes = {m.tensor.name: (_stored_dtype(recipe, m), _stored_shape(m, edits)) for m in own}
        limit = recipe.max_shard_size if _may_be_sharded(component) else None
        shards = _shards(shapes, limit)
        names = _file_names(len(shards))
        for name, shard in zip(names, shards, strict=True):
            header, offsets, size = layout({tensor: shapes[tensor] for tensor in shard})
            for tensor, offset in offsets.items():
                addresses[component.key(tensor)] = _Address(len(files), offset)
            files.append(WeightFile(component.key(name), header, size))
        if len(shards) > 1:
            indexes.append(Index(component.key(INDEX), _index(shards, names, shapes)))
    return tuple(files), tuple(indexes), [addresses[match.name] for match in matches]


Shapes = Mapping[str, tuple[DType, Shape]]


def _nbytes(dtype: DType, shape: Shape) -> int:
    return (int(np.prod(shape, dtype=np.int64)) * dtype.bits + 7) // 8


def _may_be_sharded(component: Component) -> bool:
    """Only transformers are loaded through an index; Dense and its kin want one file."""
    return "ransformer" in component.role


def _shards(shapes: Shapes, limit: int | None) -> list[list[str]]:
    """Fill files in the order of the names' appearance; a tensor over the limit gets its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in shapes.items():
        size = _nbytes(dtype, shape)
        if limit is not None and shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _index(shards: Sequence[Sequence[str]], names: Sequence[str], shapes: Shapes) -> dict[str, Any]:
    weight_map = {
        tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    total = sum(_nbytes(dtype, shape) for dtype, shape in shapes.values())
    return {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }


def _indexes(recipe: Recipe, match: Match) -> tuple[int, ...]:
    """Which of the recipe's members the sources belong to."""
    if len(recipe.slices) == 1:
        return tuple(range(len(recipe.members)))
    references = [member.reference for member in recipe.members]
    return tuple(references.index(m.reference) for m in recipe.slices[match.wanted.slice])


def _job(recipe: Recipe, match: Match, wanted: _Wanted, address: _Address, edits: Edits) -> Job:
    merged = wanted.parameters is not None
    buffer = is_derived_buffer(match.tensor.name)
    compared = match.members if match.members and not buffer else (match.tensor,)
    component: Component = match.component
    return Job(
        name=match.name,
        sources=match.members if merged and match.members else compared,
        members=_indexes(recipe, match) if merged or len(compared) > 1 else (),
        origin=match.base if merged else None,
        dtype=_stored_dtype(recipe, match),
        shape=match.tensor.shape,
        file=address.file,
        offset=address.offset,
        unit=wanted.unit,
        group="model" if wanted.unit == "model" else f"{component.path}/{wanted.group}",
        parameters=wanted.parameters,
        divide=edits.divides.get(match.name),
        stretch=edits.stretches.get(match.name),
    )
