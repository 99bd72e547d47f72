"""Models with known vectors, old enough to be remembered, and a cache of this test's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tensor_folders import Tensors, stored, write_folder

from mergekit_embed.disk import cache_folder
from mergekit_embed.engine import remembered

SHAPES = {
    "embeddings.word_embeddings.weight": (1100, 96),
    "encoder.layer.0.attention.query.weight": (48, 32),
    "encoder.layer.1.attention.query.weight": (32, 48),
    "encoder.layer.1.attention.query.bias": (32,),
    "pooler.empty": (0, 4),
}


@dataclass(frozen=True)
class Scene:
    """A base and members in folders, and the deltas of the members as they are stored."""

    base: Path
    members: tuple[Path, ...]
    tensors: Tensors
    deltas: tuple[Tensors, ...]

    def recipe(self, method: str, **more: object) -> dict[str, object]:
        """A recipe that merges the members."""
        models = [{"model": str(member)} for member in self.members]
        return {"merge_method": method, "base_model": str(self.base), "models": models, **more}


def age(folder: Path, seconds: float = 100.0) -> None:
    """Make the files of a folder look as old as that; the times of status stay."""
    for path in folder.iterdir():
        status = path.stat()
        then = status.st_mtime - seconds
        os.utime(path, (then, then))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Gram matrices, empty; files need not be old, as tests make them just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "FRESH_NS", 0)
    found = cache_folder("grams")
    assert found is not None and found.is_relative_to(tmp_path)
    return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Three members: two that share half of what they learned, and a loud one."""
    random = np.random.default_rng(7)

    def noise(scale: float) -> Tensors:
        return {name: scale * random.standard_normal(shape) for name, shape in SHAPES.items()}

    start, common = stored(noise(1.0), "F32"), noise(0.01)
    own = [noise(0.01), noise(0.01), noise(0.2)]
    share = (1.0, 1.0, 0.0)
    members = [
        stored({n: start[n] + part * common[n] + one[n] for n in SHAPES}, "F32")
        for part, one in zip(share, own, strict=True)
    ]
    base = write_folder(tmp_path / "base", start, "F32")
    folders = [
        write_folder(tmp_path / f"m{number}", member, "F32")
        for number, member in enumerate(members, start=1)
    ]
    deltas = [{name: member[name] - start[name] for name in SHAPES} for member in members]
    return Scene(base, tuple(folders), start, tuple(deltas))
