"""Locks of files, and what not every file system can do."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot reserve space, or not lock."""


def locked(path: Path) -> int | None:
    """The file, opened and locked; None when the run that held it has just removed it.

    Raises:
        BlockingIOError: when another run holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with where_supported():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def where_supported() -> Iterator[None]:
    """Go on without what the file system cannot do."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
