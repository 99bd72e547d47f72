"""The executor on a Ray cluster: this process plans, journals and commits, workers read and write.

One task is the jobs of one output file, or a part of them, on one CPU. Workers write at the planned
places and report what is finished, and only what is on the disk. A task whose worker dies is given
to another without the jobs that were reported; what else it had written is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import WorkerError
from ...methods import Gram
from ...version import __version__
from ..agenda import Agenda, Grams, pass_size
from ..destination import Destination
from ..plan import Plan
from ..run import Progress, Ran, agenda_of, keep_notes
from ..said import Said
from .cluster import Cluster, marked, packed
from .tasks import JobKey, Keys, Order, Report, Task, tasks
from .worker import work

ATTEMPTS = 4
"""How often in a row a task may be lost before anything of it is done."""

LOOK_SECONDS = 1.0
"""How often it is looked whether machines are left, where nothing is reported."""

PATIENCE_SECONDS = 60.0
"""So long a cluster may be without machines, which one that scales itself is at first."""


class RayExecutor:
    """See `Executor`."""

    def __init__(self, cluster: Cluster, *, small: bool, keep: int | None):
        """`small`, `keep`: see `Wanted`."""
        self._cluster, self._small, self._keep = cluster, small, keep

    def run(
        self, plans: Sequence[Plan], destinations: Sequence[Destination], progress: Progress
    ) -> Ran:
        """See `Executor.run`.

        Raises:
            WorkerError: when machines die again and again, or none is left.
        """
        agenda = agenda_of(plans, destinations)
        said = Said(agenda.every)
        keep_notes(agenda, destinations, said)
        progress.start(agenda.size, len(agenda.wanted))
        if not agenda.wanted:
            return Ran(0, tuple(map(said.summary, plans)))
        for destination in destinations:
            with destination.explained():  # a header written later might cover a worker's bytes
                for file in range(len(destination.plan.files)):
                    destination.flush(file)
        folders = tuple(destination.folder.absolute() for destination in destinations)
        with marked([(d.folder, d.output) for d in destinations]) as token:
            self._cluster.check_shared(folders, token)
            order = packed(Order(tuple(plans), folders, token, self._small, self._keep))
            driver = _Driver(self._cluster, agenda, destinations, said, progress, order)
            driver.measure()
            driver.merge()
        return Ran(driver.bytes_read, tuple(map(said.summary, plans)))


@dataclass
class _Driver:
    """A merge on its way.

    Attributes:
        order: the pickled `Order`.
        grams: of the layers and models that have been measured.
    """

    cluster: Cluster
    agenda: Agenda
    destinations: Sequence[Destination]
    said: Said
    progress: Progress
    order: bytes
    grams: Grams = field(default_factory=dict)
    bytes_read: int = 0

    def __post_init__(self) -> None:
        self._keys = Keys(self.agenda)
        self._sinks = {id(one.plan): one for one in self.destinations}
        self._order = self.cluster.ray.put(self.order)
        self._work = self.cluster.ray.remote(work).options(
            num_cpus=1, max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD"
        )

    def measure(self) -> None:
        """The Gram matrices of layers and models, those of inner recipes first."""
        for level in self.agenda.measured:
            found: dict[JobKey, Gram] = {}
            self._run(tasks(self.agenda, level, self.cluster.cpus, measures=True), found)
            jobs = self._keys.jobs([*found])
            self.grams |= self.agenda.summed(zip(jobs, found.values(), strict=True))

    def merge(self) -> None:
        """Everything that is wanted."""
        self._run(tasks(self.agenda, self.agenda.wanted, self.cluster.cpus, measures=False), {})

    def _run(self, wanted: Sequence[Task], grams: dict[JobKey, Gram]) -> None:
        """Run tasks until all are done; what they measure goes into `grams`."""
        ray = self.cluster.ray
        shared = ray.put(self.grams)
        running: dict[Any, _Running] = {}

        def submit(task: Task) -> None:
            running[self._work.remote(__version__, task, self._order, shared)] = _Running(task)

        try:
            for task in wanted:
                submit(task)
            alone = 0.0
            while running:
                ready, _ = ray.wait([*running], num_returns=1, timeout=LOOK_SECONDS)
                alone = 0.0 if ready or self.cluster.cpus else alone + LOOK_SECONDS
                if alone > PATIENCE_SECONDS:
                    raise WorkerError("the Ray cluster has no machine left that could merge")
                for stream in ready:
                    again = self._hear(stream, running, grams)
                    if again is not None:
                        submit(again)
        except BaseException:
            for stream in running:
                ray.cancel(stream, force=True)
            raise

    def _hear(
        self, stream: Any, running: dict[Any, _Running], grams: dict[JobKey, Gram]
    ) -> Task | None:
        """Take the next report of a task; what is left of the task, when its worker has died."""
        exceptions = self.cluster.ray.exceptions
        one = running[stream]
        try:
            report: Report = self.cluster.ray.get(next(stream))
        except StopIteration:
            del running[stream]
            return None
        except (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError):
            raise
        except exceptions.RayError as error:
            del running[stream]
            return self._left(one, error)
        self._take(report, one, grams)
        return None

    def _left(self, one: _Running, error: Exception) -> Task | None:
        task = one.task.without(one.done, advanced=bool(one.done))
        if task.attempts >= ATTEMPTS:
            _, job = self._keys.jobs(task.jobs)[0]
            reason = " ".join(str(error).split())[:300]
            raise WorkerError(
                f"workers died {ATTEMPTS} times where {job.name} was next, maybe for want of "
                f"memory: {reason}"
            ) from error
        return task if task.jobs else None

    def _take(self, report: Report, one: _Running, grams: dict[JobKey, Gram]) -> None:
        if report.error is not None:
            raise report.error
        self.bytes_read += report.bytes_read
        self.said.take(report.said)
        for key, gram in report.grams:
            grams[key] = gram
            one.done.add(key)
            self._advance(key, measured=True)
        for key, entry in report.entries:
            plan, _ = self._keys.jobs([key])[0]
            self._sinks[id(plan)].add(entry)
            one.done.add(key)
            self._advance(key, measured=False)
            self.progress.finish_tensor(entry.tensor)

    def _advance(self, key: JobKey, *, measured: bool) -> None:
        plan, job = self._keys.jobs([key])[0]
        if id(plan) in self._sinks:  # what is gone through for nested recipes is not counted
            size = pass_size(job) if measured else self.agenda.merge_size(plan, job)
            self.progress.advance(size)


@dataclass
class _Running:
    """A task that a worker has, and what of it is done."""

    task: Task
    done: set[JobKey] = field(default_factory=set)
