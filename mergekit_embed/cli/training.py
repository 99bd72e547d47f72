"""How `boom-train` shows what it trains: a line a member on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import duration_of, on_terminal, told_columns

if TYPE_CHECKING:
    from ..train.progress import Progress
    from ..train.run import TrainingResult


@dataclass
class _Member:
    """A member that is trained. `first` is the step that this run begins from."""

    title: str
    first: int
    steps: int
    began: float = field(default_factory=lambda: time.monotonic())
    step: int = 0
    loss: float | None = None

    def take(self, step: int, loss: float | None) -> None:
        self.step = step
        self.loss = self.loss if loss is None else loss

    @property
    def told(self) -> str:
        """The step, the loss, and the time left."""
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"step {self.step} of {self.steps}{loss}{self._left}"

    @property
    def _left(self) -> str:
        done = self.step - self.first
        if done < 1 or self.step >= self.steps:
            return ""
        left = (time.monotonic() - self.began) / done * (self.steps - self.step)
        return f", {duration_of(left)} left"


class Lines:
    """Progress as plain lines, for logs: where a member begins, ends, and every ten seconds."""

    EVERY = 10.0

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._members: dict[str, _Member] = {}
        self._spoke = time.monotonic()

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        """See `Progress`."""
        self._members[member] = _Member(f"{member} ({number} of {count})", step, steps)
        onward = f"continued after step {step} of {steps}" if step else f"{steps} steps"
        self._say(f"{self._members[member].title}: {onward}")

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        """See `Progress`."""
        found = self._members[member]
        found.take(step, loss)
        if time.monotonic() - self._spoke >= self.EVERY:
            self._spoke = time.monotonic()
            self._say(f"{found.title}: {found.told}")

    def finished(self, member: str) -> None:
        """See `Progress`."""
        found = self._members[member]
        self._say(f"{found.title}: done, {found.told}")

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._say(f"note: {text}")


class Bars:
    """Progress as a bar for each member on a terminal."""

    def __init__(self, bars: Any):
        self._bars = bars
        self._members: dict[str, _Member] = {}
        self._tasks: dict[str, Any] = {}

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        """See `Progress`."""
        found = self._members[member] = _Member(f"{member} ({number} of {count})", step, steps)
        if member in self._tasks:  # on another machine now
            self._bars.remove_task(self._tasks[member])
        self._tasks[member] = self._bars.add_task(
            found.title, total=steps, completed=step, told=f"step {step} of {steps}"
        )

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        """See `Progress`."""
        found = self._members[member]
        found.take(step, loss)
        self._bars.update(self._tasks[member], completed=step, told=found.told)

    def finished(self, member: str) -> None:
        """See `Progress`."""
        found = self._members[member]
        self._bars.remove_task(self._tasks.pop(member))
        self._bars.console.print(f"{found.title}: done, {found.told}", highlight=False)

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._bars.console.print(f"note: {text}", highlight=False, markup=False)


def shown_training(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """The progress of a training, as `on_terminal` shows it."""
    return on_terminal(Lines, Bars, told_columns, quiet=quiet)


def is_first() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_voice() -> Iterator[None]:
    """Let only the first of several processes say what all of them find."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def as_dict(result: TrainingResult) -> dict[str, Any]:
    """What a training has made, as JSON has it."""
    return {
        "output": str(result.path),
        "recipe": str(result.recipe),
        "members": {
            name: {
                "models": [str(result.path / "members" / model) for model in told["models"]],
                "trained": name in result.trained,
                **{key: told[key] for key in ("steps", "examples", "tokens", "seconds", "best")},
                "loss": told["curve"][-1]["loss"] if told["curve"] else None,
            }
            for name, told in result.members.items()
        },
        "merged": [str(one.path) for one in result.merged],
        "seconds": round(result.seconds, 3),
    }


def summary(result: TrainingResult) -> Iterator[str]:
    """What the user has now, in a line or two."""
    new, count = len(result.trained), len(result.members)
    members = "1 member" if count == 1 else f"{count} members"
    before = f", {count - new} of them before" if new < count else ""
    steps = sum(int(told["steps"]) for told in result.members.values())
    cost = f"{steps:,} steps, {duration_of(result.seconds)}"
    yield f"trained {members} into {result.path / 'members'}{before}   {cost}"
    if result.merged:
        yield from (f"merged them into {one.path}" for one in result.merged)
    else:
        yield f"boom-merge {result.recipe}"
