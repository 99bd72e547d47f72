"""A merge with a hostile model leaves everything as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import files, siblings
from tensor_folders import random_model, write_folder

import mergekit_embed
from mergekit_embed.errors import CheckpointError

from .attack import (
    INDEX,
    NAME,
    PICKLE,
    TRANSFORMER,
    WEIGHTS,
    one,
    write_good,
)
from .test_pickles import Call


def _shard_outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: "../good/model.safetensors"}}))


def _code(folder: Path) -> None:
    torch.save({NAME: Call(os.mkdir, str(folder.parent / "mark"))}, folder / PICKLE)


def _lie(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(one(shape=[2**62]))


def _cut_off(folder: Path) -> None:
    whole = (folder.parent / "good" / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1])


def _modules_outside(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER | {"path": "../good"}]))


@pytest.mark.parametrize("place", ["member", "base"])
@pytest.mark.parametrize("damage", [_lie, _cut_off, _shard_outside, _modules_outside, _code])
def test_a_merge_with_a_hostile_model_writes_nothing(
    damage: Callable[[Path], None], place: str, folder: Path, tmp_path: Path
) -> None:
    good = write_folder(tmp_path / "good", random_model(1), "F32")
    damage(folder)
    before = files(tmp_path)
    members = [good, folder] if place == "member" else [good, good]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder if place == "base" else good),
        "models": [{"model": str(member)} for member in members],
    }
    with pytest.raises(CheckpointError) as refused:
        mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert str(folder) in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert siblings(tmp_path / "out") == []
    assert not (tmp_path / "mark").exists()
    assert files(tmp_path) == before


def test_a_merge_over_an_older_model_leaves_it_when_a_member_is_hostile(
    folder: Path, tmp_path: Path
) -> None:
    good = write_folder(tmp_path / "good", random_model(1), "F32")
    write_folder(tmp_path / "out", random_model(2), "F32")
    _lie(folder)
    before = files(tmp_path)
    recipe = {"merge_method": "linear", "models": [{"model": str(m)} for m in (good, folder)]}
    with pytest.raises(CheckpointError):
        mergekit_embed.merge(recipe, tmp_path / "out", device="cpu", overwrite=True)
    assert files(tmp_path) == before
    assert siblings(tmp_path / "out") == []
