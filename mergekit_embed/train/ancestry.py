"""What is known of a model that is to be updated: what it was trained from, and on what.

Beside a model that `boom-train` has made lie the plan and the record of its training: above a
member (`OUT/members/NAME`), and beside the merge of all of them (`OUT/merged`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.locate import is_folder, locate
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
    record = read_all(folder) if folder else {}
    content = content_in(load(plan), Path()) if plan else {}
    known = base or content.get("model")
    if known is None and folder is not None and record:
        name = str(record["model"]["name"])
        known = os.path.relpath(folder / name) if is_folder(name, (folder,)) else name
    if known is None:
        reason = f"no {PLAN} and no {RECORD} lie beside it"
        if not is_folder(model, HERE):
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
