"""What the commands share: how they speak, how they fail, and how they show progress."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ..errors import MergekitEmbedError, ProblemsError
from ..process import claim, leave

if TYPE_CHECKING:
    from ..engine import Progress


def size_of(count: float) -> str:
    """Bytes for people: "91 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit in {"B", "kB", "MB"} else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def bytes_from(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes as people write them (512MB, 2GB, 1.5GiB, or a plain number), for an option.

    Raises:
        click.BadParameter: when it is nothing of the kind.
    """
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(I?))?B?\s*", value.upper())
    if not found:
        raise click.BadParameter(f"{value!r} is no size; write 512MB or 2GB", context, parameter)
    number, unit, binary = found.groups()
    power = " KMGT".index(unit or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def duration_of(seconds: float) -> str:
    """Seconds for people: "1.2 s", "3 min 5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def failure(error: MergekitEmbedError, *, as_json: bool, recipe: str | None = None) -> None:
    """Say what went wrong: on standard error, or as one JSON line on standard output."""
    if as_json:
        problems = error.problems if isinstance(error, ProblemsError) else ()
        report: dict[str, Any] = {"status": "failed"}
        if recipe is not None:
            report["recipe"] = recipe
        report |= {"error": str(error), "kind": type(error).__name__}
        if problems:
            report["problems"] = [{"where": p.where, "message": p.message} for p in problems]
        if kept := _kept(error):
            report["kept"] = kept
        click.echo(json.dumps(report))
        return
    if isinstance(error, ProblemsError):
        for problem in error.problems:
            click.echo(printable(str(problem)), err=True)
        count = len(error.problems)
        error_line = f"{count} problem{'s' if count > 1 else ''}; {error.outcome}"
        click.echo(click.style(error_line, fg="red", bold=True), err=True)
        return
    click.echo(click.style("error: ", fg="red", bold=True) + printable(str(error)), err=True)
    if kept := _kept(error):
        click.echo(kept, err=True)


@contextmanager
def ends_with_failure(context: click.Context, *, as_json: bool) -> Iterator[None]:
    """An error of ours in the block ends the command: said as by `failure`, with its exit code."""
    try:
        yield
    except MergekitEmbedError as error:
        failure(error, as_json=as_json)
        context.exit(error.exit_code)


def show_notes(notes: Iterable[str]) -> None:
    """What the user should know that is no error, on standard error."""
    for note in notes:
        click.echo(click.style("note: ", fg="yellow") + note, err=True)


def _kept(error: BaseException | None) -> str | None:
    """What an error says of that which is kept for another run, as notes of exceptions are."""
    return "; ".join(getattr(error, "__notes__", ())) or None


LONGEST = 4000
"""Characters of a message; what hostile files are called, or say, may fill many screens."""


def printable(text: str) -> str:
    """A text on one line, without what a file may hold that commands the terminal."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    spelled = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return "".join(spelled)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""What systems answer when standard output goes to a disk that takes no more."""


def terminable() -> None:
    """Let a polite kill clean up as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def run(command: click.Command) -> NoReturn:
    """Run a command as a program; Ctrl-C ends it with a sentence and exit code 1."""
    terminable()
    claim()
    leave(_exit_code(command))


def _exit_code(command: click.Command) -> int:
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        interrupt = error.__context__ if isinstance(error, click.Abort) else error
        told = _kept(interrupt) or "nothing half-written was left"
        click.echo(f"interrupted: {told}", err=True)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        click.echo(f"error: what is printed cannot be written: {error.strerror}", err=True)
        return 1
    return code if isinstance(code, int) else 0


Shown = TypeVar("Shown")


@contextmanager
def on_terminal(
    lines: Callable[[Callable[[str], None]], Shown],
    bars: Callable[[Any], Shown],
    columns: Callable[[], Iterable[Any]],
    *,
    quiet: bool,
) -> Iterator[Shown | None]:
    """Bars on a terminal, plain lines elsewhere, nothing when quiet; all on standard error.

    Args:
        lines: makes plain lines, from what says one.
        bars: makes bars, of a `rich.progress.Progress`.
        columns: gives what a bar is made of; asked for where there are bars alone, as rich is slow.
        quiet: say nothing.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield lines(lambda line: click.echo(line, err=True))
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns(), console=Console(stderr=True), transient=True) as shown:
        yield bars(shown)


def told_columns() -> list[Any]:
    """A bar between what is done and a field `told`."""
    from rich.progress import BarColumn, TextColumn

    return [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")]


class Lines:
    """Progress as plain lines, for logs: one every ten seconds."""

    EVERY = 10.0

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._began = self._spoke = time.monotonic()
        self._total = self._tensors = self._done = self._finished = 0

    def start(self, total: int, tensors: int) -> None:
        """See `Progress.start`."""
        self._total, self._tensors = max(total, 1), tensors

    def advance(self, size: int) -> None:
        """See `Progress.advance`."""
        self._done += size
        now = time.monotonic()
        if now - self._spoke >= self.EVERY:
            self._spoke = now
            rate = max(self._done, 1) / (now - self._began)
            left = max(self._total - self._done, 0) / rate
            self._say(
                f"{100 * self._done / self._total:.0f} %, {self._finished} of {self._tensors} "
                f"tensors, {size_of(rate)}/s, {duration_of(left)} left"
            )

    def finish_tensor(self, name: str) -> None:
        """See `Progress.finish_tensor`."""
        self._finished += 1


class Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, bar: Any):
        self._bar = bar
        self._task: Any = None
        self._tensors = self._finished = 0

    def start(self, total: int, tensors: int) -> None:
        """See `Progress.start`."""
        self._tensors = tensors
        self._task = self._bar.add_task("merging", total=total, tensors=f"0/{tensors} tensors")

    def advance(self, size: int) -> None:
        """See `Progress.advance`."""
        self._bar.advance(self._task, size)

    def finish_tensor(self, name: str) -> None:
        """See `Progress.finish_tensor`."""
        self._finished += 1
        self._bar.update(self._task, tensors=f"{self._finished}/{self._tensors} tensors")


def shown_progress(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """The progress of a merge, as `on_terminal` shows it."""
    return on_terminal(Lines, Bar, _merging_columns, quiet=quiet)


def _merging_columns() -> list[Any]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[tensors]}"),
        TimeRemainingColumn(),
    ]
