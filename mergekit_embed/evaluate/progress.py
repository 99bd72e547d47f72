"""What a run tells of itself while it is on its way."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how an evaluation is getting on."""

    def start(self, cost: float, units: int, cached: int) -> None:
        """So many tasks are to be run, `cached` more are done already; `cost` of all to run."""

    def spared(self, cost: float, units: int) -> None:
        """So many of these need not be run: a recipe was merged, and its results are there."""

    def began(self, label: str, task: str, cost: float, texts: int | None) -> None:
        """A task begins; it embeds so many texts, where that is known."""

    def embedded(self, texts: int) -> None:
        """So many more texts are embedded."""

    def finished(self, label: str, task: str, score: float) -> None:
        """A task is done, and its result on the disk; the score is in points."""

    def note(self, text: str) -> None:
        """Something that the user should know and that is no error."""


class Silent:
    """Progress that nobody watches."""

    def start(self, cost: float, units: int, cached: int) -> None:
        """See `Progress.start`."""

    def spared(self, cost: float, units: int) -> None:
        """See `Progress.spared`."""

    def began(self, label: str, task: str, cost: float, texts: int | None) -> None:
        """See `Progress.began`."""

    def embedded(self, texts: int) -> None:
        """See `Progress.embedded`."""

    def finished(self, label: str, task: str, score: float) -> None:
        """See `Progress.finished`."""

    def note(self, text: str) -> None:
        """See `Progress.note`."""
