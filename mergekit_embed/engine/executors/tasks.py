"""What the driver of a merge and its workers tell each other: plain data, and never a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import MergekitEmbedError
from ...methods import Gram
from ..agenda import Agenda, pass_size
from ..journal import Entry
from ..plan import Plan
from ..sharing import Share, shares

TASKS_PER_CPU = 4
"""Tasks for every CPU of the cluster, so that slow ones and dead ones cost little."""

JobKey = tuple[int, int]
"""A job by the number of its plan on the agenda and its place in the plan."""


@dataclass(frozen=True)
class Order:
    """What all workers of a merge need to know.

    Attributes:
        plans: those that are run.
        folders: the folder of each that its files are written in.
        token: what the file that marks these folders says, so that no other is taken for them.
        small: see `Wanted`, as for `keep`.
    """

    plans: tuple[Plan, ...]
    folders: tuple[Path, ...]
    token: str
    small: bool
    keep: int | None


@dataclass(frozen=True)
class Task:
    """Jobs for one CPU: to be measured, for the Gram matrices of layers and models, or merged.

    Attributes:
        size: bytes to go through.
        attempts: how often in a row it was lost before anything of it was done.
    """

    jobs: tuple[JobKey, ...]
    measures: bool
    size: int
    attempts: int = 0

    def without(self, done: set[JobKey], *, advanced: bool) -> Task:
        """What is left to do, where some is done, for another attempt."""
        left = tuple(job for job in self.jobs if job not in done)
        return replace(self, jobs=left, attempts=1 if advanced else self.attempts + 1)


@dataclass(frozen=True)
class Report:
    """What a worker tells from time to time.

    Attributes:
        entries: of finished jobs, whose bytes are on the disk.
        grams: of measured ones.
        said: see `Said.listed`.
        bytes_read: since the last report.
        error: what the task failed with.
    """

    entries: tuple[tuple[JobKey, Entry], ...] = ()
    grams: tuple[tuple[JobKey, Gram], ...] = ()
    said: tuple[tuple[int, str, str], ...] = ()
    bytes_read: int = 0
    error: MergekitEmbedError | None = None


class Keys:
    """The jobs of an agenda by their keys."""

    def __init__(self, agenda: Agenda):
        self._agenda = agenda
        self._places = {id(job): i for plan in agenda.every for i, job in enumerate(plan.jobs)}

    def of(self, share: Share) -> tuple[JobKey, ...]:
        """The keys of jobs."""
        return tuple((self._agenda.number(plan), self._places[id(job)]) for plan, job in share)

    def jobs(self, keys: Sequence[JobKey]) -> Share:
        """The jobs of keys."""
        plans = self._agenda.every
        return [(plans[number], plans[number].jobs[place]) for number, place in keys]


def tasks(agenda: Agenda, jobs: Share, cpus: int, *, measures: bool) -> list[Task]:
    """Cut jobs into tasks, the largest first, which none should be waited for at the end.

    A task writes into one file, that of its first job; a larger one is cut into several. Jobs that
    have tensors in common stay together.
    """
    keys = Keys(agenda)

    def size_of(share: Share) -> int:
        sizes = [pass_size(job) if measures else agenda.merge_size(p, job) for p, job in share]
        return sum(sizes)

    sized = [(share, size_of(share)) for share in shares(jobs)]
    wanted = sum(size for _, size in sized) / max(1, TASKS_PER_CPU * cpus)
    files: dict[tuple[int, int], list[tuple[Share, int]]] = {}
    for share, size in sized:
        plan, job = share[0]
        files.setdefault((agenda.number(plan), job.file), []).append((share, size))
    found = []
    for file in files.values():
        for part in _parts(file, wanted):
            together = [one for share, _ in part for one in share]
            found.append(Task(keys.of(together), measures, sum(size for _, size in part)))
    return sorted(found, key=lambda task: -task.size)


def _parts(sized: Sequence[tuple[Share, int]], wanted: float) -> Iterator[list[tuple[Share, int]]]:
    """Cut a list where a part would get larger than wanted."""
    part: list[tuple[Share, int]] = []
    for one in sized:
        if part and sum(size for _, size in part) + one[1] > wanted:
            yield part
            part = []
        part.append(one)
    if part:
        yield part
