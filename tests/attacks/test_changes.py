"""Files that change while they are merged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import boom_merge

from mergekit_embed.engine import reader

from .attack import MODULES, WEIGHTS, Ground, check, no_hanging, one, write_json


def truncated(path: Path) -> None:
    """The end of the file goes."""
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    """All of the file goes."""
    os.truncate(path, 0)


def removed(path: Path) -> None:
    """The file goes."""
    path.unlink()


def replaced_by_a_pipe(path: Path) -> None:
    """Opening would wait for a writer."""
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_folder(path: Path) -> None:
    """Reading fails."""
    path.unlink()
    path.mkdir()


def overwritten(path: Path) -> None:
    """As long as it was, and other numbers: half of the result would be of each."""
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + bytes(8))


def longer(path: Path) -> None:
    """More than the header tells of."""
    with path.open("ab") as file:
        file.write(b"more")


def another_model(path: Path) -> None:
    """A sound file of less."""
    path.write_bytes(one(bytes(8)))


def run(ground: Ground) -> None:
    """The merge is refused with one line that names the file, and leaves nothing."""
    recipe = ground.write()
    with no_hanging():
        ran = boom_merge(recipe, "-o", ground.out)
    check(ran, names=ground.hostile / WEIGHTS, says="")
    assert ran.code == 1
    assert not ground.out.exists()
    assert [path.name for path in ground.root.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change",
    [truncated, emptied, removed, replaced_by_a_pipe, replaced_by_a_folder, another_model],
    ids=lambda change: change.__name__,
)
def test_a_file_that_changes_between_plan_and_run_is_refused(
    change: Callable[[Path], None], ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (ground.good, ground.hostile):  # or a tensor of its Dense may be done and kept
        shutil.rmtree(model / "2_Dense")
        write_json(model / "modules.json", MODULES[:2])
    original = reader.Reader.__init__

    def late(self: reader.Reader, *stamps: Any) -> None:
        change(ground.hostile / WEIGHTS)
        original(self, *stamps)

    monkeypatch.setattr(reader.Reader, "__init__", late)
    run(ground)


@pytest.mark.parametrize(
    "change", [truncated, emptied, overwritten, longer, another_model], ids=lambda c: c.__name__
)
def test_a_file_that_changes_during_the_run_is_refused(
    change: Callable[[Path], None], ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = reader.Reader._fill
    left = [ground.hostile / WEIGHTS]

    def late(self: reader.Reader, buffer: Any, tensor: Any, start: int) -> None:
        original(self, buffer, tensor, start)
        if left and tensor.file == left[0]:
            change(left.pop())

    monkeypatch.setattr(reader.Reader, "_fill", late)
    run(ground)
    assert not left, "the file was never read"
