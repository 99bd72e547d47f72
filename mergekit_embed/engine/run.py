"""Running plans: groups of jobs over worker threads, into the files of the destinations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from ..kernels import Kernels, Raw
from ..methods import Gram
from .agenda import Agenda, Grams
from .hashing import DigestOf, Hashes
from .memory import Memory
from .mixtures import measure
from .nested import MergedTensor, merged_within
from .passes import goes_again
from .plan import KEEP_BYTES, Job, Plan
from .prepare import combined, merge_tensor, prepare
from .reader import Reader
from .remembered import Remembered
from .said import Said
from .sharing import Share, shares
from .stream import Combiner, Steps, Work, stream
from .supply import Supply

Result = TypeVar("Result")


@dataclass(frozen=True)
class Learned:
    """What a run has learned of a job beside its result.

    Attributes:
        digest_of: hashes of what was read for the job.
        notes: what the method said of it.
    """

    digest_of: DigestOf
    notes: tuple[str, ...]


class Sink(Protocol):
    """Takes the result of one plan. The bytes of a job come from one thread, first to last."""

    def wants(self, job: Job) -> bool:
        """False for a job whose bytes are there already; it is left out of the run."""

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """Store the bytes of a job's elements from `start` on."""

    def finished(self, job: Job, learned: Learned) -> None:
        """The last byte of the job has been handed over."""

    def notes(self, job: Job) -> Sequence[str]:
        """What the method said of a job that is not wanted."""


class Progress(Protocol):
    """Told how a run is getting on, from any thread."""

    def start(self, total: int, tensors: int) -> None:
        """The run will go through `total` bytes of `tensors` tensors."""

    def advance(self, size: int) -> None:
        """So many more bytes have been gone through."""

    def finish_tensor(self, name: str) -> None:
        """The last byte of a tensor has been written."""


class Silent:
    """Progress that nobody watches."""

    def start(self, total: int, tensors: int) -> None:
        """See `Progress.start`."""

    def advance(self, size: int) -> None:
        """See `Progress.advance`."""

    def finish_tensor(self, name: str) -> None:
        """See `Progress.finish_tensor`."""


@dataclass(frozen=True)
class Ran:
    """What a run did: bytes read from the members, and what the methods said, for each plan."""

    bytes_read: int
    notes: tuple[tuple[str, ...], ...]


def run(
    plans: Sequence[Plan],
    kernels: Kernels,
    sinks: Sequence[Sink],
    progress: Progress,
    keep: int | None = None,
) -> Ran:
    """Combine every tensor that the plans' sinks want, and hand them its bytes.

    Plans that have tensors in common share the reads of them. Of what is read, `keep` bytes are
    kept in memory for another pass; `KEEP_BYTES` by default.

    Raises:
        NonFiniteError, CheckpointError, PlanError, OutputError: the first that a job met.
        ChangedError: when a file is not what it was when the merge was planned.
    """
    stamps = {path: stamp for plan in plans for path, stamp in plan.inputs.items()}
    agenda = agenda_of(plans, sinks)
    with Reader(stamps) as reader, kernels.session():
        running = Running(agenda, kernels, reader, progress, keep)
        keep_notes(agenda, sinks, running.said)
        progress.start(agenda.size, len(agenda.wanted))
        running.measure_groups()
        for _ in running.merge(sinks):
            pass
        remarks = tuple(running.remembered.remarks)
        notes = tuple((*remarks, *running.said.summary(plan)) for plan in plans)
        return Ran(reader.bytes_read, notes)


def agenda_of(plans: Sequence[Plan], sinks: Sequence[Sink]) -> Agenda:
    """What is to be run for the sinks of plans."""
    by_plan = dict(zip(map(id, plans), sinks, strict=True))
    return Agenda(plans, lambda plan, job: by_plan[id(plan)].wants(job))


