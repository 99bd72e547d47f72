"""Saving what is finished while a merge goes on, so that hardly anything is lost with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ..errors import OutputError

SECONDS = 1.0
BYTES = 256 * 2**20
"""After so many seconds, or so many bytes of finished tensors, these are put on the disk."""

LOOK_SECONDS = 0.1
"""How often it is looked whether it is time."""


class Savable(Protocol):
    """What takes note of finished tensors."""

    @property
    def unsaved(self) -> int:
        """Bytes of finished tensors that a crash would lose."""

    def save(self) -> None:
        """Put them where a crash does not reach them.

        Raises:
            OutputError: when that fails, now and whenever the place is used again.
        """


@contextmanager
def kept(places: Sequence[Savable]) -> Iterator[None]:
    """Save again and again, on one thread for all, so that merging never waits for the disk.

    It ends where a disk is full or fails; the place that met this tells those who write to it.
    """
    end = threading.Event()

    def work() -> None:
        last = time.monotonic()
        while not end.wait(LOOK_SECONDS):
            due = time.monotonic() - last >= SECONDS
            if not due and sum(place.unsaved for place in places) < BYTES:
                continue
            try:
                for place in places:
                    place.save()
            except OutputError:
                return
            last = time.monotonic()

    thread = threading.Thread(target=work, name="journal")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
