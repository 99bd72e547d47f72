"""The kernels in PyTorch, on the CPU or on one CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dtypes import DType
from ..errors import UsageError
from . import (
    BLOCK,
    DIGIT_BITS,
    Combine,
    Divide,
    Doubles,
    FisherWeights,
    Keep,
    Layout,
    Measure,
    Moments,
    Output,
    Raw,
    cpu_chunk_blocks,
    cpu_workers,
)
from .affine import sums_to_one
from .torch_elements import combined, halved, masks_of, measure_of
from .torch_statistics import Solved, fisher_mean, regress, solve

TORCH_TYPES = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
}

CUDA_STREAMS = 4
"""Threads that feed a CUDA device, each with a stream."""

CUDA_BLOCKS = 256
"""Most blocks of one vector handled at once on a CUDA device: 128 MB of float64."""


def choose_device(wanted: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: when it is none of these or is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"{wanted!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"{wanted!r} cannot compute in float64; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {wanted} here ({torch.cuda.device_count()} CUDA devices)")
    return device


class TorchKernels:
    """See `Kernels`. Vectors are one-dimensional tensors of the stored type on the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.name = f"torch on {device}"
        self.copies = device.type == "cuda"
        self.workers = min(CUDA_STREAMS, cpu_workers()) if self.copies else cpu_workers()

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `Kernels.session`: the workers are the threads, so an operation starts none."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.device.type == "cpu" else threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def worker(self) -> Iterator[None]:
        """See `Kernels.worker`: a stream of its own, so that one copies while another computes."""
        if not self.copies:
            yield
            return
        make: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
        stream = make(self.device)
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()

    def chunk_blocks(self, vectors: int) -> int:
        """See `Kernels.chunk_blocks`."""
        if self.device.type != "cuda":
            return cpu_chunk_blocks(vectors)
        free, _ = torch.cuda.mem_get_info(self.device)
        one = 8 * BLOCK * (3 * vectors + 4)  # with the differences and products of each vector
        return max(1, min(CUDA_BLOCKS, free // 2 // (one * self.workers)))

    def load(self, raw: Raw, dtype: DType) -> Tensor:
        """See `Kernels.load`."""
        # Torch has no unsigned wide types to view through, and NumPy no bfloat16.
        stored = torch.from_numpy(raw).view(TORCH_TYPES[dtype])
        if not self.copies:
            return stored
        # From pinned memory, which torch keeps for the next copy, the device fetches by itself.
        return stored.pin_memory().to(self.device, non_blocking=True)

    def part(self, vector: Tensor, start: int, stop: int) -> Tensor:
        """See `Kernels.part`."""
        return vector[start:stop]

    def block_moments(
        self, vectors: Sequence[Tensor], origin: Tensor | None, absolute: bool
    ) -> Moments:
        """See `Kernels.block_moments`."""
        deltas = self._deltas(vectors, origin)
        count = deltas.shape[1]
        whole = count // BLOCK * BLOCK
        parts = []
        if whole:
            blocks = deltas[:, :whole].reshape(len(vectors), -1, BLOCK, 1)
            parts.append(_moments(blocks, absolute))
        if count > whole:
            parts.append(_moments(deltas[:, whole:].reshape(len(vectors), 1, -1, 1), absolute))
        products = np.concatenate([part.products for part in parts])[:, 0]
        if not absolute:
            return Moments(products, None)
        return Moments(products, np.concatenate([p.absolutes for p in parts])[:, 0])

    def vector_moments(
        self, vectors: Sequence[Tensor], origin: Tensor | None, layout: Layout, absolute: bool
    ) -> Moments:
        """See `Kernels.vector_moments`."""
        deltas = self._deltas(vectors, origin)
        shaped = deltas.reshape(len(vectors), -1, layout.length, layout.inner)
        return _moments(shaped, absolute)

    def mixture(
        self,
        vectors: Sequence[Tensor],
        origin: Tensor | None,
        coefficients: Doubles,
        layout: Layout,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.mixture`."""
        factors = torch.from_numpy(np.ascontiguousarray(np.moveaxis(coefficients, -1, 0)))
        factors = factors[:, :, None, :].to(self.device)  # (K, outer, 1, inner)
        doubles = [v.double().reshape(-1, layout.length, layout.inner) for v in vectors]
        affine = torch.from_numpy(sums_to_one(coefficients))[:, None, :].to(self.device)
        if origin is None:
            total = doubles[0] * factors[0]
            for double, factor in zip(doubles[1:], factors[1:], strict=True):
                total += double * factor
        else:
            # The negated sum of the negated differences, from +0: an origin of -0 stays -0.
            base = origin.double().reshape(-1, layout.length, layout.inner)
            away = torch.zeros_like(base)
            for double, factor in zip(doubles, factors, strict=True):
                away += (base - double) * factor
            total = base - away
        merged = total.reshape(-1)
        if bool(affine.any()):
            affine = affine.expand_as(total).reshape(-1)
            # Of equal numbers a weighted sum can only go wrong in the last bit of float64, or in
            # the sign of a zero; differences from an origin can lose more.
            exposed = origin is not None or dtype is DType.F64
            at = slice(None) if exposed else (merged == 0).nonzero().squeeze(1)
            merged[at] = _unless_equal(merged[at], affine[at], [vector[at] for vector in vectors])
        return self._output(merged, dtype, True, divide)

    def histogram(
        self,
        vectors: Sequence[Tensor],
        origin: Tensor,
        measure: Measure,
        prefix: int,
        shift: int,
    ) -> NDArray[np.int64]:
        """See `Kernels.histogram`."""
        # Numbers that are not negative sort like their bit patterns.
        bits = measure_of(vectors, origin, measure).view(torch.int64) >> shift
        if shift + DIGIT_BITS < 64:
            bits = bits[bits >> DIGIT_BITS == prefix]
        digits = bits & (2**DIGIT_BITS - 1)
        counts: NDArray[np.int64] = torch.bincount(digits, minlength=2**DIGIT_BITS).cpu().numpy()
        return counts

    def measured(
        self,
        vectors: Sequence[Tensor],
        origin: Tensor,
        measure: Measure,
        low: float,
        high: float,
    ) -> tuple[Doubles, int]:
        """See `Kernels.measured`."""
        least, most = np.array([low, high]).view(np.int64).tolist()
        bits = measure_of(vectors, origin, measure).view(torch.int64)
        chosen = bits[(bits >= least) & (bits <= most)].view(torch.float64)
        return chosen.cpu().numpy(), int((bits > most).sum())

    def tally(
        self, vectors: Sequence[Tensor], origin: Tensor, measure: Measure, limits: Doubles
    ) -> NDArray[np.int64]:
        """See `Kernels.tally`."""
        bits = measure_of(vectors, origin, measure).view(torch.int64)
        least = np.ascontiguousarray(limits).view(np.int64).tolist()
        return np.array([int((bits >= limit).sum()) for limit in least], dtype=np.int64)

    def kept_sums(
        self, vectors: Sequence[Tensor], origin: Tensor, keeps: Sequence[Keep], squares: bool
    ) -> Doubles:
        """See `Kernels.kept_sums`."""
        sizes = self._deltas(vectors, origin).abs_()
        kept = torch.where(masks_of(vectors, origin, keeps), sizes, 0.0)
        rows = [sizes, kept, kept * kept] if squares else [sizes, kept]
        every = torch.stack(rows, dim=2)  # (K, n, 2 or 3)
        whole = every.shape[1] // BLOCK * BLOCK
        parts = [every[:, :whole].reshape(len(vectors), -1, BLOCK, len(rows))] if whole else []
        if every.shape[1] > whole:
            parts.append(every[:, whole:].reshape(len(vectors), 1, -1, len(rows)))
        sums = torch.cat([halved(part) for part in parts], dim=1)  # (K, blocks, 2 or 3)
        result: Doubles = sums.transpose(0, 1).cpu().numpy()
        return result

    def shared_counts(
        self, vectors: Sequence[Tensor], origin: Tensor, keeps: Sequence[Keep]
    ) -> NDArray[np.int64]:
        """See `Kernels.shared_counts`."""
        masks = masks_of(vectors, origin, keeps)
        alone = masks & (masks.sum(dim=0) == 1)
        counts = torch.stack([alone.sum(dim=1), (masks & ~alone).sum(dim=1)], dim=1)
        result: NDArray[np.int64] = counts.cpu().numpy()
        return result

    def consensus(
        self,
        vectors: Sequence[Tensor],
        origin: Tensor,
        keeps: Sequence[Keep],
        combine: Combine,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.consensus`."""
        base = origin.double()
        finite = bool(base.isfinite().all()) and all(self.is_finite(v) for v in vectors)
        masks = masks_of(vectors, origin, keeps)
        deltas = [vector.double() - base for vector in vectors]
        total = combined(deltas, masks, combine)
        merged = torch.where(total == 0, base, base + combine.scale * total)
        return self._output(merged, dtype, finite, divide)

    def centre(
        self, vectors: Sequence[Tensor], trim: int, dtype: DType, divide: Divide | None = None
    ) -> Output:
        """See `Kernels.centre`."""
        values = torch.stack([vector.double() for vector in vectors]).sort(dim=0).values
        kept = values[trim : len(vectors) - trim]
        total = kept[0].clone()
        for row in kept[1:]:
            total += row
        # By a tensor: a division by a number may become a product with its reciprocal.
        mean = total / torch.full_like(total, len(kept))
        # Equal values are their own centre, to the bit; the sum of many may round.
        merged = torch.where(kept[0] == kept[-1], kept[0], mean)
        finite = all(self.is_finite(vector) for vector in vectors)
        return self._output(merged, dtype, finite, divide)

    def near(
        self,
        vector: Tensor,
        origin: Tensor,
        reach: float,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.near`."""
        base = origin.double()
        delta = vector.double() - base
        # By a tensor: a number over a tensor is its product with reciprocals, which rounds twice.
        reaches = torch.full_like(delta, reach)
        share = (reaches / delta.abs().clamp(min=1e-6)).clamp(max=1.0)
        moved = torch.where(share == 1.0, vector.double(), base + share * delta)
        merged = torch.where(delta == 0, base, moved)
        finite = self.is_finite(vector) and self.is_finite(origin)
        return self._output(merged, dtype, finite, divide)

    def fisher_mean(
        self,
        vectors: Sequence[Tensor],
        fishers: Sequence[Tensor],
        weights: FisherWeights,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.fisher_mean`."""
        finite = all(self.is_finite(fisher) for fisher in fishers)
        values, shares = [v.double() for v in vectors], [f.double() for f in fishers]
        return self._output(fisher_mean(values, shares, weights), dtype, finite, divide)

    def regressor(
        self, grams: Sequence[Tensor], size: int, weight: Doubles, alpha: float
    ) -> Solved:
        """See `Kernels.regressor`."""
        # One after the other: in float64 they take the most memory of the whole merge.
        doubles = (gram.double().reshape(size, size) for gram in grams)
        return solve(doubles, weight, alpha)

    def regress(
        self,
        vectors: Sequence[Tensor],
        regressor: Solved,
        transposed: bool,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """See `Kernels.regress`."""
        size = len(regressor.scale)
        doubles = [vector.double() for vector in vectors]
        if transposed:
            rows = [double.reshape(size, -1).T.contiguous() for double in doubles]
            merged = regress(rows, regressor).T.reshape(-1)
        else:
            merged = regress([double.reshape(-1, size) for double in doubles], regressor)
        return self._output(merged.reshape(-1), dtype, True, divide)

    def is_finite(self, vector: Tensor) -> bool:
        """See `Kernels.is_finite`."""
        return bool(vector.isfinite().all())

    def _deltas(self, vectors: Sequence[Tensor], origin: Tensor | None) -> Tensor:
        """`x_k - o` in float64, shape (K, n)."""
        deltas = torch.stack([vector.double() for vector in vectors])
        return deltas if origin is None else deltas.sub_(origin.double())

    def _output(self, merged: Tensor, dtype: DType, finite: bool, divide: Divide | None) -> Output:
        if divide is not None:
            # By a tensor: by a number, CUDA would multiply with the reciprocal, which rounds twice.
            divisor = torch.tensor(divide.divisor, dtype=torch.float64, device=merged.device)
            merged[: divide.count] /= divisor
        stored = _rounded(merged, TORCH_TYPES[dtype])
        finite = finite and bool(stored.isfinite().all())
        if self.copies:
            pinned = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
            stored = pinned.copy_(stored)
        return Output(stored.view(torch.uint8).numpy(), finite)


def _rounded(merged: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 rounded once to nearest even.

    Torch goes to 16-bit types by way of float32, which rounds twice: a result that is next to the
    middle of two values becomes the middle, and then goes either way. So the way there is rounded
    to odd: towards zero, with the last bit telling that something was cut off.
    """
    if dtype in {torch.float64, torch.float32}:
        return merged.to(dtype)
    single = merged.float()
    back = single.double()
    bits = single.view(torch.int32)
    bits -= (back.abs() > merged.abs()).int()
    bits |= (back != merged).int()
    return single.to(dtype)


def _unless_equal(merged: Tensor, affine: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """The common value where all vectors have the same bits and the coefficients sum to 1."""
    first = vectors[0].double()
    same = affine
    for vector in vectors[1:]:
        same = same & (vector.double().view(torch.int64) == first.view(torch.int64))
    return torch.where(same, first, merged)


def _moments(deltas: Tensor, absolute: bool) -> Moments:
    """Moments of vectors (K, outer, length, inner): products (outer, inner, K, K)."""
    count, outer, _, inner = deltas.shape
    products = torch.empty((outer, inner, count, count), dtype=torch.float64)
    for first in range(count):
        sums = halved(deltas[first:] * deltas[first])  # (K - first, outer, inner)
        row = sums.permute(1, 2, 0).cpu()
        products[:, :, first, first:] = row
        products[:, :, first:, first] = row
    if not absolute:
        return Moments(products.numpy(), None)
    return Moments(products.numpy(), halved(deltas.abs()).permute(1, 2, 0).cpu().numpy())
