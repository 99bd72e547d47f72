"""The kernels compiled for the CPU by Numba: no torch, and each loop once over the stored bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    Draw,
    FisherWeights,
    Importance,
    Keep,
    Layout,
    Magnitude,
    Measure,
    Moments,
    Output,
    RankedDraw,
    Raw,
    Regressor,
    Variance,
    compiled_chunk_blocks,
    cpu_workers,
)
from . import numba_consensus as consensus_kernels
from . import numba_elements as element_kernels
from . import numba_mixtures as mixture_kernels
from .affine import sums_to_one
from .beside import Beside
from .draw import signed
from .numba_pieces import KINDS


@dataclass(frozen=True, slots=True)
class Stored:
    """Stored elements of one type."""

    raw: Raw
    dtype: DType

    @property
    def count(self) -> int:
        """Number of elements."""
        return len(self.raw) // self.dtype.itemsize


class _Many(NamedTuple):
    """Kinds and addresses of some vectors, int64 (K,)."""

    kinds: NDArray[np.int64]
    addresses: NDArray[np.int64]


class _Keeps(NamedTuple):
    """What is kept, as the compiled kernels want it: see `numba_consensus.choose`."""

    keeps: NDArray[np.int64]
    numbers: Doubles
    given: NDArray[np.bool_]
    first: int


def _address(raw: Raw) -> int:
    address: int = raw.__array_interface__["data"][0]
    return address


def _many(vectors: Sequence[Stored]) -> _Many:
    kinds = [KINDS[vector.dtype] for vector in vectors]
    return _Many(np.array(kinds), np.array([_address(vector.raw) for vector in vectors]))


def _one(vector: Stored | None) -> tuple[int, int]:
    """Kind and address of an origin that may not be there."""
    if vector is None:
        return mixture_kernels.NONE, 0
    return KINDS[vector.dtype], _address(vector.raw)


def _divided(divide: Divide | None) -> tuple[float, int]:
    return (divide.divisor, divide.count) if divide else (1.0, 0)


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
            *_many(vectors), *_one(origin), count, absolute, products, absolutes
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
            *_many(vectors), *_one(origin), length, inner, absolute, products, absolutes
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
        out = np.empty(vectors[0].count * dtype.itemsize, np.uint8)
        finite = mixture_kernels.mixture(
            *_many(vectors),
            *_one(origin),
            np.ascontiguousarray(coefficients),
            sums_to_one(coefficients),
            layout.length,
            layout.inner,
            origin is not None or dtype is DType.F64,
            *_divided(divide),
            KINDS[dtype],
            _address(out),
            vectors[0].count,
        )
        return Output(out, finite)

    def histogram(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, prefix: int, shift: int
    ) -> NDArray[np.int64]:
        """See `Kernels.histogram`."""
        if isinstance(measure, Importance):
            *many, start = self._to_torch([*vectors, origin])
            return self._beside.torch.histogram(many, start, measure, prefix, shift)
        counts = np.zeros(2**DIGIT_BITS, np.int64)
        consensus_kernels.histogram(
            *_many(vectors), *_one(origin), _member(measure), origin.count, prefix, shift, counts
        )
        return counts

    def measured(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, low: float, high: float
    ) -> tuple[Doubles, int]:
        """See `Kernels.measured`."""
        if isinstance(measure, Importance):
            *many, start = self._to_torch([*vectors, origin])
            return self._beside.torch.measured(many, start, measure, low, high)
        out, (least, most) = np.empty(origin.count), np.array([low, high]).view(np.uint64)
        found, above = consensus_kernels.gather(
            *_many(vectors), *_one(origin), _member(measure), origin.count, least, most, out
        )
        return out[:found], above

    def tally(
        self, vectors: Sequence[Stored], origin: Stored, measure: Measure, limits: Doubles
    ) -> NDArray[np.int64]:
        """See `Kernels.tally`."""
        if isinstance(measure, Importance):
            *many, start = self._to_torch([*vectors, origin])
            return self._beside.torch.tally(many, start, measure, limits)
        counts, bits = np.zeros(len(limits), np.int64), _doubles(limits).view(np.uint64)
        consensus_kernels.tally(
            *_many(vectors), *_one(origin), _member(measure), origin.count, bits, counts
        )
        return counts

    def kept_sums(
        self, vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep]
    ) -> Doubles:
        """See `Kernels.kept_sums`."""
        sums = np.empty((-(-origin.count // BLOCK), len(vectors), 3))
        consensus_kernels.kept_sums(
            *_many(vectors), *_one(origin), *self._keeps(vectors, origin, keeps), origin.count, sums
        )
        return sums

    def shared_counts(
        self, vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep]
    ) -> NDArray[np.int64]:
        """See `Kernels.shared_counts`."""
        counts = np.zeros((len(vectors), 2), np.int64)
        consensus_kernels.shared_counts(
            *_many(vectors),
            *_one(origin),
            *self._keeps(vectors, origin, keeps),
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
        out = np.empty(origin.count * dtype.itemsize, np.uint8)
        lone = np.empty(0) if combine.lone_factors is None else combine.lone_factors
        finite = consensus_kernels.consensus(
            *_many(vectors),
            *_one(origin),
            *self._keeps(vectors, origin, keeps),
            combine.vote,
            combine.mean,
            combine.normalize,
            _doubles(combine.factors),
            _doubles(lone),
            _doubles(combine.weight),
            float(combine.scale),
            *_divided(divide),
            KINDS[dtype],
            _address(out),
            origin.count,
        )
        return Output(out, finite)

    def _keeps(self, vectors: Sequence[Stored], origin: Stored, keeps: Sequence[Keep]) -> _Keeps:
        """The numbers of what is kept; masks of whole chunks where rows have to be seen."""
        members = len(vectors)
        found, numbers = np.zeros((members, 3), np.int64), np.zeros((members, 2))
        whole = any(isinstance(keep, RankedDraw) or _is_important(keep) for keep in keeps)
        given, first = np.empty((members, origin.count if whole else 0), np.bool_), 0
        for k, keep in enumerate(keeps):
            if isinstance(keep, Draw):
                found[k] = consensus_kernels.DRAWN, 0, signed(keep.key)
                numbers[k, 0], first = keep.probability, keep.start
            elif isinstance(keep, RankedDraw):
                found[k, 0] = consensus_kernels.GIVEN
                element_kernels.ranked(
                    *_one(vectors[k]),
                    *_one(origin),
                    signed(keep.key),
                    keep.start,
                    keep.row,
                    keep.lowest,
                    keep.highest,
                    origin.count,
                    given[k],
                )
            elif isinstance(keep.measure, Importance):
                found[k, 0] = consensus_kernels.GIVEN
                given[k] = self._important(vectors, origin, keep)
            else:
                spread = isinstance(keep.measure, Variance)
                how = consensus_kernels.SPREAD if spread else consensus_kernels.BAND
                found[k, :2] = how, _member(keep.measure)
                numbers[k] = keep.low, keep.high
        return _Keeps(found, numbers, given, first)

    def _important(
        self, vectors: Sequence[Stored], origin: Stored, keep: Band
    ) -> NDArray[np.bool_]:
        from .torch_elements import masks_of

        *many, start = self._to_torch([*vectors, origin])
        mask: NDArray[np.bool_] = masks_of(many, start, [keep])[0].numpy()
        return mask

    def centre(
        self, vectors: Sequence[Stored], trim: int, dtype: DType, divide: Divide | None = None
    ) -> Output:
        """See `Kernels.centre`."""
        count = vectors[0].count
        out = np.empty(count * dtype.itemsize, np.uint8)
        finite = element_kernels.centre(
            *_many(vectors), trim, *_divided(divide), KINDS[dtype], _address(out), count
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
        out = np.empty(vector.count * dtype.itemsize, np.uint8)
        finite = element_kernels.near(
            *_many([vector]),
            *_one(origin),
            float(reach),
            *_divided(divide),
            KINDS[dtype],
            _address(out),
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
        out = np.empty(vectors[0].count * dtype.itemsize, np.uint8)
        finite = element_kernels.fisher_mean(
            *_many(vectors),
            *_many(fishers),
            _doubles(weights.weight),
            _doubles(weights.weight / weights.weight.sum()),
            _doubles(weights.norms),
            float(weights.floor),
            weights.normalize,
            *_divided(divide),
            KINDS[dtype],
            _address(out),
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
        return bool(element_kernels.is_finite(*_one(vector), vector.count))


def _member(measure: Measure) -> int:
    return measure.member if isinstance(measure, Magnitude) else -1


def _is_important(keep: Keep) -> bool:
    return isinstance(keep, Band) and isinstance(keep.measure, Importance)


def _doubles(values: Doubles) -> Doubles:
    return np.ascontiguousarray(values, dtype=np.float64)
