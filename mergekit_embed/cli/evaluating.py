"""How `boom-eval` shows where it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .console import duration_of, on_terminal, told_columns

if TYPE_CHECKING:
    from ..evaluate.progress import Progress


class Clock:
    """How far a run is, in what its tasks cost, and how long the rest will take."""

    def __init__(self) -> None:
        self.total = self.done = self.share = 0.0
        self.units = self.number = 0
        self._cost, self._texts, self._embedded = 0.0, 0, 0
        self._began = time.monotonic()

    def start(self, cost: float, units: int) -> None:
        """The clock runs from here."""
        self.total, self.units = cost, units
        self._began = time.monotonic()

    def spare(self, cost: float, units: int) -> None:
        """So much of it need not be done."""
        self.total -= cost
        self.units -= units

    def begin(self, cost: float, texts: int | None) -> None:
        """A task of this cost begins."""
        self.number += 1
        self._cost, self._texts, self._embedded = cost, texts or 0, 0

    def embed(self, texts: int) -> None:
        """So many more of its texts are embedded."""
        self._embedded += texts

    def finish(self) -> None:
        """The task is done."""
        self.done += self._cost
        self._cost = 0.0

    @property
    def reached(self) -> float:
        """The cost of all that is done, part of the present task included."""
        part = min(self._embedded / self._texts, 1.0) if self._texts else 0.0
        return self.done + part * self._cost

    @property
    def left(self) -> str:
        """The time that is left, in words; nothing before that can be said."""
        reached = self.reached
        if reached <= 0 or reached >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / reached * (self.total - reached)
        return f", {duration_of(seconds)} left"

    @property
    def place(self) -> str:
        """Which task this is."""
        return f"{self.number} of {self.units}"


def _told_start(units: int, cached: int) -> str:
    results = "1 result" if units == 1 else f"{units} results"
    return f"{results} to compute" + (f", {cached} there already" if cached else "")


def _told_spared(units: int) -> str:
    return f"{'1 more result' if units == 1 else f'{units} more results'} there already"


class Lines:
    """Progress as plain lines: where a task ends, and every ten seconds."""

    EVERY = 10.0

    def __init__(self, say: Callable[[str], None]):
        self._say, self._clock, self._spoke = say, Clock(), time.monotonic()
        self._title = ""

    def start(self, cost: float, units: int, cached: int) -> None:
        """See `Progress.start`."""
        self._clock.start(cost, units)
        self._say(_told_start(units, cached))

    def spared(self, cost: float, units: int) -> None:
        """See `Progress.spared`."""
        self._clock.spare(cost, units)
        self._say(_told_spared(units))

    def began(self, label: str, task: str, cost: float, texts: int | None) -> None:
        """See `Progress.began`."""
        self._clock.begin(cost, texts)
        self._title = f"{label} on {task} ({self._clock.place})"

    def embedded(self, texts: int) -> None:
        """See `Progress.embedded`."""
        self._clock.embed(texts)
        if time.monotonic() - self._spoke >= self.EVERY:
            self._spoke = time.monotonic()
            share = 100 * self._clock.reached / max(self._clock.total, 1)
            self._say(f"{self._title}: {share:.0f} % of all{self._clock.left}")

    def finished(self, label: str, task: str, score: float) -> None:
        """See `Progress.finished`."""
        self._clock.finish()
        self._spoke = time.monotonic()
        self._say(f"{self._title}: {score:.2f}{self._clock.left}")

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._say(f"note: {text}")


class Bar:
    """Progress as one bar on a terminal."""

    def __init__(self, bar: Any):
        self._bar, self._clock = bar, Clock()
        self._task: Any = None

    def start(self, cost: float, units: int, cached: int) -> None:
        """See `Progress.start`."""
        self._clock.start(cost, units)
        told = _told_start(units, cached)
        self._task = self._bar.add_task("evaluating", total=max(cost, 1), told=told)

    def spared(self, cost: float, units: int) -> None:
        """See `Progress.spared`."""
        self._clock.spare(cost, units)
        self._bar.update(self._task, total=max(self._clock.total, 1))

    def began(self, label: str, task: str, cost: float, texts: int | None) -> None:
        """See `Progress.began`."""
        self._clock.begin(cost, texts)
        self._bar.update(self._task, description=f"{label} on {task}")
        self._show()

    def embedded(self, texts: int) -> None:
        """See `Progress.embedded`."""
        self._clock.embed(texts)
        self._show()

    def finished(self, label: str, task: str, score: float) -> None:
        """See `Progress.finished`."""
        self._clock.finish()
        self._show()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._bar.console.print(f"note: {text}", highlight=False, markup=False)

    def _show(self) -> None:
        told = f"{self._clock.place}{self._clock.left}"
        self._bar.update(self._task, completed=self._clock.reached, told=told)


def shown_evaluation(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """The progress of an evaluation, as `on_terminal` shows it."""
    return on_terminal(Lines, Bar, told_columns, quiet=quiet)
