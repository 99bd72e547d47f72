"""What the manifest of a merge tells, and what `boom verify` finds out with it."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    MANIFEST,
    WEIGHTS,
    Ran,
    boom_merge,
    changed_json,
    files,
    listed,
    ran,
    recipe,
    write_recipe,
)
from lora import BERT_LINEAR, adapt
from tiny_models import read_tensors, to_pickle

import mergekit_embed
from mergekit_embed.cli.boom import boom
from mergekit_embed.engine import verify as verifying
from mergekit_embed.engine.destination import Destination
from mergekit_embed.engine.hashing import digest_of
from mergekit_embed.engine.lineage.names import public_name

pytestmark = pytest.mark.usefixtures("among_models")

OUT = Path("out")

COPIED = {"embeddings.position_ids"}
"""Copied from one model and compared with nobody's, so read of one model only."""


def boom_verify(*arguments: str | Path) -> Ran:
    return ran(boom, "verify", *arguments)


def merged(*members: str, **more: Any) -> dict[str, Any]:
    """The manifest of a merge into `out`."""
    shutil.rmtree(OUT, ignore_errors=True)
    ran = boom_merge(recipe(*members, **more), "-o", OUT)
    assert ran.code == 0, ran.err
    return manifest()


def manifest() -> dict[str, Any]:
    content = json.loads((OUT / MANIFEST).read_text())
    assert isinstance(content, dict)
    return content


# --- the manifest -------------------------------------------------------------------------


def test_the_manifest_has_the_hash_of_everything_in_the_folder() -> None:
    told = merged(max_shard_size="40kB", out_dtype="bfloat16")
    stored = read_tensors(OUT)
    assert told["tensors"].keys() == stored.keys()
    for name, entry in told["tensors"].items():
        dtype, values = stored[name]
        assert (entry["dtype"], entry["shape"]) == (dtype, list(values.shape))
        assert entry["digest"] == digest_of(raw(OUT / entry["file"], entry["name"]))
    assert told["files"].keys() == files(OUT).keys()
    for name, content in files(OUT).items():
        known = told["files"][name]
        assert known["size"] == len(content)
        if name.endswith(".safetensors"):
            (length,) = struct.unpack("<Q", content[:8])
            assert known["header"] == digest_of(content[: 8 + length])
        else:
            assert known["digest"] == digest_of(content)


