"""Running a mixture: measure the Gram matrix, ask the method for coefficients, combine."""

from __future__ import annotations

from functools import partial, reduce

import numpy as np

from ..kernels import BLOCK, Doubles, Layout, Output
from ..methods import Gram
from ..methods.notes import collected_notes
from .plan import Job, Plan
from .stream import Chunk, Combiner, Steps, Work, one_pass

GRAM_ELEMENTS = 2**21
"""Most numbers in the Gram matrices of one chunk, when every element has its own."""


def prepare_mixture(work: Work) -> Steps[Combiner]:
    """Find the coefficients of one tensor, and return what mixes with them."""
    job, method = work.job, work.plan.recipe.method
    row = job.shape[-1] if job.shape else 1
    column = job.count // job.shape[0] if job.shape else 1
    if not method.geometry:
        return _alike(work, coefficients_of(work, Gram(np.eye(len(job.sources)))))
    if work.gram is not None:
        return _alike(work, coefficients_of(work, work.gram))
    if job.unit == "element":
        return _row_by_row(work, 1)
    if job.unit == "row" and row <= BLOCK:
        return _row_by_row(work, row)
    if job.unit == "row":
        return (yield from _long_rows(work, row))
    if job.unit == "column" and len(job.shape) > 1:
        return (yield from _by_columns(work, column))
    gram = yield from measure(work)
    return _alike(work, coefficients_of(work, gram))


class GramLook:
    """The Gram matrix of all chunks as one vector."""

    def __init__(self, members: int, absolute: bool):
        self.products = np.zeros((members, members))
        self.absolutes = np.zeros(members) if absolute else None

    def see(self, chunk: Chunk) -> None:
        """See `Look.see`."""
        found = chunk.work.kernels.block_moments(
            chunk.members(), chunk.origin(), self.absolutes is not None
        )
        self.products = reduce(np.add, found.products, self.products)
        if self.absolutes is not None and found.absolutes is not None:
            self.absolutes = reduce(np.add, found.absolutes, self.absolutes)


def measure(work: Work, start: int = 0, stop: int | None = None) -> Steps[Gram]:
    """The Gram matrix of a range of the tensor as one vector.

    One of the whole tensor that is known from before is not measured again.
    """
    absolute = _wants_absolute(work)
    known = work.known(absolute) if start == 0 and stop is None else None
    if known is not None:
        work.advance(work.job.count * work.job.width)  # as gone through
        return known
    look = GramLook(len(work.job.sources), absolute)
    seen = yield from one_pass(work, ("moments", absolute), look, start, stop)
    assert isinstance(seen, GramLook)
    return Gram(seen.products, seen.absolutes)


def _wants_absolute(work: Work) -> bool:
    method, parameters = work.plan.recipe.method, work.job.parameters
    if method.absolute is None or parameters is None:
        return False
    return method.absolute(**method.arguments(parameters, len(work.job.sources)))


def coefficients_of(work: Work, gram: Gram) -> Doubles:
    """The method's coefficients: float64 (..., K)."""
    found, said = coefficients(work.plan, work.job, gram)
    work.note(work.job, said)
    return found


def coefficients(plan: Plan, job: Job, gram: Gram) -> tuple[Doubles, list[str]]:
    """The coefficients that a plan's method gives to a job, and what it has to say of them."""
    method = plan.recipe.method
    assert job.parameters is not None
    arguments = method.arguments(job.parameters, len(job.sources))
    with collected_notes() as said:
        found = method.function(gram, **arguments)
    return np.asarray(found, dtype=np.float64), said


def _mixed(chunk: Chunk, coefficients: Doubles, layout: Layout) -> Output:
    work = chunk.work
    return work.kernels.mixture(
        chunk.members(), chunk.origin(), coefficients, layout, work.job.dtype, chunk.divide
    )


def _alike(work: Work, coefficients: Doubles) -> Combiner:
    """One vector of coefficients for all elements."""
    shaped = coefficients.reshape(1, 1, -1)
    return Combiner(lambda chunk: _mixed(chunk, shaped, Layout(chunk.count)), work.chunk_elements)


def _row_by_row(work: Work, row: int) -> Combiner:
    """Every `row` consecutive elements are a vector, and a chunk holds whole ones."""
    layout, absolute = Layout(row), _wants_absolute(work)

    def output(chunk: Chunk) -> Output:
        found = work.kernels.vector_moments(chunk.members(), chunk.origin(), layout, absolute)
        gram = Gram(found.products, found.absolutes)
        return _mixed(chunk, coefficients_of(work, gram), layout)

    limit = min(work.chunk_elements, row * max(1, GRAM_ELEMENTS // len(work.job.sources) ** 2))
    return Combiner(output, max(1, limit // row) * row, row)


def _long_rows(work: Work, row: int) -> Steps[Combiner]:
    """Every row is a vector of more than a block, measured by itself."""
    found = []
    for start in range(0, work.job.count, row):
        gram = yield from measure(work, start, start + row)
        found.append(coefficients_of(work, gram).reshape(1, 1, -1))

    def output(chunk: Chunk) -> Output:
        outputs = []
        start = chunk.start
        while start < chunk.stop:
            index = start // row
            part = chunk.part(start, min((index + 1) * row, chunk.stop))
            outputs.append(_mixed(part, found[index], Layout(part.count)))
            start = part.stop
        finite = all(output.finite for output in outputs)
        return Output(np.concatenate([output.raw for output in outputs]), finite)

    return Combiner(output, work.chunk_elements)


class _Columns:
    """A Gram matrix for every column; a chunk holds whole rows, or lies anywhere in long ones."""

    def __init__(self, members: int, columns: int):
        self.columns = columns
        self.products = np.zeros((columns, members, members))

    def see(self, chunk: Chunk) -> None:
        moments = partial(chunk.work.kernels.vector_moments, absolute=False)
        if self.columns <= BLOCK:
            layout = Layout(chunk.count // self.columns, self.columns)
            self.products += moments(chunk.members(), chunk.origin(), layout).products[0]
            return
        found = moments(chunk.members(), chunk.origin(), Layout(1, chunk.count)).products[0]
        start = chunk.start
        while start < chunk.stop:
            left = start % self.columns
            span = min(self.columns - left, chunk.stop - start)
            first = start - chunk.start
            self.products[left : left + span] += found[first : first + span]
            start += span


def _by_columns(work: Work, columns: int) -> Steps[Combiner]:
    """Every column is a vector. Sums are cut by the shape alone, never by the kernels' taste."""
    look = _Columns(len(work.job.sources), columns)
    rows = 1 << max(0, (4 * BLOCK // columns).bit_length() - 1)
    of = rows * columns if columns <= BLOCK else BLOCK
    seen = yield from one_pass(work, "columns", look, of=of)
    assert isinstance(seen, _Columns)
    found = coefficients_of(work, Gram(seen.products))

    def output(chunk: Chunk) -> Output:
        places = np.arange(chunk.start, chunk.stop) % columns
        return _mixed(chunk, found[places][None], Layout(1, chunk.count))

    return Combiner(output, min(work.chunk_elements, of))