def keep_notes(agenda: Agenda, sinks: Sequence[Sink], said: Said) -> None:
    """What was said of jobs that are there already, so that a continued run tells it too."""
    wanted = {(id(plan), job.name) for plan, job in agenda.wanted}
    for plan, sink in zip(agenda.plans, sinks, strict=True):
        for job in plan.jobs:
            if (id(plan), job.name) not in wanted:
                said.about(plan).add(job, sink.notes(job))


def derive(
    plan: Plan, kernels: Kernels, ranges: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, list[Raw]]:
    """The bytes of some elements of some tensors, as a merge of the plan would write them.

    Args:
        plan: what would be merged.
        kernels: where to compute.
        ranges: the first element and the one after the last, by the job's name.

    Raises:
        NonFiniteError, CheckpointError, PlanError: as `run` does.
    """
    agenda = Agenda([plan], lambda plan, job: job.name in ranges)

    def steps(work: Work) -> Steps[list[Raw]]:
        combiner = yield from prepare(work)
        return [combined(work, combiner, start, stop) for start, stop in ranges[work.job.name]]

    with Reader(plan.inputs) as reader, kernels.session():
        running = Running(agenda, kernels, reader, Silent())
        running.measure_groups()
        return {job.name: parts for (_, job), parts in running.results(agenda.wanted, steps)}


def _shut_down(pool: ThreadPoolExecutor) -> None:
    """Wait for the workers, which give up soon, however often the user interrupts.

    One that went on would write into files that are closed, or into others in their place.
    """
    while True:
        try:
            pool.shutdown(cancel_futures=True)
            return
        except KeyboardInterrupt:
            continue


