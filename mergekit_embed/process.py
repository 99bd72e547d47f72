"""What is known of this process."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import resource
import sys
import threading
from contextlib import suppress
from typing import NoReturn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in malloc.h

MOST_FILES = 2**17
"""Open files of members and outputs."""

_ours = [False]


def claim() -> None:
    """Say that no code but ours and our libraries' runs in this process: it is a command's."""
    _ours[0] = True
    _keep_freed_memory()
    _allow_open_files()
    # Looking for garbage among what is imported and planned takes a quarter of the time before a
    # merge; none is there.
    gc.set_threshold(100_000, 50, 100)


class _Uncollected:
    """How many blocks of the process run without a search for garbage, and whether it was on."""

    def __init__(self) -> None:
        self._lock, self._depth, self._was_on = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._was_on = gc.isenabled()
                gc.disable()
            self._depth += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth and self._was_on:
                gc.enable()


uncollected = _Uncollected()
"""`with uncollected:` makes many objects without a search for garbage among them. What JSON spells
holds itself nowhere, and the search took three quarters of the time of parsing. Any thread may."""


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of a chunk for the next, rather than give it back each time.

    Getting it anew, and zeroed, took a quarter of the time of a merge.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def leave(code: int) -> NoReturn:
    """End the process, with all that is to be done at its end, but leave its memory to the system.

    Python takes apart each module, which lasts as long as merging 300 MB.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _allow_open_files() -> None:
    """As many as the system lets us have: a hundred members have more shards than the usual 1024.

    The usual limit is for programs that still use `select`, which takes no higher numbers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system may have another limit below
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_ours() -> bool:
    """Whether that has been said."""
    return _ours[0]
