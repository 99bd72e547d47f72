"""What all tests share: no network, and a family of tiny models that is built once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import pytest
from helpers import files
from tiny_models import build_minilm, perturb

from mergekit_embed.kernels.compilation import compile_all, is_compiled


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once, before workers would all do it at the same time.

    What a shell starts in the background ignores Ctrl-C, and so would all that tests interrupt.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or is_compiled():
        return
    compile_all()


@dataclass(frozen=True)
class Family:
    """A MiniLM-shaped base with a 2_Dense, and three fine-tunes of it, side by side in a folder."""

    root: Path

    @property
    def base(self) -> Path:
        """The common start of the members."""
        return self.root / "base"

    @property
    def members(self) -> tuple[Path, Path, Path]:
        """Three fine-tunes: m1, m2 and m3."""
        return self.root / "m1", self.root / "m2", self.root / "m3"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The models as every test finds them; copy them (see `own_family`) before changing any."""
    made = Family(tmp_path_factory.mktemp("family"))
    build_minilm(made.base, seed=0, dense=True, position_ids=True)
    for seed, member in enumerate(made.members, start=1):
        perturb(made.base, member, seed)
    before = files(made.root)
    yield made
    assert files(made.root) == before, "a test has changed the models that all tests share"


@pytest.fixture
def own_family(family: Family, tmp_path: Path) -> Family:
    """A copy of the family in this test's own folder, `tmp_path`: base, m1, m2 and m3."""
    for model in (family.base, *family.members):
        shutil.copytree(model, tmp_path / model.name)
    return Family(tmp_path)


@pytest.fixture
def among_models(own_family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder of a copy of the family, so that `m1` is a model."""
    monkeypatch.chdir(own_family.root)
