"""The kernels compiled for the CPU by Numba: no torch, and each loop once over the stored bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from . import (
    BLOCK,
    DIGIT_BITS,
    Band,
    Combine,
    Divide,
    Doubles,
    FisherWeights,
    Importance,
    Keep,
    Layout,
    Measure,
    Moments,
    Output,
    Raw,
    Regressor,
    compiled_chunk_blocks,
    cpu_workers,
)
from . import numba_consensus as consensus_kernels
from . import numba_elements as element_kernels
from . import numba_mixtures as mixture_kernels
from . import numba_ranks as rank_kernels
from .affine import sums_to_one
from .beside import Beside
from .lines import room
from .numba_arguments import Stored, address, divided, doubles, keeps_of, many, member, one
from .numba_pieces import KINDS


class NumbaKernels:
    """See `Kernels`. Softmax, matrix products and solvers are torch's, imported where needed."""

    name = "numba on cpu"
    copies = False

    def __init__(self) -> None:
        self.workers = cpu_workers()
        self._beside = Beside()

    def _to_torch(self, vectors: Sequence[Stored]) -> list[Any]:
        return [self._beside.torch.load(vector.raw, vector.dtype) for vector in vectors]

    def session(self) -> AbstractContextManager[None]:
        """See `Kernels.session`."""
        return self._beside.session()

    def worker(self) -> AbstractContextManager[None]:
        """See `Kernels.worker`."""
        return nullcontext()

    def chunk_blocks(self, vectors: int) -> int:
        """See `Kernels.chunk_blocks`."""
        return compiled_chunk_blocks(vectors)

    def load(self, raw: Raw, dtype: DType) -> Stored:
        """See `Kernels.load`."""
        return Stored(raw, dtype)

    def part(self, vector: Stored, start: int, stop: int) -> Stored:
        """See `Kernels.part`."""
        size = vector.dtype.itemsize
        return Stored(vector.raw[start * size : stop * size], vector.dtype)

    def block_moments(
        self, vectors: Sequence[Stored], origin: Stored | None, absolute: bool
    ) -> Moments:
        """See `Kernels.block_moments`."""
        count, members = vectors[0].count, len(vectors)
        blocks = -(-count // BLOCK)
        products, absolutes = np.empty((blocks, members, members)), np.empty((blocks, members))
        mixture_kernels.block_moments(
            *many(vectors), *one(origin), count, absolute, products, absolutes
        )
        return Moments(products, absolutes if absolute else None)

    def vector_moments(
        self, vectors: Sequence[Stored], origin: Stored | None, layout: Layout, absolute: bool
    ) -> Moments:
        """See `Kernels.vector_moments`."""
        (length, inner), members = layout, len(vectors)
        outer = vectors[0].count // (length * inner)
        products = np.empty((outer, inner, members, members))
        absolutes = np.empty((outer, inner, members))
        mixture_kernels.vector_moments(
            *many(vectors), *one(origin), length, inner, absolute, products, absolutes
        )
        return Moments(products, absolutes if absolute else None)

    def mixture(
        self,
        vectors: Sequence[Stored],
        origin: Stored | None,
        coefficients: Doubles,
        layout: Layout,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.mixture`."""
        out = room(vectors[0].count * dtype.itemsize)
        finite = mixture_kernels.mixture(
            *many(vectors),
            *one(origin),
            np.ascontiguousarray(coefficients),
            sums_to_one(coefficients),
            layout.length,
            layout.inner,
            origin is not None or dtype is DType.F64,
            *divided(divide),
            KINDS[dtype],
            address(out),
            vectors[0].count,
        )
        return Output(out, finite)

    def histogram(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, prefix: int, shift: int
    ) -> NDArray[np.int64]:
        """See `Kernels.histogram`."""
        if isinstance(measure, Importance):
            *handed, start = self._to_torch([*vectors, origin])
            return self._beside.torch.histogram(handed, start, measure, prefix, shift)
        counts = np.zeros(2**DIGIT_BITS, np.int64)
        rank_kernels.histogram(
            *many(vectors), *one(origin), member(measure), origin.count, prefix, shift, counts
        )
        return counts

    def measured(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, low: float, high: float
    ) -> tuple[Doubles, int]:
        """See `Kernels.measured`."""
        if isinstance(measure, Importance):
            *handed, start = self._to_torch([*vectors, origin])
            return self._beside.torch.measured(handed, start, measure, low, high)
        out, (least, most) = np.empty(origin.count), np.array([low, high]).view(np.uint64)
        found, above = rank_kernels.gather(
            *many(vectors), *one(origin), member(measure), origin.count, least, most, out
        )
        return out[:found], above

    def tally(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, limits: Doubles
    ) -> NDArray[np.int64]:
        """See `Kernels.tally`."""
        if isinstance(measure, Importance):
            *handed, start = self._to_torch([*vectors, origin])
            return self._beside.torch.tally(handed, start, measure, limits)
        counts, bits = np.zeros(len(limits), np.int64), doubles(limits).view(np.uint64)
        rank_kernels.tally(
            *many(vectors), *one(origin), member(measure), origin.count, bits, counts
        )
        return counts

    def kept_sums(
        self, vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep], squares: bool
    ) -> Doubles:
        """See `Kernels.kept_sums`."""
        sums = np.empty((-(-origin.count // BLOCK), len(vectors), 3 if squares else 2))
        consensus_kernels.kept_sums(
            *many(vectors),
            *one(origin),
            *keeps_of(vectors, origin, keeps, self._important),
            origin.count,
            sums,
        )
        return sums

    def shared_counts(
        self, vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep]
    ) -> NDArray[np.int64]:
        """See `Kernels.shared_counts`."""
        counts = np.zeros((len(vectors), 2), np.int64)
        consensus_kernels.shared_counts(
            *many(vectors),
            *one(origin),
            *keeps_of(vectors, origin, keeps, self._important),
            origin.count,
            counts,
        )
        return counts

    def consensus(
        self,
        vectors: Sequence[Stored],
        origin: Stored,
        keeps: Sequence[Keep],
        combine: Combine,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.consensus`."""
        out = room(origin.count * dtype.itemsize)
        lone = np.empty(0) if combine.lone_factors is None else combine.lone_factors
        finite = consensus_kernels.consensus(
            *many(vectors),
            *one(origin),
            *keeps_of(vectors, origin, keeps, self._important),
            combine.vote,
            combine.mean,
            combine.normalize,
            doubles(combine.factors),
            doubles(lone),
            doubles(combine.weight),
            float(combine.scale),
            *divided(divide),
            KINDS[dtype],
            address(out),
            origin.count,
        )
        return Output(out, finite)

    def _important(
        self, vectors: Sequence[Stored], origin: Stored, keep: Band
    ) -> NDArray[np.bool_]:
        from .torch_elements import masks_of

        *handed, start = self._to_torch([*vectors, origin])
        mask: NDArray[np.bool_] = masks_of(handed, start, [keep])[0].numpy()
        return mask

    def centre(
        self, vectors: Sequence[Stored], trim: int, dtype: DType, divide: Divide | None = None
    ) -> Output:
        """See `Kernels.centre`."""
        count = vectors[0].count
        out = room(count * dtype.itemsize)
        finite = element_kernels.centre(
            *many(vectors), trim, *divided(divide), KINDS[dtype], address(out), count
        )
        return Output(out, finite)

    def near(
        self,
        vector: Stored,
        origin: Stored,
        reach: float,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.near`."""
        out = room(vector.count * dtype.itemsize)
        finite = element_kernels.near(
            *many([vector]),
            *one(origin),
            float(reach),
            *divided(divide),
            KINDS[dtype],
            address(out),
            vector.count,
        )
        return Output(out, finite)

    def fisher_mean(
        self,
        vectors: Sequence[Stored],
        fishers: Sequence[Stored],
        weights: FisherWeights,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.fisher_mean`."""
        out = room(vectors[0].count * dtype.itemsize)
        finite = element_kernels.fisher_mean(
            *many(vectors),
            *many(fishers),
            doubles(weights.weight),
            doubles(weights.weight / weights.weight.sum()),
            doubles(weights.norms),
            float(weights.floor),
            weights.normalize,
            *divided(divide),
            KINDS[dtype],
            address(out),
            vectors[0].count,
        )
        return Output(out, finite)

    def regressor(
        self, grams: Sequence[Stored], size: int, weight: Doubles, alpha: float
    ) -> Regressor:
        """See `Kernels.regressor`."""
        return self._beside.torch.regressor(self._to_torch(grams), size, weight, alpha)

    def regress(
        self,
        vectors: Sequence[Stored],
        regressor: Regressor,
        transposed: bool,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.regress`."""
        handed = self._to_torch(vectors)
        return self._beside.torch.regress(handed, regressor, transposed, dtype, divide)

    def is_finite(self, vector: Stored) -> bool:
        """See `Kernels.is_finite`."""
        return bool(element_kernels.is_finite(*one(vector), vector.count))
