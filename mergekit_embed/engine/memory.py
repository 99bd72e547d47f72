"""Memory that workers share: so many bytes, lent and given back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Another worker failed or the user interrupted; this one gives up where it is."""


class Memory:
    """Bytes that all workers together may keep of what they have read.

    Who asks first is served first, so that many small tensors never starve a large one.
    """

    def __init__(self, size: int):
        self.size = size
        self._free = size
        self._queue: deque[object] = deque()
        self._change = threading.Condition()

    @contextmanager
    def lent(self, wanted: int, stop: threading.Event) -> Iterator[bool]:
        """Wait for this many bytes, and give them back in the end; False: there are not so many.

        Raises:
            Stopped: when everybody is to give up.
        """
        if wanted > self.size:
            yield False
            return
        self._take(wanted, stop)
        try:
            yield True
        finally:
            with self._change:
                self._free += wanted
                self._change.notify_all()

    def _take(self, wanted: int, stop: threading.Event) -> None:
        me = object()
        with self._change:
            self._queue.append(me)
            try:
                while self._queue[0] is not me or self._free < wanted:
                    if stop.is_set():
                        raise Stopped
                    self._change.wait(timeout=0.1)
                self._free -= wanted
            finally:
                self._queue.remove(me)
                self._change.notify_all()
