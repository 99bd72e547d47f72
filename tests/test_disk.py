"""Text files that are whole or not there, and where caches lie."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from mergekit_embed.disk import CACHE, cache_folder, write_whole


def test_a_file_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_whole(path, "ä\r\nb\n")
    assert path.read_bytes() == "ä\r\nb\n".encode()
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / ".state.json"
    write_whole(path, "old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_caches_lie_where_users_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert cache_folder("grams") == tmp_path / "own" / "grams"
    monkeypatch.delenv(CACHE)
    assert cache_folder("grams") == tmp_path / "users" / "mergekit_embed" / "grams"
    monkeypatch.setenv("XDG_CACHE_HOME", "no/whole/path")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("mined") == tmp_path / ".cache" / "mergekit_embed" / "mined"
    monkeypatch.setenv(CACHE, "~/caches")
    assert cache_folder("mined") == tmp_path / "caches" / "mined"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder("grams") is None
