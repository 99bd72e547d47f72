"""What is ours on the disk: text files that are whole or not there, and the folder of caches."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "MERGEKIT_EMBED_CACHE"
"""The variable that says where caches lie, instead of in the user's."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, even where the power fails.

    The text goes to a hidden file beside, which takes the place of the old one; line ends stay as
    they are.

    Raises:
        OSError: when that fails; the old file is as it was.
    """
    beside = path.with_name(f".{path.name.lstrip('.')}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def cache_folder(name: str) -> Path | None:
    """Where a cache lies: in $MERGEKIT_EMBED_CACHE, or `mergekit_embed` in the user's cache.

    The user's is $XDG_CACHE_HOME where that is a whole path, as its specification has it, else
    `~/.cache`. None for a user without a home.
    """
    own, users = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser() / name
        root = Path(users) if Path(users).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "mergekit_embed" / name
