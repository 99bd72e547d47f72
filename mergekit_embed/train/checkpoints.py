"""Checkpoints that a killed run continues from: only whole ones, and no more than needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..engine.staging import sync, write_json

PREFIX = "checkpoint-"
"""What the trainer calls the folder of a checkpoint, before the number of steps."""

COMPLETE = "complete.json"
"""Is written last: a folder without it is that of a run killed as it wrote."""


def seal(folder: Path) -> None:
    """Say that a checkpoint is whole, once all of it is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    write_json(folder / COMPLETE, {"step": _step(folder)})
    sync(folder)


def latest(work: Path) -> Path | None:
    """The last whole checkpoint in a folder."""
    whole = [folder for folder in work.glob(f"{PREFIX}*") if (folder / COMPLETE).is_file()]
    return max(whole, key=_step, default=None)


def prune(work: Path) -> None:
    """Remove every checkpoint but the last whole one."""
    last = latest(work)
    for folder in work.glob(f"{PREFIX}*"):
        if folder != last:
            shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))
