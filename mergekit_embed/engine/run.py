"""Running a plan: jobs over worker threads, into the files of the destination."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from ..kernels import Kernels
from ..methods import Gram
from ..methods.notes import collected_notes
from .consensus import run_elementwise
from .copies import run_copy
from .mixtures import measure, passes, run_mixture
from .plan import Job, Plan
from .reader import Reader
from .stream import Shop, Stream, Write
from .stretch import run_stretched

Result = TypeVar("Result")


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
    """What a run did: bytes read from the members, and what the methods had to say."""

    bytes_read: int
    notes: tuple[str, ...]


@dataclass
class _Notes:
    """Notes of the methods, with the tensors that each is about."""

    tensors: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job: Job, messages: list[str]) -> None:
        with self.lock:
            for message in dict.fromkeys(messages):
                self.tensors.setdefault(message, []).append(job.name)

    def summaries(self) -> tuple[str, ...]:
        found = []
        for message, names in self.tensors.items():
            names.sort()
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            found.append(f"{', '.join(names[:3])}{more}: {message}")
        return tuple(sorted(found))


def run(plan: Plan, kernels: Kernels, write: Write, progress: Progress) -> Ran:
    """Combine every tensor of the plan and hand its bytes to `write`.

    Raises:
        NonFiniteError, CheckpointError, PlanError, OutputError: the first that a job met.
    """
    method = plan.recipe.method
    total = sum(job.count * job.width * _passes(plan, job) for job in plan.jobs)
    progress.start(total, len(plan.jobs))
    notes = _Notes()
    with Reader() as reader, kernels.session():
        shop = Shop(plan, reader, kernels, write, progress.advance)
        grams = _group_grams(plan, shop) if method.family == "mixture" else {}

        def combine(job: Job, shop: Shop) -> None:
            if job.parameters is None:
                run_copy(job, shop)
            elif method.family == "consensus":
                run_elementwise(job, shop)
            else:
                run_mixture(job, shop, grams.get(_group(job)))

        def finish(job: Job) -> None:
            with collected_notes() as said:
                if job.stretch is not None:
                    run_stretched(job, job.stretch, shop, combine)
                else:
                    combine(job, shop)
            notes.add(job, said)
            progress.finish_tensor(job.name)

        for _ in _in_parallel(plan.jobs, finish, shop):
            pass
        return Ran(reader.bytes_read, notes.summaries())


def _passes(plan: Plan, job: Job) -> int:
    if job.parameters is None:
        return 1
    if plan.recipe.method.family == "consensus":
        return 2
    return passes(job, plan.recipe.method.geometry)


def _group(job: Job) -> str | None:
    return job.group if job.unit in {"layer", "model"} else None


def _group_grams(plan: Plan, shop: Shop) -> dict[str | None, Gram]:
    """Gram matrices of the layers or of the model: sums over their tensors, in the plan's order."""
    grouped = [job for job in plan.jobs if job.parameters is not None and _group(job)]
    if not grouped or not plan.recipe.method.geometry:
        return {}
    sums: dict[str | None, Gram] = {}
    measured = dict(_in_parallel(grouped, lambda job: measure(Stream(job, shop)), shop))
    for job in grouped:
        group = _group(job)
        sums[group] = sums[group] + measured[job.name] if group in sums else measured[job.name]
    return sums


def _in_parallel(
    jobs: Sequence[Job], work: Callable[[Job], Result], shop: Shop
) -> Iterator[tuple[str, Result]]:
    """Names and results of jobs as they end; the first failure stops all of them."""

    def quietly(job: Job) -> Result:
        with np.errstate(all="ignore"):  # what is not finite is told by `Shop.accept`, by name
            return work(job)

    with ThreadPoolExecutor(shop.kernels.workers, thread_name_prefix="merge") as pool:
        names: dict[Future[Result], str] = {pool.submit(quietly, job): job.name for job in jobs}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        except BaseException:
            shop.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
