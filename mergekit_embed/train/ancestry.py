"""What is known of a model that is to be updated: what it was trained from, and on what.

Beside a model that `boom-train` has made lie the plan and the record of its training: above a
member (`OUT/members/NAME`), and beside the merge of all of them (`OUT/merged`). Without
these, a merged model's own lineage has what the record says of its members.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.locate import is_folder, locate
from ..engine.lineage.file import LINEAGE, read_content
from ..errors import UsageError
from .merging import FOLDER
from .places import content_in
from .plan import load
from .record import RECORD, read_all
from .run import MERGED, PLAN

HERE = (Path(),)


@dataclass(frozen=True)
class Ancestry:
    """Where a model comes from, as far as that is known. Paths count from the working directory.

    Attributes:
        base: what its members started from.
        plan: what the plan says that they were trained by; empty when it is not known.
        record: of their training; empty when there is none.
    """

    base: str
    plan: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """What rows were drawn with, so that the same are drawn again."""
        return int(self.plan.get("seed", self.record.get("seed", 0)))

    @property
    def update(self) -> Mapping[str, Any]:
        """What the record says of the update that the model is; empty when it is none."""
        found: Mapping[str, Any] = self.record.get("update") or {}
        return found

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each data set that it has learnt from, by its name."""
        return {name: one["digest"] for name, one in (self.record.get("data") or {}).items()}


def ancestry(model: str, base: str | None, plan: Path | None) -> Ancestry:
    """Find out where a model comes from.

    Args:
        model: a folder, or a Hub id; only of a folder something is found.
        base: what it was trained from, where the caller knows.
        plan: what it was trained by, where the caller knows; the record may lie beside it.

    Raises:
        UsageError: when nobody knows the base.
        RecipeError: when the plan is not in order.
        OutputError: when the record cannot be read.
    """
    folder = _training_of(model)
    if plan is None and folder is not None and (folder / PLAN).is_file():
        plan = folder / PLAN
    elif plan is not None and folder is None and plan.name == PLAN:
        folder = plan.parent
    record = read_all(folder) if folder else _record_in_lineage(model)
    content = content_in(load(plan), Path()) if plan else {}
    known = base or content.get("model")
    if known is None and folder is not None and record:
        name = str(record["model"]["name"])
        known = os.path.relpath(folder / name) if is_folder(name, (folder,)) else name
    elif known is None and record:
        known = _called(str(record["model"]["name"]), locate(model, HERE))
    if known is None:
        reason = f"no {PLAN} and no {RECORD} lie beside it"
        if record:
            reason = f"it was {record['model']['name']}, which is not here"
        elif not is_folder(model, HERE):
            reason = "there is no such folder"
        raise UsageError(
            f"{model}: what it was trained from is not known, as {reason}; name that model with "
            "--base (deltas have to start where its own did)"
        )
    return Ancestry(known, content, record)


def _training_of(model: str) -> Path | None:
    """The folder of the training that a model has come from; None where there is none."""
    if not is_folder(model, HERE):
        return None
    place = locate(model, HERE).resolve()
    folders = [place.parent] if place.name == MERGED else []
    folders += [place.parent.parent] if place.parent.name == FOLDER else []
    ours = (one for one in folders if (one / RECORD).is_file() or (one / PLAN).is_file())
    return next(ours, None)


def _record_in_lineage(model: str) -> dict[str, Any]:
    """What the lineage in a merged model's folder has of the record of its training.

    Of several trainings that of an update counts, else the first; and of the data sets of all that
    began where it did, each.

    Raises:
        CheckpointError: when there is a lineage that cannot be read.
    """
    path = locate(model, HERE) / LINEAGE if is_folder(model, HERE) else Path(LINEAGE)
    if not is_folder(model, HERE) or not path.is_file():
        return {}
    told = [one["training"] for one in read_content(path)["models"] if one.get("training")]
    if not told:
        return {}
    chosen = next((one for one in told if one.get("update")), told[0])
    alike = [one for one in told if one["base"] == chosen["base"]]
    data = {name: dict(own) for one in alike for name, own in one.get("data", {}).items()}
    kept = {key: chosen.get(key) for key in ("plan", "seed", "schedule", "training", "lora")}
    found = {"model": dict(chosen["base"]), **kept, "data": data, "update": chosen.get("update")}
    return {key: value for key, value in found.items() if value is not None}


def _called(name: str, model: Path) -> str | None:
    """A base by the last name of its folder, where one of that name lies near; or its Hub id."""
    around = (Path(), model.absolute().parent, model.absolute().parent.parent)
    for folder in around:
        if is_folder(name, (folder,)):
            return os.path.relpath(folder / name)
    return name if "/" in name else None
