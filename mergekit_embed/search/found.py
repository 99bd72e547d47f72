"""The recipe that a search has found: the one that it was given, with parameters in it."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from typing import Any

from ..checkpoint.reference import split
from ..recipe import Recipe
from ..recipe.source import plain
from .baselines import MULTISLERP, UNIFORM
from .groups import Grouping
from .specs import Point, SearchSpec

NAME = "found.yaml"

OF_THE_METHOD = ("merge_method", "models", "base_model", "parameters", "granularity", "search")
"""Keys of a recipe that say how it merges, and not what becomes of the result."""


def found_recipe(
    spec: SearchSpec, point: Point, grouping: Grouping, folder: Path
) -> dict[str, Any]:
    """The recipe as plain data, without its `search`, to be written into a folder.

    Models that are folders are named from there; it writes to where the given recipe would.

    Args:
        spec: what was searched, and with which recipe.
        point: the parameters.
        grouping: of the tensors that they are for.
        folder: that the recipe will lie in.
    """
    recipe = spec.recipe
    data: dict[str, Any] = plain(recipe.source.data)
    del data["search"]
    data["output"] = str(recipe.target)
    references = {member.reference: index for index, member in enumerate(recipe.members)}
    for model in data["models"]:
        index = references.get(str(model["model"]))
        own = {k: v for k, v in (model.get("parameters") or {}).items() if k not in spec.searched}
        if index is not None and "weight" in spec.searched:
            own["weight"] = _value(point.weights[:, index].tolist(), grouping)
        model.pop("parameters", None)
        if own:
            model["parameters"] = own
        model["model"] = _moved(str(model["model"]), recipe, folder)
    if data.get("base_model") is not None:
        data["base_model"] = _moved(str(data["base_model"]), recipe, folder)
    common = {k: v for k, v in (data.get("parameters") or {}).items() if k != "weight"}
    if not spec.boxed and "lambda" in spec.searched:
        common["lambda"] = _value(point.factor.tolist(), grouping)
    common |= point.others
    if "weight" not in spec.searched:
        common |= {k: v for k, v in (data.get("parameters") or {}).items() if k == "weight"}
    if common:
        data["parameters"] = common
    return data


def plain_recipe(spec: SearchSpec, name: str, best: str, folder: Path) -> dict[str, Any]:
    """The recipe of a merge that needs no search, in the place of what was found.

    Args:
        spec: what was searched.
        name: of the merge, as the comparison calls it.
        best: the best member.
        folder: that the recipe will lie in.
    """
    recipe = spec.recipe
    source: dict[str, Any] = plain(recipe.source.data)
    data: dict[str, Any] = {"merge_method": {UNIFORM: "linear", MULTISLERP: name}.get(name)}
    data |= {key: source[key] for key in source if key not in OF_THE_METHOD}
    data["output"] = str(recipe.target)
    wanted = [str(model["model"]) for model in source["models"]]
    if data["merge_method"] is None:
        data["merge_method"] = "passthrough"
        wanted = [best]
    data["models"] = [{"model": _moved(reference, recipe, folder)} for reference in wanted]
    if name == MULTISLERP:
        for model in data["models"]:
            model["parameters"] = {"weight": 1.0}
        if source.get("base_model") is not None:
            data["base_model"] = _moved(str(source["base_model"]), recipe, folder)
    return data


def _value(values: list[float], grouping: Grouping) -> Any:
    """A number, or one for each group by the pattern of its tensors' names."""
    if len(values) == 1:
        return values[0]
    return [
        {"filter": group.pattern, "value": value}
        for group, value in zip(grouping.groups, values, strict=True)
    ]


def _moved(reference: str, recipe: Recipe, folder: Path) -> str:
    """What a model is called from another folder; as it is when it is none of this machine."""
    folders = recipe.source.folders
    parts = [part for part in split(reference, folders) if part is not None]
    return "+".join(_moved_part(part, folders, folder) for part in parts)


def _moved_part(part: str, folders: tuple[Path, ...], folder: Path) -> str:
    if Path(part).expanduser().is_absolute():
        return part
    own = next((here / part for here in folders if (here / part).is_dir()), None)
    if own is None:
        return part
    moved = os.path.relpath(own.resolve(), folder.resolve())
    return moved if moved.startswith(".") else f"./{moved}"


def as_yaml(data: dict[str, Any], remark: str) -> str:
    """A recipe as the text of a file, with a comment before it."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(data, stream)
    comment = "".join(f"# {line}\n" for line in remark.splitlines())
    return f"{comment}\n{stream.getvalue()}"
