"""A lineage as a recipe: the merge that it tells of made again, and held against it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..engine.lineage.file import LINEAGE
from ..engine.lineage.recipe import NO_KEYWORD
from ..errors import CheckpointError
from ..recipe import Recipe
from ..recipe.load import validate
from ..recipe.source import Source
from ..recipe.suited import lists_of_models
from ..version import __version__
from .lineage import Lineage, read_lineage
from .lineage_members import find_members


@dataclass(frozen=True)
class Repeat:
    """A merge that can be made again.

    Attributes:
        lineage: what is known of it.
        recipe: with the models where they are now.
    """

    lineage: Lineage
    recipe: Recipe


def repeat(lineage: str | Path, members: Sequence[str | Path] = ()) -> Repeat:
    """Find everything that a merge was made from; `merge(repeat(...).recipe)` makes it again.

    Args:
        lineage: a model's folder, or the lineage file in it.
        members: folders to look for members in; see `find_members`.

    Raises:
        CheckpointError: when there is no lineage, or it cannot be read.
        RecipeError: naming every model that is not there, or not as it was.
    """
    told = read_lineage(lineage)
    places = find_members(told, [Path(one) for one in members])
    files = told.content.get("recipes", {})
    with TemporaryDirectory() as folder:  # nested recipes that have to be files are read from it
        recipes = {name: Path(folder, name) for name in files}
        where = _Where(places, recipes)
        for name, path in recipes.items():
            path.write_text(json.dumps(where.placed(files[name])), encoding="utf-8")
        recipe = validate(Source(where.placed(told.recipe), None, str(told.path)))
    name = "_".join([told.name, *([told.content["point"]] if "point" in told.content else [])])
    return Repeat(told, replace(recipe, name=name))


@dataclass(frozen=True)
class _Where:
    """Where the models and the recipes of a lineage are, by what it calls them."""

    models: Mapping[str, Path]
    recipes: Mapping[str, Path]

    def placed(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe of the lineage with its models where they are."""
        data: dict[str, Any] = json.loads(json.dumps(recipe))
        for _, models in lists_of_models(data):
            for model in models:
                model["model"] = self._model(model["model"])
                if "statistics" in model:
                    model["statistics"] = self._path(model["statistics"])
        if "base_model" in data:
            data["base_model"] = self._model(data["base_model"])
        tokenizer = data.get("tokenizer")
        for at, key in ((data, "tokenizer_source"), (tokenizer, "source")):
            if isinstance(at, dict) and at.get(key) not in {None, "base", "union"}:
                at[key] = self._model(at[key].removeprefix(NO_KEYWORD))
        return data

    def _model(self, named: Any) -> Any:
        if isinstance(named, dict):
            return self.placed(named)
        known = {**self.models, **self.recipes}
        if named in known:
            return self._path(named)
        parts = named.split("+")
        for place in range(1, len(parts)):
            model, adapter = "+".join(parts[:place]), "+".join(parts[place:])
            if model in known and adapter in known:
                return f"{self._path(model)}+{self._path(adapter)}"
        raise CheckpointError(LINEAGE, f"names {named} in its recipe, and not among its models")

    def _path(self, name: str) -> str:
        return str((self.recipes.get(name) or self.models[name]).absolute())


def differences(known: Lineage, output: Path) -> list[str]:
    """The files of a merge made again that have other bytes than they had, or are not the same.

    Raises:
        CheckpointError: when the output has no lineage that can be read.
    """
    made = read_lineage(output)
    names = sorted(known.outputs.keys() | made.outputs.keys())
    return [name for name in names if known.outputs.get(name) != made.outputs.get(name)]


def refuse_different(known: Lineage, output: Path) -> None:
    """Say so where a merge made again has not given the same bytes.

    Raises:
        CheckpointError: naming the files.
    """
    other = differences(known, output)
    if other:
        versions = f"it was merged by mergekit_embed {known.version}, this is {__version__}"
        told = f"is whole, but not what {known.path} tells of: {', '.join(other)} differ"
        raise CheckpointError(output, f"{told} ({versions})")
