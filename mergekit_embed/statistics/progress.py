"""How a measurement tells of its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how a measurement is getting on."""

    def start(self, what: str, total: int) -> None:
        """A pass begins, over so many texts or examples."""

    def advance(self, count: int) -> None:
        """So many more have been gone through."""


class Silent:
    """Progress that nobody watches."""

    def start(self, what: str, total: int) -> None:
        """See `Progress.start`."""

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
