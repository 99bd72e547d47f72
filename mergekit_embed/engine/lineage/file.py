"""merge_lineage.json: what a model was made from. Its form, and how it is read.

A lineage names models by their Hub ids and revisions, or by the last names of their folders; no
path, and nothing of the machine or of who used it. Those of the models that it was made from are in
it too, each once, so that a folder tells its whole history wherever it goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoint.weights import read_object
from ...errors import CheckpointError

LINEAGE = "merge_lineage.json"

FORMAT = 1
"""Of the lineage, under the key `lineage`; readers refuse others."""

NESTED = re.compile(r"recipe-[0-9]+\.yaml")
"""What nested recipes are called that a reference names by their file."""

SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "mergekit_embed": str,
    "name": str,
    "result": str,
    "digest": str,
    "recipe": dict,
    "models": list,
    "outputs": dict,
    "ancestors": dict,
    "times": dict,
}
"""The keys that every lineage has."""


def is_lineage(recipe: Path) -> bool:
    """Whether a file is a lineage, which is known by its name."""
    return recipe.name == LINEAGE


def read_content(path: Path) -> dict[str, Any]:
    """What a lineage file says, once it is known to be one.

    Raises:
        CheckpointError: when it cannot be read, or is no lineage of a format that is known.
    """
    content = read_object(path)
    refuse_misshapen(path, content)
    for ancestor in content["ancestors"].values():
        refuse_misshapen(path, {**ancestor, "ancestors": {}} if _is_object(ancestor) else {})
    return content


def refuse_misshapen(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what has not the keys of a lineage.

    Raises:
        CheckpointError: saying what is wrong.
    """
    if content.get("lineage") != FORMAT:
        told = "is no lineage, or that of another version of mergekit_embed"
        raise CheckpointError(path, told)
    for key, kind in SHAPE.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(path, f"is no lineage: `{key}` is wrong or not there")
    if not all(map(_is_model, content["models"])):
        raise CheckpointError(path, "is no lineage: `models` is wrong")
    recipes = content.get("recipes", {})
    if not _is_object(recipes) or not all(map(NESTED.fullmatch, recipes)):
        raise CheckpointError(path, "is no lineage: `recipes` is wrong")


def _is_model(one: Any) -> bool:
    if not _is_object(one) or not isinstance(one.get("name"), str):
        return False
    files, hub = one.get("files"), one.get("hub")
    if not _is_object(files) or not all(map(_is_file, files.values())):
        return False
    if hub is None:
        return isinstance(one.get("folder"), str)
    return _is_object(hub) and all(isinstance(hub.get(key), str) for key in ("id", "revision"))


def _is_file(one: Any) -> bool:
    sized = _is_object(one) and isinstance(one.get("size"), int)
    return sized and isinstance(one.get("digest"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
