"""Indexes that lie about their shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .attack import (
    INDEX,
    NAME,
    OUTSIDE,
    PICKLE,
    SHARD,
    WEIGHTS,
    one,
    refusal,
    write_good,
)


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: repr(file)[:20])
@pytest.mark.parametrize("index", [INDEX, f"{PICKLE}.index.json"])
def test_a_shard_outside_the_folder_is_refused(file: Any, index: str, folder: Path) -> None:
    write_good(folder.parent / "x")
    (folder / index).write_text(json.dumps({"weight_map": {NAME: file}}))
    message = refusal(folder)
    assert str(folder / index) in message
    assert "not inside the model's folder" in message
    message.encode()


INDEXES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"{", "not valid JSON"),
    "invalid UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "deeply nested": (b"[" * 100_000, "not valid JSON"),
    "a list": (b"[]", "no `weight_map`"),
    "null": (b"null", "no `weight_map`"),
    "without a map": (b"{}", "no `weight_map`"),
    "a map of null": (b'{"weight_map": null}', "no `weight_map`"),
    "a map of a list": (b'{"weight_map": ["a"]}', "no `weight_map`"),
    "a map of nothing": (b'{"weight_map": {}}', "no `weight_map`"),
    "a shard that is not there": (b'{"weight_map": {"a": "gone"}}', "'gone', which is not there"),
    "a shard without a name": (b'{"weight_map": {"a": ""}}', "'', which is not there"),
    "a shard that is a folder": (b'{"weight_map": {"a": "sub"}}', "'sub', which is not there"),
    "a tensor of another shard": (
        json.dumps({"weight_map": {NAME: SHARD, "missing.weight": SHARD}}).encode(),
        f"'missing.weight' in '{SHARD}', which does not hold it",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_broken_index_is_refused_by_its_name(case: str, folder: Path) -> None:
    raw, said = INDEXES[case]
    write_good(folder / SHARD)
    (folder / "sub").mkdir()
    (folder / INDEX).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / INDEX) in message
    assert said in message


def test_a_lying_shard_is_refused_by_its_own_name(folder: Path) -> None:
    (folder / SHARD).write_bytes(one(shape=[3]))
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: SHARD}}))
    message = refusal(folder)
    assert str(folder / SHARD) in message
    assert NAME in message


@pytest.mark.parametrize("name", [INDEX, WEIGHTS, PICKLE])
def test_a_folder_in_the_place_of_the_weights_is_no_weights(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    message = refusal(folder)
    assert str(folder) in message
    assert "holds no weights" in message


def test_a_link_that_leads_to_itself_is_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).symlink_to(WEIGHTS)
    assert "holds no weights" in refusal(folder)


@pytest.mark.parametrize(("single", "index"), [(WEIGHTS, INDEX), (PICKLE, f"{PICKLE}.index.json")])
def test_a_file_beside_an_index_is_refused_since_one_is_stale(
    single: str, index: str, folder: Path
) -> None:
    write_good(folder / single)
    write_good(folder / SHARD)
    (folder / index).write_text(json.dumps({"weight_map": {NAME: SHARD}}))
    message = refusal(folder)
    assert str(folder) in message
    assert single in message
    assert index in message
