"""The lineage of a merged model, as `merge_lineage.json` in its folder tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.lineage.file import LINEAGE, read_content
from ..errors import CheckpointError

__all__ = ["LINEAGE", "Lineage", "find_lineage", "read_lineage"]


@dataclass(frozen=True)
class Lineage:
    """What a model was made from.

    Attributes:
        path: the file that says so.
        digest: of all that determines the bytes of the model: the recipe with its defaults, and
            the hashes of what was read. Merges with the same digest have the same weights; names
            and times have no part in it. 32 hexadecimal digits.
        version: of mergekit_embed that merged it.
        name: what the recipe is called.
        result: "model" or "adapter".
        recipe: as it was run, with the defaults, naming the models as `models` does.
        models: every model that was read: `name`, `files` with their hashes, and, where these are
            known, `hub`, `training`, and the digest of its own `lineage`.
        outputs: the hash of every file that the merge has written, by its path.
        ancestors: the lineages of the models, and of theirs, by their digests.
        content: all of it, as the file has it.
    """

    path: Path
    digest: str
    version: str
    name: str
    result: str
    recipe: Mapping[str, Any]
    models: tuple[Mapping[str, Any], ...]
    outputs: Mapping[str, str]
    ancestors: Mapping[str, Mapping[str, Any]]
    content: Mapping[str, Any]


def read_lineage(folder: str | Path) -> Lineage:
    """The lineage of the model in a folder.

    Args:
        folder: the model's, or the lineage file itself.

    Raises:
        CheckpointError: when there is none, or it cannot be read.
    """
    found = find_lineage(folder)
    if found is None:
        told = f"holds no {LINEAGE}, which every merge writes"
        raise CheckpointError(Path(folder).expanduser(), told)
    return found


def find_lineage(folder: str | Path) -> Lineage | None:
    """As `read_lineage`, but None for a folder that holds none.

    Raises:
        CheckpointError: when there is one that cannot be read.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        path /= LINEAGE
    if not path.is_file():
        return None
    content = read_content(path)
    return Lineage(
        path=path,
        digest=content["digest"],
        version=content["mergekit_embed"],
        name=content["name"],
        result=content["result"],
        recipe=content["recipe"],
        models=tuple(content["models"]),
        outputs=content["outputs"],
        ancestors=content["ancestors"],
        content=content,
    )
