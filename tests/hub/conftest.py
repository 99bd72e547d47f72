"""A Hub on this machine for every test, and models to push to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Family

import mergekit_embed

from .client import lead
from .server import LoopbackHub

CARD = "---\nlicense: apache-2.0\ntags:\n- merge\n---\n\n# A merged model\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub, to which this process's client talks, with alice's token."""
    with LoopbackHub(tmp_path / "the-hub") as one:
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        lead(one.url, tmp_path / "cache", monkeypatch.setattr)
        yield one
        assert not one.errors


@pytest.fixture(scope="session")
def merged_once(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of the family, in shards, with a card."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(member)} for member in family.members],
        "max_shard_size": "30KB",
    }
    mergekit_embed.merge(recipe, folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def merged(merged_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(merged_once, tmp_path / "model"))
