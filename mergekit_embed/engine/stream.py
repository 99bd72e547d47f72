"""Jobs that share their tensors, run chunk by chunk over one read of them.

The work on a tensor is a generator. Whatever it has to know of all elements (a Gram matrix, a
threshold) it asks for by yielding a `Pass`, and in the end it returns a `Combiner`, which makes the
result for any range. `stream` runs many such generators in step: one read of a chunk serves every
pass that wants it, and what two of them would measure alike is measured once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from ..checkpoint import Tensor
from ..errors import NonFiniteError
from ..kernels import BLOCK, Divide, Kernels, Output, Raw, Vector
from ..methods import Gram
from .memory import Stopped
from .plan import Job, Plan
from .supply import Supply

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """A job with what it needs to be run.

    Attributes:
        plan: the one that the job belongs to.
        supply: where its elements come from; those who share tensors share it.
        gram: of the layer or the model that the tensor belongs to, where these are measured whole.
        note: takes what the method has to say of the tensor.
        advance: told how many stored bytes have been gone through.
        stop: set when everybody is to give up.
        known: the Gram matrix of the tensor (with lengths in L1, if True is said), where it has
            been measured before; None where not.
    """

    job: Job
    plan: Plan
    kernels: Kernels
    supply: Supply
    gram: Gram | None
    note: Callable[[Job, list[str]], None]
    advance: Callable[[int], None]
    stop: threading.Event = field(default_factory=threading.Event)
    known: Callable[[bool], Gram | None] = lambda absolute: None

    @property
    def chunk_elements(self) -> int:
        """How many elements of every source the kernels like at once, in whole blocks."""
        return BLOCK * self.kernels.chunk_blocks(self.supply.tensors + 1)

    def key(self, what: Hashable) -> Hashable:
        """Names a measurement on this job's vectors; the same for jobs with the same ones."""
        return (self.job.sources, self.job.origin, what)

    def chunks(self, start: int, stop: int, of: int) -> Iterator[Chunk]:
        """The range cut into chunks of at most `of` elements.

        Raises:
            Stopped: when everybody is to give up.
        """
        for first in range(start, stop, of):
            if self.stop.is_set():
                raise Stopped
            yield Chunk(self, first, min(first + of, stop))

    def checked(self, chunk: Chunk, output: Output) -> Raw:
        """The bytes of a chunk of the result.

        Raises:
            NonFiniteError: naming the model that holds what is not finite, or the merge itself.
        """
        if output.finite or self.plan.recipe.allow_non_finite:
            return output.raw
        error = NonFiniteError(self._blame(chunk))
        error.recipe = self.plan.recipe.source.shown
        raise error

    def _blame(self, chunk: Chunk) -> str:
        """Who holds what is not finite."""
        for label, vector in chunk.labelled().items():
            if not self.kernels.is_finite(vector):
                return (
                    f"{label}: tensor {self.job.name} holds not-a-number or infinity. Repair the "
                    "model, or set `allow_non_finite: true` to merge it as it is"
                )
        return (
            f"tensor {self.job.name}: the merge overflows {self.job.dtype}. Choose a wider "
            "`out_dtype`, or set `allow_non_finite: true`"
        )


