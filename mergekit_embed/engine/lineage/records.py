"""What `boom-train` and `boom-search` have recorded of how members and recipes came to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoint.locate import HUB_ID, is_folder
from ...checkpoint.weights import read_object
from ...errors import CheckpointError
from ..hashing import file_digest
from ..told import last_name

TRAINING = "training.json"
"""The record of a training, two folders above a member: `OUT/members/NAME`."""

SEARCH = "search.json"
"""The record of a search, beside the recipe that it has found."""


FORMAT = 1
"""Of records of trainings."""


def _content(path: Path) -> dict[str, Any]:
    """A file that may be a record of ours: others have files of these names, of whatever kind.

    Ours are renamed into their places when they are whole, so none of them is broken.
    """
    try:
        return read_object(path) if path.is_file() else {}
    except CheckpointError:
        return {}


def training_of(folder: Path) -> dict[str, Any] | None:
    """What the record of a training says of the member in a folder; None where there is none.

    Raises:
        CheckpointError: when there is one that does not say what records say.
    """
    place = folder.resolve()
    path = place.parent.parent / TRAINING
    content = _content(path)
    if content.get("format") != FORMAT:
        return None
    try:
        return _of_member(content, path, place.name)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"is no record of a training: {error!r}") from error


def _of_member(content: Mapping[str, Any], path: Path, model: str) -> dict[str, Any] | None:
    members = content["members"]
    name = next((name for name, one in members.items() if model in one["models"]), None)
    if name is None:
        return None
    member = members[name]
    found = {
        "plan": content["plan"],
        "member": name,
        "base": _named(content["model"], path.parent),
        "seed": content["seed"],
        "schedule": content["schedule"],
        "training": content["training"],
        "lora": content.get("lora"),
        "data": {
            data: {
                **{key: member["rows"][data][key] for key in ("rows", "of")},
                **{key: content["data"][data][key] for key in ("kind", "loss", "digest")},
            }
            for data in member["rows"]
            if data in content["data"]
        },
        "loss": _ends(member.get("curve") or []),
        **{key: member[key] for key in ("steps", "examples", "tokens", "seconds")},
        "versions": member.get("versions"),
    }
    if content.get("update"):
        found["update"] = _update(content["update"], path.parent)
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _ends(curve: list[Mapping[str, Any]]) -> dict[str, float]:
    """The loss at the beginning and at the end."""
    return {"first": curve[0]["loss"], "last": curve[-1]["loss"]} if curve else {}


def _update(update: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = dict(update)
    found["model"] = _named(update["model"], folder)
    found["before"] = [_before(one, folder) for one in update.get("before", [])]
    return found


def _before(one: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = {**one, "model": _named(one["model"], folder)} if one.get("model") else dict(one)
    return {**found, "update": _update(one["update"], folder)} if one.get("update") else found


def _named(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A model without its place: of a path only the last name is kept."""
    parts = str(model["name"]).split("+")
    return {**model, "name": "+".join(_last(part, folder) for part in parts)}


def _last(name: str, folder: Path) -> str:
    if HUB_ID.fullmatch(name) and not name.startswith(".") and not is_folder(name, (folder,)):
        return name
    return last_name(name) or "model"


def search_of(recipe: Path | None) -> dict[str, Any] | None:
    """What the record beside a recipe says of the search that has found it.

    None where there is no record, or the recipe is not as the search has written it.

    Raises:
        CheckpointError: when there is a record that does not say what records say.
    """
    if recipe is None or not recipe.is_file():
        return None
    path = recipe.with_name(SEARCH)
    content = _content(path)
    if content.get("written") != file_digest(recipe):
        return None
    try:
        return _of_search(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"is no record of a search: {error!r}") from error


def _of_search(content: Mapping[str, Any]) -> dict[str, Any]:
    first, found = content["judged"][0], content["found"]
    told = {
        **{key: content[key] for key in ("method", "strategy", "objective", "groups", "stopped")},
        "judged": len(content["judged"]),
        "steps": len(content["losses"]),
        "value": {"first": first["value"], "best": found["value"]},
        "probe": content.get("probe"),
        "dev": {
            re.sub(r" \(.*\)$", "", name): scores for name, scores in content.get("dev", {}).items()
        },
        "seconds": content["seconds"],
    }
    return {key: value for key, value in told.items() if value not in (None, {}, [])}
