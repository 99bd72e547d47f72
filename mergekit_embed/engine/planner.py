"""From a recipe and the headers of its models to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import (
    Checkpoint,
    Component,
    Shape,
    Tensor,
    is_derived_buffer,
    layout,
    locate,
    open_reference,
    places,
)
from ..checkpoint.adapter import PICKLE, fold
from ..checkpoint.weights import INDEX, SINGLE
from ..dtypes import DType, Kind
from ..errors import PlanError, Problem
from ..methods import Gram, Unit
from ..methods.notes import collected_notes
from ..recipe import Recipe
from ..recipe.source import in_file_order
from .edits import Edits, plan_edits
from .inputs import files_of
from .matching import Match, match_tensors
from .measured import match_statistics
from .models import Models, disagreements, open_models, remarks
from .nested import as_member, nested_plans
from .plan import Index, Job, Measured, Plan, WeightFile
from .slicing import shell_layers
from .stamps import Stamp, stamp
from .told import configs_told, joined, without_places
from .vocabularies import plan_vocabulary


class Planner:
    """Plans merges without reading a weight or writing a byte.

    What several recipes name alike is opened once, and nested recipes that are alike are planned
    once, so that their runs can share what they read and compute.
    """

    def __init__(self) -> None:
        self._checkpoints: dict[tuple[str, Path], Checkpoint] = {}
        self._nested: dict[str, Checkpoint] = {}
        self._stamps: dict[Path, Stamp] = {}

    def plan(self, recipe: Recipe, output: Path) -> Plan:
        """The plan of a merge that is written to `output`.

        Raises:
            RecipeError: when a model is not there.
            CheckpointError: when a model's files are broken.
            PlanError: with everything that keeps the models from being merged as the recipe says.
        """
        made = _plan(recipe, open_models(recipe, self._open), output)
        return replace(made, inputs=self._stamped(t for job in made.jobs for t in job.tensors))

    def _stamped(self, tensors: Iterable[Tensor]) -> dict[Path, Stamp]:
        """How the files of tensors were when they were first asked for."""
        files = files_of(tensors)
        for path in files - self._stamps.keys():
            self._stamps[path] = stamp(path)
        return {path: self._stamps[path] for path in sorted(files)}

    def _open(self, recipe: Recipe, reference: str) -> Checkpoint:
        key = (reference, recipe.source.folder.absolute())
        nested, adapter = recipe.nested_in(reference)
        if nested is None:
            if key not in self._checkpoints:
                opened = open_reference(reference, recipe.source.folders)
                self._stamped(t for c in opened.components.values() for t in c.tensors.values())
                self._checkpoints[key] = opened
            return self._checkpoints[key]
        said = nested.source.fingerprint
        if said not in self._nested:
            made = self.plan(nested, Path(nested.name))
            if made.written or made.omitted:
                told = "a member cannot have a tokenizer of its own making; join them in the outer"
                where = nested.source.problem(("tokenizer_source",), f"{told} recipe", key=True)
                raise PlanError([where])
            self._nested[said] = as_member(made)
        model = replace(self._nested[said], label=reference)
        return fold(model, locate(adapter, recipe.source.folders, PICKLE)) if adapter else model


def _plan(recipe: Recipe, opened: Models, output: Path) -> Plan:
    vocabulary = plan_vocabulary(recipe, opened)
    models = vocabulary.models
    problems = [*vocabulary.problems, *disagreements(recipe, models)]
    if vocabulary.problems:  # without one vocabulary, shapes differ that need not
        raise PlanError(in_file_order(problems))
    matches, misfits, notes = match_tensors(recipe, models)
    problems += misfits
    problems += [_opaque(recipe, match) for match in matches if _is_opaque(match)]
    wanted, wrong = _resolve(recipe, matches)
    problems += wrong
    measured, unfit, told = match_statistics(recipe, models, list(filter(_is_merged, matches)))
    problems += unfit
    if problems:
        raise PlanError(in_file_order(problems))
    edits = plan_edits(recipe, models, matches)
    kept = [(m, w) for m, w in zip(matches, wanted, strict=True) if m.name not in edits.dropped]
    matches, wanted = [match for match, _ in kept], [want for _, want in kept]
    files, indexes, addresses = _place(recipe, matches, edits)
    jobs = [
        _job(recipe, match, want, address, edits, measured.get(match.name))
        for match, want, address in zip(matches, wanted, addresses, strict=True)
    ]
    layers = shell_layers(recipe, models) if recipe.is_layered else None
    configs = joined(without_places(models.shell), configs_told(models.shell, recipe.dtype, layers))
    return Plan(
        recipe=recipe,
        output=output,
        members=models.members,
        base=models.base,
        shell=models.shell,
        jobs=tuple(jobs),
        files=files,
        indexes=indexes,
        notes=(*remarks(recipe, models), *vocabulary.notes, *notes, *told),
        nested=nested_plans(models.all),
        edits=edits.words,
        told=joined(models.shell.told, configs, edits.told, vocabulary.files.told),
        written=vocabulary.files.written,
        omitted=vocabulary.files.omitted,
    )


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
        wanted.append(_Wanted(place.group, unit, parameters))
        seen = repr(sorted((n, np.asarray(value).tolist()) for n, value in parameters.items()))
        if seen in rehearsed:
            continue
        rehearsed.add(seen)
        wrong = rehearse(recipe, parameters, len(members))
        if wrong and wrong not in problems:
            where = "" if len(rehearsed) == 1 else f" (for {match.name})"
            problems[wrong] = recipe.source.problem(guilty(recipe), f"{wrong}{where}")
    return wanted, list(problems.values())


def guilty(recipe: Recipe) -> tuple[str, ...]:
    """The part of the recipe that parameters which do not go together are told of."""
    own = any(member.parameters for member in recipe.members)
    if recipe.parameters and not own:
        return ("parameters",)
    return ("slices",) if recipe.is_layered else ("models",)


def rehearse(recipe: Recipe, parameters: Mapping[str, Any], count: int) -> str | None:
    """What the method says against these parameters; None when it takes them."""
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


def _job(
    recipe: Recipe,
    match: Match,
    wanted: _Wanted,
    address: _Address,
    edits: Edits,
    measured: Measured | None,
) -> Job:
    merged = wanted.parameters is not None
    buffer = is_derived_buffer(match.tensor.name)
    compared = match.members if match.members and not buffer else (match.tensor,)
    component: Component = match.component
    return Job(
        name=match.name,
        role=component.role,
        tensor=match.tensor.name,
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
        measured=measured,
    )
