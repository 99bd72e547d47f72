"""Where things are that a plan names by relative paths, and what to call them elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.locate import is_folder
from ..checkpoint.reference import split
from ..recipe.source import plain
from .specs import DatasetSpec, TrainingPlan


def places(plan: TrainingPlan, path: str) -> list[Path]:
    """Where a path of the plan may lead, in the order in which to look."""
    return [folder / Path(path).expanduser() for folder in dict.fromkeys(plan.source.folders)]


def absolute(plan: TrainingPlan) -> TrainingPlan:
    """The plan with absolute paths, for processes with other working directories."""

    def found(path: str) -> str:
        return next((str(one.absolute()) for one in places(plan, path) if one.exists()), path)

    def spec(one: DatasetSpec) -> DatasetSpec:
        mine = one.mine
        if mine is not None and mine.encoder is not None:
            mine = replace(mine, encoder=found(mine.encoder))
        return replace(one, path=found(one.path), mine=mine)

    datasets = {name: spec(one) for name, one in plan.datasets.items()}
    stop = plan.early_stop
    if stop is not None:
        stop = replace(stop, task=found(stop.task))
    return replace(plan, model=found(plan.model), datasets=datasets, early_stop=stop)


def from_folder(plan: TrainingPlan, reference: str, folder: Path) -> str:
    """What a recipe in a folder calls a model that the plan calls so.

    A folder by its relative path, so that all can be moved together; a Hub id as it is.
    """
    model, adapter = split(reference, plan.source.folders)
    parts = [model] if adapter is None else [model, adapter]
    return "+".join(_relative(plan, part, folder) for part in parts)


def _relative(plan: TrainingPlan, reference: str, folder: Path) -> str:
    if not is_folder(reference, plan.source.folders) and not _is_file(plan, reference):
        return reference
    target = next(one for one in places(plan, reference) if one.exists())
    path = os.path.relpath(target.resolve(), folder.resolve())
    return path if path.startswith("..") else f"./{path}"


def _is_file(plan: TrainingPlan, reference: str) -> bool:
    """A recipe in a file may be a model too."""
    return any(one.is_file() for one in places(plan, reference))


def content_in(plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    """What the plan says, as a file in a folder says it: the same things by their paths from there.

    Without `output`, which would be another folder there.
    """
    data: dict[str, Any] = json.loads(json.dumps(plain(plan.source.data)))
    data.pop("output", None)
    data["model"] = from_folder(plan, plan.model, folder)
    for name, entry in data["data"].items():
        entry["path"] = _relative(plan, plan.datasets[name].path, folder)
    for entry in (*data["data"].values(), *(data.get("tasks") or {}).values()):
        mine = entry.get("mine")
        if mine and mine.get("encoder"):
            mine["encoder"] = from_folder(plan, mine["encoder"], folder)
    if data.get("early_stop"):
        data["early_stop"]["task"] = _relative(plan, data["early_stop"]["task"], folder)
    if "merge" in data:
        data["merge"] = json.loads(json.dumps(plain(rebased(plan, folder))))
    return data


def rebased(plan: TrainingPlan, folder: Path) -> Mapping[str, Any]:
    """The plan's `merge` with the paths of its models as a recipe in a folder has them."""
    merge = dict(plan.merge)
    for key in ("base_model", "tokenizer_source"):
        if isinstance(merge.get(key), str):
            merge[key] = from_folder(plan, merge[key], folder)
    merge["models"] = [_entry(plan, entry, folder) for entry in merge.get("models") or ()]
    return merge


def _entry(plan: TrainingPlan, entry: Any, folder: Path) -> Any:
    """An entry of `models`: its model and statistics; a recipe in its place as it stands."""
    if not isinstance(entry, Mapping):
        return entry
    found = dict(entry)
    for key in ("model", "statistics"):
        if isinstance(found.get(key), str):
            found[key] = from_folder(plan, found[key], folder)
    return found
