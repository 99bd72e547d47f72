"""merge_lineage.json: what a model was made from. Its form, and how it is read.

A lineage names models by their Hub ids and revisions, or by the last names of their folders; no
path, and nothing of the machine or of who used it. Those of the models that it was made from are in
it too, each once, so that a folder tells its whole history wherever it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.weights import read_object
from ..errors import CheckpointError

LINEAGE = "merge_lineage.json"

FORMAT = 1
"""Of the lineage, under the key `lineage`; readers refuse others."""

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
        refuse_misshapen(path, {"ancestors": {}, **ancestor} if _is_object(ancestor) else {})
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
    if not all(_is_object(one) and isinstance(one.get("name"), str) for one in content["models"]):
        raise CheckpointError(path, "is no lineage: `models` is wrong")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
