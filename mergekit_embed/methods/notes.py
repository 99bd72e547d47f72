"""What a method wants to tell the user about one tensor, without knowing which tensor it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class MergeWarning(UserWarning):
    """A merge did something that its user should know of."""


_collector: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(message: str) -> None:
    """Hand `message` to whoever collects notes, or warn when nobody does."""
    collected = _collector.get()
    if collected is None:
        warnings.warn(message, MergeWarning, stacklevel=2)
    else:
        collected.append(message)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collect the notes made in this block, in this thread."""
    notes: list[str] = []
    token = _collector.set(notes)
    try:
        yield notes
    finally:
        _collector.reset(token)
