"""Where things are that a plan names by relative paths, and what to call them elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.locate import is_folder
from ..checkpoint.reference import split
from .specs import TrainingPlan


def places(plan: TrainingPlan, path: str) -> list[Path]:
    """Where a path of the plan may lead, in the order in which to look."""
    return [folder / Path(path).expanduser() for folder in dict.fromkeys(plan.source.folders)]


def absolute(plan: TrainingPlan) -> TrainingPlan:
    """The plan with absolute paths to its data, for processes with other working directories."""

    def found(path: str) -> str:
        return next((str(one.absolute()) for one in places(plan, path) if one.exists()), path)

    datasets = {name: replace(one, path=found(one.path)) for name, one in plan.datasets.items()}
    stop = plan.early_stop
    if stop is not None:
        stop = replace(stop, task=found(stop.task))
    return replace(plan, datasets=datasets, early_stop=stop)


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
