"""The family that all tests of searches read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .scenes import make_family


@pytest.fixture(scope="session")
def kept_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("searched"))


@pytest.fixture
def family_folder(kept_family: Path, tmp_path: Path) -> Path:
    """A copy of the family in this test's own folder."""
    return Path(shutil.copytree(kept_family, tmp_path / "family"))