def raw(path: Path, name: str) -> bytes:
    """The bytes of a tensor, by the header alone."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    return content[8 + length + begin : 8 + length + end]


METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"base_model": "base", "parameters": {"density": 0.5}},
    "model_stock": {"base_model": "base", "granularity": "layer"},
    "karcher": {"granularity": "model"},
    "dare_ties": {"base_model": "base", "parameters": {"density": 0.5}, "seed": 3},
    "breadcrumbs": {"base_model": "base", "parameters": {"density": 0.5}},
    "della": {"base_model": "base", "parameters": {"density": 0.5}},
    "sce": {"base_model": "base", "parameters": {"select_topk": 0.5}},
    "median": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_input_tensor_has_its_hash(method: str) -> None:
    told = merged(merge_method=method, **METHODS[method])
    models = ["m1", "m2", "m3", *(["base"] if "base_model" in METHODS[method] else [])]
    assert [one["model"] for one in told["inputs"]] == models
    for one in told["inputs"]:
        assert set(one["files"]) == {WEIGHTS, f"2_Dense/{WEIGHTS}"}
        for file, known in one["files"].items():
            path = Path(one["model"], file)
            assert known["size"] == path.stat().st_size
            for name, digest in known["tensors"].items():
                assert digest == digest_of(raw(path, name))
        count = sum(len(known["tensors"]) for known in one["files"].values())
        assert count >= len(read_tensors(Path("m1"))) - len(COPIED)


def test_the_manifest_names_no_place_of_this_machine(tmp_path: Path) -> None:
    merged(str(tmp_path / "m1"), str(Path("m2").absolute()))
    text = (OUT / MANIFEST).read_text()
    assert str(tmp_path) not in text
    assert [one["model"] for one in manifest()["inputs"]] == ["m1", "m2"]


def test_a_model_of_the_hub_is_called_by_its_id_and_revision() -> None:
    cached = Path("hub/models--intfloat--e5-small/snapshots/abc123")
    assert public_name(cached) == "intfloat/e5-small@abc123"
    assert public_name(cached / "sub") == "intfloat/e5-small@abc123"
    assert public_name(Path("/somewhere/members/bag-1")) == "bag-1"
    assert public_name(Path()) == Path.cwd().name


def test_models_of_the_same_name_are_told_apart_by_their_order() -> None:
    for number in ("1", "2"):
        shutil.copytree(f"m{number}", f"run{number}/final")
    told = merged("run1/final", "run2/final")
    assert [one["model"] for one in told["inputs"]] == ["final", "final"]
    first, second = (one["files"][WEIGHTS]["tensors"] for one in told["inputs"])
    assert first.keys() - COPIED == second.keys()
    assert first != second


def test_what_is_not_read_as_it_is_stored_has_no_hash() -> None:
    adapt(Path("m1"), Path("adapter"), seed=1, target_modules=BERT_LINEAR)
    told = merged("m1+adapter", "m2")
    names = [one["model"] for one in told["inputs"]]
    assert names == ["m1", "m2", "adapter"]
    folded, plain, added = (
        {name for known in one["files"].values() for name in known["tensors"]}
        for one in told["inputs"]
    )
    assert folded - COPIED < plain
    assert not added


def test_members_of_nested_recipes_and_pickles_are_told_too() -> None:
    to_pickle(Path("m3"))
    write_recipe(Path("inner.yaml"), {"merge_method": "linear", "models": listed("m2", "m3")})
    told = merged("m1", "inner.yaml")
    assert [one["model"] for one in told["inputs"]] == ["m1", "m2", "m3"]
    for one in told["inputs"]:
        assert all(known["tensors"] for known in one["files"].values())


def test_a_continued_merge_has_the_manifest_of_one_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged(merge_method="ties", **METHODS["ties"])
    expected = (OUT / MANIFEST).read_bytes()
    shutil.rmtree(OUT)
    finished, left = Destination.finished, [17]

    def interrupting(self: Destination, job: Any, learned: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        finished(self, job, learned)

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "finished", interrupting)
        assert boom_merge("recipe.yaml", "-o", OUT).code == 1
    assert boom_merge("recipe.yaml", "-o", OUT).out.startswith("continued: ")
    assert (OUT / MANIFEST).read_bytes() == expected


def test_a_member_s_own_manifest_stays_behind() -> None:
    merged("m1", "m2")
    shutil.move("out", "first")
    Path("first/stray.json").write_text("{}")
    told = merged("first", "m3")
    assert MANIFEST not in told["files"]
    assert "stray.json" in told["files"]


# --- a model against its manifest ---------------------------------------------------------


def test_a_merged_model_is_whole() -> None:
    merged(max_shard_size="40kB")
    for name in ("README.md", ".gitattributes", "eval/results.csv"):
        (OUT / name).parent.mkdir(exist_ok=True)
        (OUT / name).write_text("added later, as one does")
    ran = boom_verify(OUT)
    assert (ran.code, ran.err) == (0, "")
    others = len(files(OUT)) - 2 - len(list(OUT.rglob("*.safetensors")))
    assert ran.out == f"out is as it was merged: 42 tensors, {others} other files\n"
    told = json.loads(boom_verify(OUT, "--json").out)
    assert (told["status"], told["tensors"], told["samples"], told["faults"]) == (
        "whole",
        42,
        0,
        [],
    )
    assert mergekit_embed.verify(OUT).is_whole


@contextmanager
def bytes_of(path: Path) -> Iterator[bytearray]:
    content = bytearray(path.read_bytes())
    yield content
    path.write_bytes(content)


def flipped() -> str:
    entry = manifest()["tensors"]["encoder.layer.0.output.dense.bias"]
    with bytes_of(OUT / WEIGHTS) as content:
        place = content.index(raw(OUT / WEIGHTS, entry["name"]))
        content[place + 7] ^= 16
    return (
        "encoder.layer.0.output.dense.bias: has other bytes in model.safetensors than were merged"
    )


def truncated() -> str:
    size = (OUT / WEIGHTS).stat().st_size
    os.truncate(OUT / WEIGHTS, size - 4)
    return f"model.safetensors: has {size - 4:,} bytes and had {size:,}"


def removed() -> str:
    (OUT / "2_Dense" / WEIGHTS).unlink()
    return "2_Dense/model.safetensors: is missing"


def no_tokenizer() -> str:
    (OUT / "tokenizer.json").unlink()
    return "tokenizer.json: is missing"


def reformatted() -> str:
    with changed_json(OUT / "config.json") as config:
        config["hidden_act"] = "relu"
    size = (OUT / "config.json").stat().st_size
    return f"config.json: has {size:,} bytes and had {manifest()['files']['config.json']['size']:,}"


def other_prompt() -> str:
    with bytes_of(OUT / "modules.json") as content:
        content[-2] = ord("\t")
    return "modules.json: has changed"


def stray() -> str:
    shutil.copy(OUT / WEIGHTS, OUT / "old.safetensors")
    return "old.safetensors: does not belong to the merge"


def renamed_tensor() -> str:
    with bytes_of(OUT / WEIGHTS) as content:
        old = b'"encoder.layer.0.output.dense.bias"'
        place = content.index(old)
        content[place : place + len(old)] = b'"encoder.layer.9.output.dense.bias"'
    return "encoder.layer.0.output.dense.bias: is missing from model.safetensors"


def other_type() -> str:
    with bytes_of(OUT / WEIGHTS) as content:
        place = content.index(b'"F32"')
        content[place : place + 5] = b'"I32"'
    return ": is I32 "


def other_metadata() -> str:
    with bytes_of(OUT / WEIGHTS) as content:
        place = content.index(b'"pt"')
        content[place : place + 4] = b'"tf"'
    return "model.safetensors: has another header"


FAULTS = [
    flipped,
    truncated,
    removed,
    no_tokenizer,
    reformatted,
    other_prompt,
    stray,
    renamed_tensor,
    other_type,
    other_metadata,
]


@pytest.mark.parametrize("change", FAULTS)
def test_every_fault_is_named(change: Callable[[], str]) -> None:
    merged()
    expected = change()
    ran = boom_verify(OUT)
    assert (ran.code, ran.out) == (1, "")
    assert any(expected in line for line in ran.err.splitlines()), ran.err
    assert ran.err.splitlines()[-1].startswith("out: ")
    told = json.loads(boom_verify(OUT, "--json").out)
    assert told["status"] == "faulty"
    assert any(expected in f"{one['where']}: {one['message']}" for one in told["faults"])


def test_all_faults_are_told_together() -> None:
    merged()
    for change in (flipped, no_tokenizer, stray, removed):
        change()
    assert len(mergekit_embed.verify(OUT).faults) == 4


def test_any_flipped_bit_of_the_weights_is_found() -> None:
    merged()
    chance = np.random.default_rng(5)
    original = (OUT / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    for place in chance.integers(8 + length, len(original), 20):
        content = bytearray(original)
        content[place] ^= 1 << int(chance.integers(8))
        (OUT / WEIGHTS).write_bytes(content)
        assert len(mergekit_embed.verify(OUT).faults) == 1
    (OUT / WEIGHTS).write_bytes(original)
    assert mergekit_embed.verify(OUT).is_whole


def test_a_model_without_a_manifest_cannot_be_verified() -> None:
    ran = boom_verify("m1")
    assert ran.code == 1
    assert ran.err.startswith("error: m1: holds no merge_manifest.json")


RIGHT = {"format": 1, "hash": "xxh3_128", "recipe": "x", "files": {}, "tensors": {}}


@pytest.mark.parametrize(
    "content",
    [
        "nonsense",
        [],
        {},
        {**RIGHT, "format": 2},
        {**RIGHT, "hash": "md5"},
        {**RIGHT, "recipe": 1},
        {**RIGHT, "files": []},
        {**RIGHT, "files": {"a": 1}},
        {**RIGHT, "files": {"a": {}}},
        {**RIGHT, "files": {"../m1": {"size": 1}}},
        {**RIGHT, "files": {"/etc": {"size": 1}}},
        {**RIGHT, "tensors": {"a": []}},
    ],
)
def test_a_broken_manifest_is_refused(content: Any) -> None:
    merged()
    told = content if isinstance(content, str) else json.dumps(content)
    (OUT / MANIFEST).write_text(told)
    ran = boom_verify(OUT)
    assert ran.code == 1
    assert ran.err.startswith("error: out/merge_manifest.json: ")


@pytest.mark.parametrize("key", ["tensors", "files"])
def test_a_manifest_that_says_too_little_finds_the_rest_extra(key: str) -> None:
    merged()
    with changed_json(OUT / MANIFEST) as told:
        told[key] = {}
    assert boom_verify(OUT).code == 1


# --- a model against its members ----------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_parts_that_are_merged_again_have_the_same_bytes(method: str) -> None:
    merged(merge_method=method, **METHODS[method])
    found = mergekit_embed.verify(OUT, "recipe.yaml", samples=40, seed=1)
    assert found.faults == ()
    assert found.samples == 40


def test_parts_of_stretched_divided_nested_and_narrow_tensors_are_found_too() -> None:
    write_recipe(Path("inner.yaml"), {"merge_method": "karcher", "models": listed("m2", "m3")})
    merged(
        "m1",
        "inner.yaml",
        out_dtype="bfloat16",
        post=[{"temp_scale": 0.5}, {"extend_positions": 128}],
    )
    found = mergekit_embed.verify(OUT, "recipe.yaml", samples=200, seed=2)
    assert found.faults == ()


def test_what_a_repaired_manifest_hides_the_members_tell() -> None:
    merged()
    name = "encoder.layer.0.output.dense.weight"
    flipped_at = raw(OUT / WEIGHTS, name)
    with bytes_of(OUT / WEIGHTS) as content:
        place = content.index(flipped_at)
        content[place : place + len(flipped_at)] = bytes(len(flipped_at))
    with changed_json(OUT / MANIFEST) as told:
        told["tensors"][name]["digest"] = digest_of(bytes(len(flipped_at)))
    assert boom_verify(OUT).code == 0
    found = mergekit_embed.verify(OUT, "recipe.yaml", samples=300, seed=0)
    assert {fault.where for fault in found.faults} == {name}
    ran = boom_verify(OUT, "--recipe", "recipe.yaml", "--samples", "300")
    assert ran.code == 1
    assert f"{name}: elements " in ran.err


def test_another_recipe_is_not_that_of_the_model() -> None:
    merged("m1", "m2")
    recipe("m1", "m3")
    ran = boom_verify(OUT, "--recipe", "recipe.yaml")
    assert ran.code == 1
    assert "recipe.yaml: is not the recipe of this model" in ran.err


def test_a_member_that_is_another_now_is_found() -> None:
    merged("m1", "m2")
    shutil.rmtree("m2")
    shutil.copytree("m3", "m2")
    found = mergekit_embed.verify(OUT, "recipe.yaml", samples=64)
    assert len({fault.where for fault in found.faults}) > 10


def test_a_member_of_another_layout_is_told_as_such() -> None:
    merged("m1", "m2")
    merged_files = files(OUT)
    recipe("m1", "m2", max_shard_size="40kB")
    with changed_json(OUT / MANIFEST) as told:
        told["recipe"] = verifying.recipe_digest(mergekit_embed.load_recipe("recipe.yaml"))
    found = mergekit_embed.verify(OUT, "recipe.yaml")
    assert {fault.message for fault in found.faults} == {
        "is laid out otherwise than the recipe and its members give now"
    }
    assert files(OUT) == merged_files


def test_a_point_of_a_sweep_is_recognised() -> None:
    recipe("m1", "m2", sweep={"normalize": [True, False]})
    assert boom_merge("recipe.yaml", "-o", OUT).code == 0
    models = sorted(path.parent for path in OUT.glob(f"*/{MANIFEST}"))
    assert len(models) == 2
    for model in models:
        found = mergekit_embed.verify(model, "recipe.yaml", seed=0)
        assert (found.faults, found.samples) == ((), 64)


def test_ranges_are_drawn_anew_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    merged()
    seen: list[Any] = []
    original = verifying._drawn
    monkeypatch.setattr(verifying, "_drawn", lambda *told: seen.append(original(*told)) or seen[-1])
    for seed in (None, None, 4, 4):
        mergekit_embed.verify(OUT, "recipe.yaml", samples=10, seed=seed)
    assert seen[0] != seen[1]
    assert seen[2] == seen[3]


def test_only_what_is_drawn_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    merged()
    from mergekit_embed.engine import run
    from mergekit_embed.engine.reader import Reader

    readers: list[Reader] = []

    def reading(*arguments: Any) -> Reader:
        readers.append(Reader(*arguments))
        return readers[-1]

    monkeypatch.setattr(run, "Reader", reading)
    plan = mergekit_embed.plan("recipe.yaml", "elsewhere")
    found = mergekit_embed.verify(OUT, "recipe.yaml", samples=1, seed=3)
    assert found.samples == 1
    assert 0 < readers[0].bytes_read <= max(job.bytes_in for job in plan.jobs) < plan.bytes_in / 2


def test_a_result_with_faults_is_not_whole() -> None:
    merged()
    found = mergekit_embed.verify(OUT)
    assert found.is_whole
    fault = mergekit_embed.Problem("x", "y")
    assert not replace(found, faults=(fault,)).is_whole
