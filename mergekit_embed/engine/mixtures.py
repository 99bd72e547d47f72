"""Running a mixture: measure the Gram matrix, ask the method for coefficients, combine."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ..kernels import BLOCK, Doubles, Layout, Moments
from ..methods import Gram
from .plan import Job
from .stream import Chunk, Shop, Stream

GRAM_ELEMENTS = 2**21
"""Most numbers in the Gram matrices of one chunk, when every element has its own."""


def passes(job: Job, geometry: bool) -> int:
    """How often a job's inputs are gone through."""
    return 2 if geometry and job.unit in {"tensor", "layer", "model", "column"} else 1


def run_mixture(job: Job, shop: Shop, gram: Gram | None) -> None:
    """Merge one tensor; `gram` is given when it is that of a layer or of the model."""
    stream = Stream(job, shop)
    if job.count == 0:
        return
    row = job.shape[-1] if job.shape else 1
    column = job.count // job.shape[0] if job.shape else 1
    method = shop.plan.recipe.method
    if gram is not None or not method.geometry:
        _combine(stream, coefficients_of(job, shop, gram or _unseen(job)), 0, job.count)
    elif job.unit == "element":
        _run_rows(stream, 1)
    elif job.unit == "row" and row <= BLOCK:
        _run_rows(stream, row)
    elif job.unit == "column" and len(job.shape) > 1:
        _run_columns(stream, column)
    else:
        whole = job.count if job.unit != "row" else row
        for start in range(0, job.count, whole):
            found = measure(stream, start, start + whole)
            _combine(stream, coefficients_of(job, shop, found), start, start + whole)


def _unseen(job: Job) -> Gram:
    """Stands in for the Gram matrix where a method takes only its size from it."""
    return Gram(np.eye(len(job.sources)))


def measure(stream: Stream, start: int = 0, stop: int | None = None) -> Gram:
    """The Gram matrix of a range of the tensor as one vector."""
    stop = stream.job.count if stop is None else stop
    count = len(stream.job.sources)
    absolute = _wants_absolute(stream)
    products, absolutes = np.zeros((count, count)), np.zeros(count)
    for chunk in stream.chunks(start, stop):
        found = stream.shop.kernels.block_moments(chunk.members(), chunk.origin(), absolute)
        products = reduce(np.add, found.products, products)
        if found.absolutes is not None:
            absolutes = reduce(np.add, found.absolutes, absolutes)
        stream.advance(chunk.count)
    return Gram(products, absolutes if absolute else None)


def _wants_absolute(stream: Stream) -> bool:
    method, parameters = stream.shop.plan.recipe.method, stream.job.parameters
    if method.absolute is None or parameters is None:
        return False
    return method.absolute(**method.arguments(parameters, len(stream.job.sources)))


def coefficients_of(job: Job, shop: Shop, gram: Gram) -> Doubles:
    """The method's coefficients: float64 (..., K)."""
    method = shop.plan.recipe.method
    assert job.parameters is not None
    arguments = method.arguments(job.parameters, len(job.sources))
    return np.asarray(method.function(gram, **arguments), dtype=np.float64)


def _combine(stream: Stream, coefficients: Doubles, start: int, stop: int) -> None:
    """Write the mixture of a range whose coefficients are the same throughout, shape (K,)."""
    shaped = coefficients.reshape(1, 1, -1)
    for chunk in stream.chunks(start, stop):
        _mix(stream, chunk, shaped, Layout(chunk.count))
        stream.advance(chunk.count)


def _mix(stream: Stream, chunk: Chunk, coefficients: Doubles, layout: Layout) -> None:
    output = stream.shop.kernels.mixture(
        chunk.members(), chunk.origin(), coefficients, layout, stream.job.dtype, chunk.divide
    )
    labelled = {} if output.finite else chunk.labelled()
    stream.shop.accept(stream.job, chunk.start, output, labelled)


def _gram(moments: Moments) -> Gram:
    return Gram(moments.products, moments.absolutes)


def _run_rows(stream: Stream, row: int) -> None:
    """Every `row` consecutive elements are a vector, and a chunk holds whole ones: one pass."""
    job, shop = stream.job, stream.shop
    limit = min(stream.chunk_elements, row * max(1, GRAM_ELEMENTS // len(job.sources) ** 2))
    for chunk in stream.chunks(of=max(1, limit // row) * row):
        layout = Layout(row)
        found = shop.kernels.vector_moments(
            chunk.members(), chunk.origin(), layout, _wants_absolute(stream)
        )
        _mix(stream, chunk, coefficients_of(job, shop, _gram(found)), layout)
        stream.advance(chunk.count)


def _run_columns(stream: Stream, row: int) -> None:
    """Every column is a vector: a band of columns at a time, in bands of whole rows if it can."""
    job, shop = stream.job, stream.shop
    width = min(row, BLOCK)
    rows = 1 if width < row else 1 << (4 * BLOCK // row).bit_length() - 1
    for left in range(0, row, width):
        right = min(left + width, row)
        span = right - left
        starts = range(left, job.count, rows * row)
        bands = [(at, min(at + (rows * row if span == row else span), job.count)) for at in starts]
        products = np.zeros((1, span, len(job.sources), len(job.sources)))
        for at, end in bands:
            chunk = next(stream.chunks(at, end, of=end - at))
            layout = Layout(chunk.count // span, span)
            found = shop.kernels.vector_moments(chunk.members(), chunk.origin(), layout, False)
            products += found.products
            stream.advance(chunk.count)
        coefficients = coefficients_of(job, shop, Gram(products))
        for at, end in bands:
            chunk = next(stream.chunks(at, end, of=end - at))
            _mix(stream, chunk, coefficients, Layout(chunk.count // span, span))
            stream.advance(chunk.count)
