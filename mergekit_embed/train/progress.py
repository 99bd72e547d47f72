"""What training tells as it goes on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told of every member. Members of a Ray cluster are trained side by side."""

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        """A member is trained, the `number`-th of `count`, from a step on (0: from the start)."""

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        """So many steps of it are done; the loss where it is known, a mean since the last one."""

    def finished(self, member: str) -> None:
        """Its models are in their places."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Tells nobody."""

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        """See `Progress`."""

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        """See `Progress`."""

    def finished(self, member: str) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""
