"""Running the methods that weigh by statistics: Fisher merging, and regression on linear layers."""

from __future__ import annotations

import numpy as np

from ..errors import CheckpointError, NonFiniteError
from ..kernels import BLOCK, Doubles, FisherWeights, Layout, Output, Regressor
from ..methods import FisherMean, Regression, normalised
from .plan import Measured
from .stream import Chunk, Combiner, Work

ROWS_CHUNK = 4 * BLOCK
"""Elements of the whole rows that are multiplied with a matrix at a time, about."""


def prepare_fisher_mean(work: Work, wanted: FisherMean) -> Combiner:
    """What combines a tensor by its members' Fishers."""
    job, kernels = work.job, work.kernels
    if job.measured is None:
        return _weighted_mean(work, wanted.weight)
    norms = np.array(job.measured.norms)
    weights = FisherWeights(wanted.weight, norms, wanted.floor, wanted.normalize)

    def output(chunk: Chunk) -> Output:
        return kernels.fisher_mean(
            chunk.members(), chunk.fishers(), weights, job.dtype, chunk.divide
        )

    return Combiner(output, work.chunk_elements)


def prepare_regression(work: Work, wanted: Regression) -> Combiner:
    """What combines a linear layer's weight by regression, and anything else by its mean.

    Chunks follow from the shape alone, here and for those who read a nested merge: matrix products
    round otherwise for other numbers of rows.

    Raises:
        NonFiniteError, CheckpointError: when a Gram matrix is not finite, or is none.
    """
    job, kernels = work.job, work.kernels
    if job.measured is None:
        return _weighted_mean(work, wanted.weight)
    transposed = job.measured.transposed
    size = job.measured.tensors[0].shape[0]
    regressor = _regressor(work, job.measured, wanted, size)

    def output(chunk: Chunk) -> Output:
        return kernels.regress(chunk.members(), regressor, transposed, job.dtype, chunk.divide)

    of = job.count if transposed else max(1, ROWS_CHUNK // size) * size
    return Combiner(output, of, of)


def _regressor(work: Work, measured: Measured, wanted: Regression, size: int) -> Regressor:
    grams = [work.supply.vector(tensor, 0, tensor.count) for tensor in measured.tensors]
    for label, gram in zip(measured.labels, grams, strict=True):
        if not work.kernels.is_finite(gram):
            raise NonFiniteError(
                f"{label}: the Gram matrix of {work.job.name} holds not-a-number or infinity. "
                "Measure it anew with `boom stats`"
            )
    try:
        return work.kernels.regressor(grams, size, wanted.weight, wanted.alpha)
    except ValueError as error:
        folders = ", ".join(dict.fromkeys(measured.labels))
        raise CheckpointError(
            folders, f"the sum of the Gram matrices of {work.job.name} {error}; measure them anew"
        ) from error


def _weighted_mean(work: Work, weight: Doubles) -> Combiner:
    job, kernels = work.job, work.kernels
    shares = normalised(weight).reshape(1, 1, -1)

    def output(chunk: Chunk) -> Output:
        layout = Layout(chunk.count)
        return kernels.mixture(chunk.members(), None, shares, layout, job.dtype, chunk.divide)

    return Combiner(output, work.chunk_elements)
