"""The ground of the attacks, and a warm process: what is imported first is not a file's doing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from .attack import Ground, write_model


@pytest.fixture
def ground(tmp_path: Path, warm: None) -> Ground:
    """Two sound models of one family in a folder of their own."""
    for seed, name in enumerate(("good", "hostile"), start=1):
        write_model(tmp_path / name, seed)
    return Ground(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, warm: None) -> Path:
    """A model folder that lacks nothing but its weights."""
    made = tmp_path / "hostile"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "bert"}')
    return made


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything is imported that a merge or a pickle needs, and is no garbage to be looked for."""
    import torch

    from mergekit_embed.checkpoint.pickle_file import read_pickle

    root = tmp_path_factory.mktemp("warm")
    for seed, name in enumerate(("good", "hostile"), start=1):
        write_model(root / name, seed)
    ground = Ground(root)
    ground.merged(ground.write())
    torch.save({"a": torch.zeros(1)}, root / "a.bin")
    read_pickle(root / "a.bin")
    gc.freeze()
    yield
    gc.unfreeze()
