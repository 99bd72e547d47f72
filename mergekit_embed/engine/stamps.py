"""Whether the files that a merge reads stay as they were when it was planned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import ChangedError, CheckpointError


class Stamp(NamedTuple):
    """What of a file changes when its content does, as far as the file system tells."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """From what the system says of a file."""
        return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def stamp(path: Path) -> Stamp:
    """How a file is now.

    Raises:
        CheckpointError: when it is not there.
    """
    try:
        return Stamp.of(path.stat())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def refuse_changed(path: Path, now: Stamp, known: Stamp | None) -> None:
    """Refuse a file that is not what it was when the merge was planned.

    Raises:
        ChangedError: naming the file.
    """
    if known is not None and now != known:
        raise ChangedError(
            path, "has changed since the merge was planned; wait until it is whole and merge again"
        )