class Chunk:
    """Elements `start` to `stop` of a job's tensor, in every source."""

    def __init__(self, work: Work, start: int, stop: int):
        self.work, self.start, self.stop = work, start, stop

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    @property
    def divide(self) -> Divide | None:
        """Which of these elements are divided once they are merged."""
        divide = self.work.job.divide
        if divide is None or divide.count <= self.start:
            return None
        return Divide(divide.divisor, min(divide.count, self.stop) - self.start)

    def part(self, start: int, stop: int) -> Chunk:
        """Fewer of the elements."""
        return Chunk(self.work, start, stop)

    def members(self) -> list[Vector]:
        """The members' elements."""
        return [self._vector(source) for source in self.work.job.sources]

    def origin(self) -> Vector | None:
        """The base's elements, where deltas start from them."""
        origin = self.work.job.origin
        return None if origin is None else self._vector(origin)

    def fishers(self) -> list[Vector]:
        """The elements' Fishers in the members, where the job has them."""
        measured = self.work.job.measured
        if measured is None or not measured.elementwise:
            return []
        return [self._vector(tensor) for tensor in measured.tensors]

    def raw(self, source: int) -> Raw:
        """The elements of one source as stored bytes."""
        return self.work.supply.raw(self.work.job.sources[source], self.start, self.stop)

    def labelled(self) -> dict[str, Vector]:
        """The elements by the model's label, for messages."""
        plan, job = self.work.plan, self.work.job
        if not job.dtype.is_float or job.stretch is not None:  # the rows of a table are no source's
            return {}
        labels = [plan.members[index].label for index in job.members] or [plan.shell.label]
        named = dict(zip(labels, self.members(), strict=True))
        if plan.base is not None and job.origin is not None:
            named[plan.base.label] = self.origin()
        fishers = self.fishers()
        named |= zip(job.measured.labels if job.measured and fishers else (), fishers, strict=True)
        return named

    def _vector(self, tensor: Tensor) -> Vector:
        return self.work.supply.vector(tensor, self.start, self.stop)


class Look(Protocol):
    """Something that is done with all chunks of a pass, first to last."""

    def see(self, chunk: Chunk) -> None:
        """Take in the next chunk."""


@dataclass(frozen=True)
class Pass:
    """One way through elements `start` to `stop`, in chunks of `of`.

    Looks of the same name are the same: of several jobs that want it, one is chosen to see the
    chunks, and all are given that one. `counts` is false for passes that progress knows nothing of.
    """

    looks: Mapping[Hashable, Look]
    start: int
    stop: int
    of: int
    counts: bool = True


Steps = Generator[Pass, Mapping[Hashable, Look], Result]
"""Work in passes: yields one, is sent its looks when they have seen everything, and so on."""


@dataclass(frozen=True)
class Combiner:
    """Makes the result for any range of elements.

    Attributes:
        output: the result for a chunk.
        of: how many elements it likes at once.
        unit: chunks have to begin and end at multiples of this number of elements.
        is_table: the result is at hand and has its own number of elements; no source is read.
    """

    output: Callable[[Chunk], Output]
    of: int
    unit: int = 1
    is_table: bool = False


def one_pass(
    work: Work, what: Hashable, look: Look, start: int = 0, stop: int | None = None, of: int = 0
) -> Steps[Look]:
    """Show one look all chunks of a range; what comes back has seen them, and may be another's."""
    stop = work.job.count if stop is None else stop
    key = work.key((what, start, stop))
    looks = yield Pass({key: look}, start, stop, of or work.chunk_elements)
    return looks[key]


def stream(works: Sequence[Work], steps: Sequence[Steps[Result]]) -> list[Result]:
    """Run the work on tensors of the same number of elements in step, and return its results.

    Raises:
        Stopped: when everybody is to give up.
    """
    results: dict[int, Result] = {}
    waiting: dict[int, Pass] = {}

    def go_on(index: int, step: Callable[[], Pass]) -> None:
        waiting.pop(index, None)
        try:
            waiting[index] = step()
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(steps)):
        go_on(index, partial(next, steps[index]))
    while waiting:
        first = next(iter(waiting.values()))
        wanted = (first.start, first.stop, first.of)
        together = {i: p for i, p in waiting.items() if (p.start, p.stop, p.of) == wanted}
        looks: dict[Hashable, tuple[Look, Work]] = {}
        for index, one in together.items():
            for key, look in one.looks.items():
                looks.setdefault(key, (look, works[index]))
        counted = sum(works[index].job.width for index, one in together.items() if one.counts)
        for chunk in works[0].chunks(*wanted):
            for look, work in looks.values():
                look.see(Chunk(work, chunk.start, chunk.stop))
            works[0].advance(chunk.count * counted)
        seen = {key: look for key, (look, _) in looks.items()}
        for index in together:
            go_on(index, partial(steps[index].send, seen))
    return [results[index] for index in range(len(steps))]
