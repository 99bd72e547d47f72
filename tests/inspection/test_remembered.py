"""Kept Gram matrices spare a pass, change no byte, and are never those of other weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BACKENDS, set_backend
from tensor_folders import raw_bytes
from test_sinks import Counted

import mergekit_embed
from mergekit_embed.engine import remembered
from mergekit_embed.engine.mixtures import GramLook
from mergekit_embed.engine.planner import Planner
from mergekit_embed.inspect import inspect, models, recipe
from mergekit_embed.recipe import load
from mergekit_embed.search.geometry import measured

from .conftest import Scene, age

METHODS: dict[str, dict[str, Any]] = {
    "model_stock": {},
    "model_stock by layer": {"granularity": "layer"},
    "multislerp": {},
    "multislerp by model": {"granularity": "model"},
    "delta_guided": {"parameters": {"gamma": -1}},
}


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The tensors that a Gram matrix is measured of, as they are."""
    found: list[str] = []
    see = GramLook.see

    def seen(look: GramLook, chunk: Any) -> None:
        found.append(chunk.work.job.name)
        see(look, chunk)

    monkeypatch.setattr(GramLook, "see", seen)
    yield found


def look(scene: Scene) -> None:
    inspect(models([str(one) for one in scene.members], str(scene.base)))


def merged(scene: Scene, method: str, output: Path, **more: Any) -> dict[str, bytes]:
    wanted = scene.recipe(method.split()[0], **METHODS.get(method, {}), **more)
    progress = Counted()
    mergekit_embed.merge(wanted, output, progress=progress, overwrite=True)
    assert progress.done == progress.total
    return raw_bytes(output)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_merge_takes_them_and_gives_the_same_bytes(
    scene: Scene,
    cache: Path,
    measurements: list[str],
    method: str,
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_backend(monkeypatch, backend)
    before = merged(scene, method, tmp_path / "before")
    assert measurements, "nothing was known"
    look(scene)
    assert len(list(cache.glob("*.json"))) == 1
    measurements.clear()
    assert merged(scene, method, tmp_path / "after") == before
    assert not measurements, "all was known"


def test_inputs_are_then_read_once(scene: Scene, cache: Path, tmp_path: Path) -> None:
    wanted = scene.recipe("model_stock")
    look(scene)
    result = mergekit_embed.merge(wanted, tmp_path / "out")
    assert result.bytes_read == result.bytes_in


def test_the_order_of_the_members_does_not_matter(
    scene: Scene, cache: Path, measurements: list[str], tmp_path: Path
) -> None:
    turned = Scene(scene.base, scene.members[::-1], scene.tensors, scene.deltas[::-1])
    before = merged(turned, "multislerp", tmp_path / "before")
    look(scene)
    measurements.clear()
    assert merged(turned, "multislerp", tmp_path / "after") == before
    assert not measurements


def test_verifying_measures_anew(
    scene: Scene, cache: Path, measurements: list[str], tmp_path: Path
) -> None:
    look(scene)
    merged(scene, "multislerp", tmp_path / "out")
    measurements.clear()
    wanted = scene.recipe("multislerp")
    assert mergekit_embed.verify(tmp_path / "out", wanted).is_whole
    assert measurements, "a kept matrix would vouch for itself"


def test_a_search_takes_them_too(scene: Scene, cache: Path, measurements: list[str]) -> None:
    plan = Planner().plan(load(scene.recipe("self_positioning")), Path("out"))
    before = measured(plan, "cpu")
    look(scene)
    measurements.clear()
    np.testing.assert_array_equal(measured(plan, "cpu"), before)
    assert not measurements


def test_a_second_look_measures_only_signs(
    scene: Scene, cache: Path, measurements: list[str]
) -> None:
    first = inspect(recipe(scene.recipe("model_stock")))
    measurements.clear()
    second = inspect(recipe(scene.recipe("model_stock")))
    assert not measurements
    for one, other in zip(first.tensors, second.tensors, strict=True):
        np.testing.assert_array_equal(one.gram, other.gram)


def test_a_changed_file_is_never_served(scene: Scene, cache: Path, tmp_path: Path) -> None:
    """Though its size, its time and its inode are those of before."""
    look(scene)
    file = scene.members[0] / "model.safetensors"
    status, content = file.stat(), bytearray(file.read_bytes())
    tail = np.frombuffer(content[-4096:], np.float32) * 3
    with file.open("r+b") as opened:
        opened.seek(len(content) - 4096)
        opened.write(tail.tobytes())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (status.st_mtime_ns, status.st_size)
    found = merged(scene, "model_stock", tmp_path / "out")
    shutil.rmtree(cache)
    assert found == merged(scene, "model_stock", tmp_path / "again")


def test_a_replaced_file_is_never_served(scene: Scene, cache: Path, tmp_path: Path) -> None:
    look(scene)
    shutil.copy(scene.members[2] / "model.safetensors", tmp_path / "other")
    (tmp_path / "other").replace(scene.members[0] / "model.safetensors")
    found = merged(scene, "multislerp", tmp_path / "out")
    shutil.rmtree(cache)
    assert found == merged(scene, "multislerp", tmp_path / "again")


def test_of_files_that_were_just_written_nothing_is_kept(
    scene: Scene, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could change again within the resolution of a file system's clock."""
    monkeypatch.setattr(remembered, "FRESH_NS", 2 * 10**9)
    for folder in (scene.base, *scene.members):
        age(folder)
    look(scene)
    assert not cache.exists(), "their status has just changed"


def _truncated(text: str) -> str:
    return text[: len(text) // 2]


def _another_number(text: str) -> str:
    content = json.loads(text)
    key = next(iter(content["grams"]))
    content["grams"][key][0][0][0] *= 2
    return json.dumps(content)


BROKEN = {
    "truncated": _truncated,
    "another number": _another_number,
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "a number": lambda text: "7",
    "no digest": lambda text: json.dumps({"grams": json.loads(text)["grams"]}),
    "deep": lambda text: "[" * 10**6,
    "not UTF-8": lambda text: "\udcff",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_left_aside_with_a_remark(
    scene: Scene, cache: Path, how: str, tmp_path: Path
) -> None:
    before = merged(scene, "model_stock", tmp_path / "before")
    look(scene)
    (file,) = cache.glob("*.json")
    broken = BROKEN[how](file.read_text())
    file.write_bytes(broken.encode("utf-8", "surrogateescape"))
    result = mergekit_embed.merge(scene.recipe("model_stock"), tmp_path / "after")
    assert raw_bytes(tmp_path / "after") == before
    assert [note for note in result.notes if "is broken and was not used" in note] != []
    facts = inspect(models([str(one) for one in scene.members], str(scene.base)))
    assert any("is broken" in note for note in facts.notes)
    again = mergekit_embed.merge(scene.recipe("model_stock"), tmp_path / "again")
    assert again.notes == () and again.bytes_read == again.bytes_in, "it was written anew"


def test_a_cache_that_cannot_be_written_stops_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    monkeypatch.setattr(remembered, "FRESH_NS", 0)
    facts = inspect(models([str(one) for one in scene.members], str(scene.base)))
    assert any("could not be kept" in note for note in facts.notes)


def test_a_user_without_a_home_has_no_cache(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(kind: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(remembered, "FRESH_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folders/do/not/count")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    monkeypatch.chdir(tmp_path)
    look(scene)
    look(scene)
    assert not (tmp_path / "relative").exists()


def test_lengths_in_l1_are_not_forgotten(
    scene: Scene, cache: Path, measurements: list[str], tmp_path: Path
) -> None:
    wanted = scene.recipe("delta_guided", parameters={"norm": "l1"})
    mergekit_embed.merge(wanted, tmp_path / "before")
    inspect(recipe(wanted))
    look(scene)
    measurements.clear()
    mergekit_embed.merge(wanted, tmp_path / "after")
    assert raw_bytes(tmp_path / "after") == raw_bytes(tmp_path / "before")
    assert not measurements


def test_only_so_many_files_are_kept(
    scene: Scene, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MOST_FILES", 3)
    cache.mkdir(parents=True)
    for number in range(5):
        old = cache / f"old{number}.json"
        old.write_text("{}")
        os.utime(old, (number, number))
    look(scene)
    left = {path.stem for path in cache.glob("*.json")}
    assert len(left) == 3 and {"old3", "old4"} < left
