"""`sweep`: one recipe for every point of a grid of values."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import Problem, RecipeError
from ..methods import available
from . import values
from .source import Source, in_file_order

MOST = 1000
"""Points of a grid; more are a slip of the pen."""

FIXED = {"models", "output", "publish", "slices", "sweep"}
"""Keys that cannot be swept as a whole."""

STEP = re.compile(r"([a-z_]\w*)((?:\[\d+\])*)(?:\.|$)")
"""A part of a path as messages spell it: `models[1]`, `parameters`."""


def points(origin: Source) -> list[tuple[str | None, Source]]:
    """The recipes that a sweep stands for, each with its name; the recipe itself without one.

    Raises:
        RecipeError: when the sweep is no grid, or names nothing that could be swept.
    """
    grid = origin.data.get("sweep") if isinstance(origin.data, Mapping) else None
    if grid is None:
        return [(None, origin)]
    problems: list[Problem] = []
    axes = _axes(origin, grid, problems)
    if problems:
        raise RecipeError(in_file_order(problems))
    count = math.prod(len(grid[key]) for key in axes)
    if count > MOST:
        message = f"is a grid of {count:,} models; {MOST:,} are the most"
        raise RecipeError([origin.problem(("sweep",), message)])
    found = []
    for chosen in itertools.product(*(range(len(grid[key])) for key in axes)):
        indexes = dict(zip(axes, chosen, strict=True))
        found.append((_named(grid, axes, indexes), _point(origin, grid, axes, indexes)))
    return _with_distinct_names(found)


def _axes(origin: Source, grid: Any, problems: list[Problem]) -> dict[str, values.Path]:
    """The place in the recipe that each key of the sweep stands for."""
    if not isinstance(grid, Mapping) or not grid:
        message = "must name values to try, such as `{density: [0.2, 0.5], lambda: [0.8, 1.0]}`"
        problems.append(origin.problem(("sweep",), message))
        return {}
    axes: dict[str, values.Path] = {}
    for key, tried in grid.items():
        here: values.Path = ("sweep", key)
        place = _place(origin, key) if isinstance(key, str) else None
        if place is None:
            problems.append(origin.problem(here, _unknown(origin, key), key=True))
        elif place in axes.values():
            problems.append(origin.problem(here, "is swept twice; keep one", key=True))
        elif not isinstance(tried, list) or not tried:
            message = (
                f"must list the values to try, such as [0.2, 0.5], not {values.kind_of(tried)}"
            )
            problems.append(origin.problem(here, message))
        else:
            axes[key] = place
            seen = [str(value) for value in tried]
            for index, value in enumerate(seen):
                if value in seen[:index]:
                    problems.append(origin.problem((*here, index), "is there twice; keep one"))
    return axes


def _place(origin: Source, key: str) -> values.Path | None:
    """A parameter by its name, or any value by its path; None for no place of the recipe."""
    if key in _parameters(origin):
        return ("parameters", key)
    place: list[str | int] = []
    at = 0
    while at < len(key):
        found = STEP.match(key, at)
        if found is None:
            return None
        place += [found[1], *(int(index) for index in re.findall(r"\d+", found[2]))]
        at = found.end()
    from .schema import RecipeFile

    if not place or place[0] not in RecipeFile.model_fields or key in FIXED:
        return None
    return tuple(place) if _reaches(origin.data, place) else None


def _reaches(node: Any, place: list[str | int]) -> bool:
    """True where every list on the way has the item that the place names."""
    for part in place:
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                return False
            node = node[part]
        else:
            if not isinstance(node, Mapping) and node is not None:
                return False
            node = (node or {}).get(part)
    return True


def _parameters(origin: Source) -> set[str]:
    """The parameters of the methods that the recipe may use."""
    methods = available()
    swept = origin.data["sweep"].get("merge_method", [])
    named = [origin.data.get("merge_method"), *(swept if isinstance(swept, list) else [])]
    chosen = [methods[name] for name in named if isinstance(name, str) and name in methods]
    return {name for method in chosen or methods.values() for name in method.parameters}


def _unknown(origin: Source, key: Any) -> str:
    known = sorted(_parameters(origin))
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
    return (
        f"is no parameter of the method ({hint}), and no place of the recipe such as "
        "`models[0].parameters.weight` or `seed`"
    )


def _point(
    origin: Source,
    grid: Mapping[str, Any],
    axes: Mapping[str, values.Path],
    indexes: Mapping[str, int],
) -> Source:
    """The recipe with the chosen values in their places, which remembers where they were."""
    data = copy.deepcopy(origin.data)
    del data["sweep"]
    for key, place in axes.items():
        node = data
        for part, after in itertools.pairwise(place):
            if isinstance(part, str) and node.get(part) is None:
                node[part] = {} if isinstance(after, str) else []
            node = node[part]
        node[place[-1]] = copy.deepcopy(grid[key][indexes[key]])
    moved = {place: ("sweep", key, indexes[key]) for key, place in axes.items()}
    return Source(data, origin.file, origin.shown, origin.prefix, origin.data, moved)


def _named(
    grid: Mapping[str, Any], axes: Mapping[str, values.Path], indexes: Mapping[str, int]
) -> str:
    """`density-0.2_lambda-0.8`: a name for folders, the Hub and shells."""
    parts = []
    for key in axes:
        index = indexes[key]
        shown = _shown(grid[key][index])
        short = re.sub(r"\W+", "-", key.replace("parameters.", "")).strip("-")
        parts.append(f"{short}-{index + 1 if shown is None else shown}")
    return "_".join(parts)


def _shown(value: Any) -> str | None:
    """A value as part of a name; None for one that is too long for it."""
    if isinstance(value, Mapping) or (isinstance(value, list) and any(map(_is_nested, value))):
        return None
    listed = value if isinstance(value, list) else [value]
    shown = "-".join(values.kind_of(item).strip('"') for item in listed)
    return shown if len(shown) <= 40 and re.fullmatch(r"[\w.+-]+", shown) else None


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _with_distinct_names(found: list[tuple[str, Source]]) -> list[tuple[str | None, Source]]:
    names = [name for name, _ in found]
    return [
        (name if names.count(name) == 1 else f"{name}_{index + 1}", point)
        for index, (name, point) in enumerate(found)
    ]
