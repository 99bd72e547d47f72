"""Running jobs: what flows in, chunk by chunk, and what flows out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import NonFiniteError
from ..kernels import BLOCK, Divide, Kernels, Output, Raw, Vector
from .plan import KEEP_BYTES, Job, Plan
from .reader import Reader

Write = Callable[[Job, int, Raw], None]
"""Stores the bytes of a job's elements from the given element on."""

Advance = Callable[[int], None]
"""Told how many stored bytes have been gone through."""


class Stopped(Exception):
    """Another worker failed or the user interrupted; this one gives up between two chunks."""


@dataclass(frozen=True)
class Shop:
    """What every job needs: where to read, what to compute with, where to write."""

    plan: Plan
    reader: Reader
    kernels: Kernels
    write: Write
    advance: Advance
    stop: threading.Event = field(default_factory=threading.Event)

    def accept(self, job: Job, start: int, output: Output, vectors: dict[str, Vector]) -> None:
        """Write a chunk of the result, unless it is not finite.

        Raises:
            NonFiniteError: naming the model that holds what is not finite, or the merge itself.
        """
        if not output.finite and not self.plan.recipe.allow_non_finite:
            for label, vector in vectors.items():
                if not self.kernels.is_finite(vector):
                    raise NonFiniteError(
                        f"{label}: tensor {job.name} holds not-a-number or infinity. Repair the "
                        "model, or set `allow_non_finite: true` to merge it as it is"
                    )
            raise NonFiniteError(
                f"tensor {job.name}: the merge overflows {job.dtype}. Choose a wider `out_dtype`, "
                "or set `allow_non_finite: true`"
            )
        self.write(job, start, output.raw)


def part_of(divide: Divide | None, start: int, stop: int) -> Divide | None:
    """A division of a tensor's first elements, as elements `start` to `stop` see it."""
    if divide is None or divide.count <= start:
        return None
    return Divide(divide.divisor, min(divide.count, stop) - start)


class Chunk:
    """Elements `start` to `stop` of a job's tensor, in every source."""

    def __init__(self, stream: Stream, start: int, stop: int):
        self._stream, self.start, self.stop = stream, start, stop

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    @property
    def divide(self) -> Divide | None:
        """Which of these elements are divided once they are merged."""
        return part_of(self._stream.job.divide, self.start, self.stop)

    def members(self) -> list[Vector]:
        """The members' elements."""
        indexes = range(len(self._stream.job.sources))
        return [self._stream.vector(index, self.start, self.stop) for index in indexes]

    def origin(self) -> Vector | None:
        """The base's elements, where deltas start from them."""
        if self._stream.job.origin is None:
            return None
        return self._stream.vector(-1, self.start, self.stop)

    def labelled(self) -> dict[str, Vector]:
        """The elements by the model's label, for messages."""
        plan = self._stream.shop.plan
        labels = (plan.members[index].label for index in self._stream.job.members)
        named = dict(zip(labels, self.members(), strict=True))
        if plan.base is not None and self._stream.job.origin is not None:
            named[plan.base.label] = self.origin()
        return named


class Stream:
    """One tensor of every source of a job, read range by range.

    Ranges are kept between passes when all sources of the tensor are small enough together.
    """

    def __init__(self, job: Job, shop: Shop):
        self.job, self.shop = job, shop
        self._kept: dict[tuple[int, int, int], Vector] | None = (
            {} if job.count * job.width <= KEEP_BYTES else None
        )

    def vector(self, source: int, start: int, stop: int) -> Vector:
        """Elements of one source; -1 is the origin."""
        key = (source, start, stop)
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        tensor = self.job.origin if source < 0 else self.job.sources[source]
        assert tensor is not None
        vector = self.shop.kernels.load(self.shop.reader.read(tensor, start, stop), tensor.read_as)
        if self._kept is not None:
            self._kept[key] = vector
        return vector

    def chunks(self, start: int = 0, stop: int | None = None, of: int = 0) -> Iterator[Chunk]:
        """The range cut into chunks of `of` elements, or of as many blocks as the kernels like."""
        stop = self.job.count if stop is None else stop
        of = of or self.chunk_elements
        for first in range(start, stop, of):
            if self.shop.stop.is_set():
                raise Stopped
            yield Chunk(self, first, min(first + of, stop))

    @property
    def chunk_elements(self) -> int:
        """How many elements of every source the kernels like at once, in whole blocks."""
        return BLOCK * self.shop.kernels.chunk_blocks(len(self.job.sources) + 1)

    def advance(self, elements: int) -> None:
        """Report that so many elements of every source have been gone through."""
        self.shop.advance(elements * self.job.width)
