"""Members that come from the Hub: by revision, resumed when cut, with its advice when refused."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

import mergekit_embed
from mergekit_embed.checkpoint import NotFoundError, locate
from mergekit_embed.errors import RecipeError

from .server import CutError, Fault, LoopbackHub
from .test_push import contents, pushed

MEMBER = "lab/member"


def found(reference: str = MEMBER) -> Path:
    return locate(reference, (Path("/nowhere"),))


def refusal(reference: str = MEMBER) -> str:
    with pytest.raises(NotFoundError) as caught:
        found(reference)
    said = str(caught.value)
    assert "hf_" not in said and "\n" not in said
    return said


@pytest.fixture
def member(hub: LoopbackHub, merged: Path) -> str:
    """A model on the Hub, of which nothing is here."""
    pushed(merged, MEMBER)
    hub.calm()
    return MEMBER


def test_members_are_merged_from_the_hub_by_revision(
    hub: LoopbackHub, member: str, merged: Path, tmp_path: Path
) -> None:
    first = hub.store.repository(member).refs["refs/heads/main"]
    here = shutil.copytree(merged, tmp_path / "here")
    (merged / "NOTES.txt").write_text("a later commit")
    pushed(merged, member)
    second = hub.store.repository(member).refs["refs/heads/main"]
    assert first != second
    told = {"merge_method": "linear", "max_shard_size": "30KB"}
    models = [{"model": f"{member}@{first}"}, {"model": member}]
    result = mergekit_embed.merge({**told, "models": models}, tmp_path / "out")
    manifest = (result.path / "merge_manifest.json").read_text()
    assert f"{member}@{first}" in manifest and f"{member}@{second}" in manifest
    same = [{"model": str(here)}, {"model": str(merged)}]
    local = mergekit_embed.merge({**told, "models": same}, tmp_path / "local")
    weights = [name for name in contents(local.path) if name.endswith(".safetensors")]
    assert weights
    for name in weights:
        assert contents(result.path)[name] == contents(local.path)[name]


def test_what_is_here_is_not_fetched_again(hub: LoopbackHub, member: str) -> None:
    folder = found()
    hub.calm()
    assert found() == folder
    assert not hub.asked("GET .*/resolve/")


@pytest.fixture
def large(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two files of four megabytes on the Hub, which come in pieces of 64 kB, one by one."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ones = np.ones((1000, 1000), np.float32)
    for part in ("1", "2"):
        save_file({part: ones * float(part)}, folder / f"model-{part}.safetensors")
    index = {"weight_map": {part: f"model-{part}.safetensors" for part in ("1", "2")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    pushed(folder, MEMBER)
    hub.calm()
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 65536)
    snapshot = huggingface_hub.snapshot_download
    one_by_one = functools.partial(snapshot, max_workers=1)
    monkeypatch.setattr("huggingface_hub.snapshot_download", one_by_one)
    return MEMBER


FILE = r"GET .*/resolve/.*/model-\d.safetensors"


def test_a_connection_that_is_cut_goes_on_where_it_was(hub: LoopbackHub, large: str) -> None:
    pieces = 0

    def cut_once(point: int) -> None:
        nonlocal pieces
        pieces += bool(re.fullmatch(FILE, hub.requests[-1]))
        if pieces == 40:
            pieces += 1
            raise CutError

    hub.at_point = cut_once
    assert len(list(found().glob("*.safetensors"))) == 2
    assert len(hub.asked(FILE)) == 3
    assert pieces < 2 * 4_000_000 / 65536 + 20, "not from the beginning"


def test_files_that_have_come_are_kept_when_the_hub_goes_away(hub: LoopbackHub, large: str) -> None:
    def go_away(point: int) -> None:
        hub.down = hub.down or len(hub.asked(FILE)) == 2

    hub.at_point = go_away
    said = refusal()
    assert "could not be downloaded" in said
    assert "run the same command again: files that have come are kept" in said
    hub.calm()
    assert len(list(found().glob("*.safetensors"))) == 2
    assert len(hub.asked(FILE)) == 1


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("hf_bob", "the Hub has no model lab/member (or it is private: `hf auth login`)"),
        (None, "the Hub has no model lab/member (or it is private: `hf auth login`)"),
        ("hf_nobody", "the Hub does not know the token; run `hf auth login` again"),
    ],
)
def test_a_private_member(
    hub: LoopbackHub,
    member: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    token: str | None,
    told: str,
) -> None:
    hub.store.repository(member).private = True
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert told in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert (found() / "config.json").is_file()


def test_a_gated_member(hub: LoopbackHub, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.store.repository(member).gated = True
    told = f"{member} is gated: ask for access on its page of the Hub, then run `hf auth login`"
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert refusal() == told
    hub.gate[member] = {"bob"}
    assert (found() / "config.json").is_file()


def test_no_such_model_or_revision(hub: LoopbackHub, member: str) -> None:
    assert "the Hub has no model lab/nothing" in refusal("lab/nothing")
    told = f"the Hub has {member}, but not its revision v9"
    assert refusal(f"{member}@v9") == told


def test_a_hub_in_trouble(hub: LoopbackHub, member: str) -> None:
    hub.faults.append(Fault("GET .*/resolve/", 500, message="http://x/?sig=secret hf_alice"))
    said = refusal()
    assert "could not be downloaded" in said and "secret" not in said


def test_offline(hub: LoopbackHub, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refusal()
    assert f"{member} is not in the Hub's cache and HF_HUB_OFFLINE is set" in said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = found()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert found() == folder
    hub.calm()
    assert hub.requests == []


def test_a_recipe_names_the_member_that_is_refused(hub: LoopbackHub, member: str) -> None:
    models = [{"model": member}, {"model": "lab/nothing"}]
    with pytest.raises(RecipeError, match=r"models\[1\]"):
        mergekit_embed.plan({"merge_method": "linear", "models": models}, "out")
