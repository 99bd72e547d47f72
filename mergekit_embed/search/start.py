"""Where a search starts, and what a point means to the merge: coefficients of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..engine.plan import Job
from ..errors import RecipeError
from ..methods import Gram
from ..methods.notes import collected_notes
from ..recipe import Recipe
from ..recipe.values import Path as Place
from .by_merging import weights_of
from .geometry import Cells
from .groups import Grouping
from .load import is_normalised
from .mapping import Free, Mapping, SelfPositioned, Simplex
from .specs import Doubles, Point, SearchSpec


def starting_point(spec: SearchSpec, jobs: Sequence[Job], grouping: Grouping) -> Point:
    """The recipe's own parameters; where it has no weights, those of the mean or of the paper.

    Raises:
        RecipeError: when they differ within a group, or leave no way to go.
    """
    recipe = spec.recipe
    weights, factors = [], []
    for number, group in enumerate(grouping.groups):
        own = [job for job, g in zip(jobs, grouping.group_of, strict=True) if g == number]
        found = [_values(job) for job in own]
        if any(not np.array_equal(one, found[0]) for one in found):
            place, message = _guilty(recipe), f"differ among the tensors of {group.name}"
            told = f"{message}, which are searched as one; choose other `groups`"
            raise RecipeError([recipe.source.problem(place, told)])
        weights.append(found[0][:-1])
        factors.append(found[0][-1])
    point = Point(np.stack(weights), np.array(factors), _others(spec, jobs[0]))
    if spec.boxed:
        return point
    if not _says_weights(recipe) and recipe.method.name != "self_positioning":
        point = Point(np.full_like(point.weights, 1.0 / point.weights.shape[1]), point.factor)
    if spec.strategy == "gradient" and is_normalised(recipe):
        if not (point.weights > 0).all():
            message = "weights that sum to 1 are searched from weights above 0"
            raise RecipeError([recipe.source.problem(_guilty(recipe), message)])
        point = Point(point.weights / point.weights.sum(axis=1, keepdims=True), point.factor)
    return point


def _values(job: Job) -> Doubles:
    """The weights of the members and lambda, float64 (K + 1,)."""
    assert job.parameters is not None
    return np.append(weights_of(job), job.parameters.get("lambda", 1.0))


def _others(spec: SearchSpec, job: Job) -> dict[str, float]:
    """What is searched within bounds beside weights, as the recipe has it; means over members."""
    assert job.parameters is not None
    names = [name for name in spec.bounds if name != "weight"]
    return {name: float(np.mean(job.parameters[name])) for name in names}


def _says_weights(recipe: Recipe) -> bool:
    return "weight" in recipe.parameters or any("weight" in m.parameters for m in recipe.members)


def _guilty(recipe: Recipe) -> Place:
    return ("models",) if any(m.parameters for m in recipe.members) else ("parameters",)


def mapping_of(spec: SearchSpec, cells: Cells, start: Point) -> Mapping:
    """The parameterisation that the recipe's method has."""
    if spec.recipe.method.name == "self_positioning":
        return SelfPositioned(cells, spec.descent.mu)
    factor = torch.from_numpy(start.factor.copy())
    if is_normalised(spec.recipe):
        return Simplex(cells, factor)
    return Free(cells, factor, spec.descent.l1)


class Merging:
    """What the merge makes of a point, by the method's own function."""

    def __init__(self, recipe: Recipe, jobs: Sequence[Job], cells: Cells):
        first = {
            int(cell): job for cell, job in reversed(list(zip(cells.cell_of, jobs, strict=True)))
        }
        self._method, self._cells = recipe.method, cells
        self._parameters: list[dict[str, Any]] = [
            dict(first[cell].parameters or {}) for cell in range(len(cells.group_of))
        ]

    def coefficients(self, point: Point) -> Doubles:
        """Float64 (T, K), of every tensor: what a merge at these parameters takes."""
        found = []
        for cell, group in enumerate(self._cells.group_of):
            values = self._parameters[cell] | {"weight": point.weights[group]}
            if "lambda" in self._method.parameters:
                values["lambda"] = float(point.factor[group])
            gram = Gram(self._cells.grams[cell])
            arguments = self._method.arguments(values, gram.count)
            with collected_notes(), np.errstate(all="ignore"):
                found.append(self._method.function(gram, **arguments))
        return np.stack(found)[self._cells.cell_of]
