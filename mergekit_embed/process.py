"""What is known of this process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in malloc.h

_ours = [False]


def claim() -> None:
    """Say that no code but ours and our libraries' runs in this process: it is a command's."""
    _ours[0] = True
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of a chunk for the next, rather than give it back each time.

    Getting it anew, and zeroed, took a quarter of the time of a merge.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def is_ours() -> bool:
    """Whether that has been said."""
    return _ours[0]