class Running:
    """Plans on their way, with the plans of their members that are recipes.

    Attributes:
        grams: of the layers and models that have been measured; what is merged may need them.
        said: what the methods have said so far.
        remembered: Gram matrices that were measured before.
    """

    def __init__(
        self,
        agenda: Agenda,
        kernels: Kernels,
        reader: Reader,
        progress: Progress,
        keep: int | None = None,
    ):
        """`keep`: see `run`."""
        self.agenda, self.kernels, self.reader, self.progress = agenda, kernels, reader, progress
        self.grams: Grams = {}
        self.said = Said(agenda.every)
        self.remembered = Remembered(agenda.every)
        self.stop = threading.Event()
        self._memory = Memory(KEEP_BYTES if keep is None else keep)
        self._combiners: dict[MergedTensor, Combiner] = {}
        self._works: dict[MergedTensor, Work] = {}
        reader.merged = self._read_merged

    def measure_groups(self) -> None:
        """Gram matrices of the layers and models that have to be measured whole."""
        for level in self.agenda.measured:
            self.grams |= self.agenda.summed(self.measure(level))

    def measure(self, jobs: Share) -> Iterator[tuple[tuple[Plan, Job], Gram]]:
        """The Gram matrix of each job's tensor, as they are found."""
        return self.results(jobs, measure)

    def merge(self, sinks: Sequence[Sink], jobs: Share | None = None) -> Iterator[Share]:
        """Run wanted jobs, all by default, and hand what each gives to the sink of its plan.

        Yields:
            jobs that are done, as they are done.
        """
        sink_of = dict(zip(map(id, self.agenda.plans), sinks, strict=True))
        wanted = self.agenda.wanted if jobs is None else jobs

        def steps(work: Work) -> Steps[None]:
            sink = sink_of[id(work.plan)]
            yield from merge_tensor(work, sink.write)
            assert work.supply.hashes is not None
            said = self.said.about(work.plan).of(work.job)
            sink.finished(work.job, Learned(work.supply.hashes.digest, said))
            self.progress.finish_tensor(work.job.name)

        for share, _ in self._in_parallel(shares(wanted), steps, hashed=True):
            yield share

    def results(
        self, jobs: Share, steps: Callable[[Work], Steps[Result]]
    ) -> Iterator[tuple[tuple[Plan, Job], Result]]:
        """What steps give for each of the jobs."""
        for share, found in self._in_parallel(shares(jobs), steps):
            yield from zip(share, found, strict=True)

    def _in_parallel(
        self,
        wanted: Sequence[Share],
        steps: Callable[[Work], Steps[Result]],
        *,
        hashed: bool = False,
    ) -> Iterator[tuple[Share, list[Result]]]:
        """Shares and the results of their jobs as they end; the first failure stops all."""
        with ThreadPoolExecutor(self.kernels.workers, thread_name_prefix="merge") as pool:
            futures: dict[Future[list[Result]], Share] = {}
            try:
                for share in wanted:
                    futures[pool.submit(self._run_share, share, steps, hashed=hashed)] = share
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                self.stop.set()
                _shut_down(pool)
                raise

    def _run_share(
        self, share: Share, steps: Callable[[Work], Steps[Result]], *, hashed: bool
    ) -> list[Result]:
        """Run jobs over one supply of their elements, those of nested recipes first."""
        nested = merged_within(share)
        tensors = [tensor for _, job in share for tensor in job.tensors]
        tensors += [tensor for merged in nested for tensor in merged.job.tensors]
        supply = Supply(tensors, self.reader, self.kernels)
        supply.hashes = Hashes() if hashed else None
        supply.reuse = not nested  # a nested merge may look at other ranges of the same tensors
        again = len(share) > 1 or nested or any(self._goes_again(*one) for one in share)
        with ExitStack() as stack:
            # What is not finite is told by `Work.checked`, by name.
            stack.enter_context(np.errstate(all="ignore"))
            stack.enter_context(self.kernels.worker())
            if again:
                supply.keep = stack.enter_context(self._memory.lent(supply.size, self.stop))
            try:
                self._prepare(nested, supply)
                works = [
                    self._work(plan, job, supply, self.progress.advance) for plan, job in share
                ]
                return self._stream(works, steps)
            finally:
                supply.clear()

    def _goes_again(self, plan: Plan, job: Job) -> bool:
        """Whether elements are wanted again; of a mixture not, where its Gram matrix is known."""
        mixed = plan.recipe.method.family == "mixture"
        known = mixed and self.remembered.gram(plan, job, absolute=False) is not None
        return not known and goes_again(plan, job)

    def _prepare(self, nested: Sequence[MergedTensor], supply: Supply) -> None:
        """Make nested tensors readable, the innermost first."""
        for merged in nested:
            self._works[merged] = self._work(merged.plan, merged.job, supply, lambda size: None)
        for depth in sorted({merged.plan.depth for merged in nested}):
            fresh = [m for m in nested if m.plan.depth == depth and m not in self._combiners]
            combiners = self._stream([self._works[merged] for merged in fresh], prepare)
            self._combiners.update(zip(fresh, combiners, strict=True))

    def _work(self, plan: Plan, job: Job, supply: Supply, advance: Callable[[int], None]) -> Work:
        return Work(
            job=job,
            plan=plan,
            kernels=self.kernels,
            supply=supply,
            gram=self.agenda.gram_of(self.grams, plan, job),
            note=self.said.about(plan).add,
            advance=advance,
            stop=self.stop,
            known=lambda absolute: self.remembered.gram(plan, job, absolute=absolute),
        )

    @staticmethod
    def _stream(works: Sequence[Work], steps: Callable[[Work], Steps[Result]]) -> list[Result]:
        """Run works, those of the same number of elements in step."""
        results: dict[int, Result] = {}
        for count in dict.fromkeys(work.job.count for work in works):
            chosen = [i for i, work in enumerate(works) if work.job.count == count]
            some = [works[i] for i in chosen]
            found = stream(some, [steps(work) for work in some])
            results.update(zip(chosen, found, strict=True))
        return [results[i] for i in range(len(works))]

    def _read_merged(self, tensor: MergedTensor, start: int, stop: int) -> Raw:
        return combined(self._works[tensor], self._combiners[tensor], start, stop)
