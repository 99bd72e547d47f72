"""Indexes that lie about their shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_embed.checkpoint import weights

from .attack import (
    INDEX,
    NAME,
    OUTSIDE,
    PICKLE,
    SHARD,
    TABLE,
    WEIGHTS,
    Attacks,
    Ground,
    hole,
    one,
    refusal,
    write_good,
    write_json,
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


attack = Attacks()


def index(ground: Ground, content: Any) -> None:
    """The hostile model's weights are told of by an index; its shard is sound."""
    (ground.hostile / WEIGHTS).rename(ground.hostile / SHARD)
    write_json(ground.hostile / INDEX, content)


@attack(f"hostile/{INDEX}", "twice")
def tensor_twice(ground: Ground) -> None:
    """One tensor in two shards, of which readers take the one or the other."""
    index(ground, b'{"weight_map": {"a": "%b", "a": "x"}}' % SHARD.encode())


@attack(f"hostile/{INDEX}", "nested more than")
def index_as_deep_as_the_parser_goes(ground: Ground) -> None:
    """Deep where nobody looks."""
    index(ground, b'{"metadata": ' + b"[" * 900 + b"]" * 900 + b', "weight_map": {"a": "b"}}')


@attack(f"hostile/{INDEX}", "is too large")
def index_of_a_terabyte(ground: Ground) -> None:
    """A hole in the disk."""
    index(ground, {})
    hole(ground.hostile / INDEX, 2**40)


@attack(f"hostile/{INDEX}", "more lists and objects")
def index_of_brackets(ground: Ground) -> None:
    """Nine megabytes of empty lists."""
    index(ground, b'{"weight_map": [' + b"[]," * (3 * 10**6) + b"[]]}")


@attack(f"hostile/{INDEX}", "not valid JSON")
def number_without_end(ground: Ground) -> None:
    """A size of a million digits."""
    index(ground, b'{"metadata": {"total_size": %b}}' % (b"9" * 10**6))


@attack(f"hostile/{INDEX}", "not safetensors")
def index_of_itself(ground: Ground) -> None:
    """The index names itself as the shard."""
    index(ground, {"weight_map": {NAME: INDEX}})


@attack(f"hostile/{INDEX}", "which is not there")
def fifty_thousand_shards_that_are_not_there(ground: Ground) -> None:
    """A name for every tensor."""
    index(ground, {"weight_map": {f"t{i}": f"shard{i}" for i in range(50_000)}})


@attack(f"hostile/{INDEX}", "does not hold it")
def empty_name(ground: Ground) -> None:
    """A tensor without a name."""
    index(ground, {"weight_map": {"": SHARD}})


@attack("recipe.yaml", "lacks")
def index_of_one_tensor_alone(ground: Ground) -> None:
    """An index that leaves out what its shard holds."""
    index(ground, {"weight_map": {NAME: SHARD}})


test_a_lying_index_is_refused = attack.test()


def test_one_shard_under_many_spellings_is_read_once(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [TABLE, NAME, f"{NAME[:-6]}bias"]
    index(ground, {"weight_map": {name: "./" * i + SHARD for i, name in enumerate(names)}})
    read = []
    original = weights.read_header
    monkeypatch.setattr(weights, "read_header", lambda path: read.append(path) or original(path))
    ground.merged(ground.write())
    assert read.count(ground.hostile / SHARD) == 1


def test_what_an_index_says_besides_is_nobody_s_business(ground: Ground) -> None:
    names = [TABLE, NAME, f"{NAME[:-6]}bias"]
    metadata = {"total_size": -1, "more": [float("nan")]}
    index(ground, {"metadata": metadata, "weight_map": dict.fromkeys(names, SHARD)})
    ground.merged(ground.write())
