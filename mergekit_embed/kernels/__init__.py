"""The hot loops, behind one interface.

A backend sees vectors of stored elements (a chunk of one tensor of one member) and nothing of
files, plans or methods. Every backend gives the same bytes, because all of them keep these rules:

- elements are widened to float64, and every operation is a single IEEE operation in float64;
- terms are added in the order of the vectors;
- a long sum is cut into blocks of `BLOCK` elements from the start of the vector; a block is
  padded with zeros to a power of two and halved (first half plus second half) until one number is
  left; the blocks' sums are added first to last;
- the result is rounded once to the stored type, to nearest even.

So neither the size of the chunks nor the number of threads nor the device shows in the result. The
one exception is `regress`, whose matrix products are the library's: see there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from ..errors import UsageError
from .affine import NEARLY_ONE
from .arguments import (
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
    Vector,
)

BLOCK = 65536
"""Elements of a block of a long sum; chunks of a tensor begin at multiples of it."""

CPU_BLOCKS = 4
"""Blocks of one vector handled at once on a CPU: 2 MB of float64, which stays in its caches."""

COMPILED_BLOCKS = 8
"""The same for compiled kernels: 1 MB of a vector in 16 bits."""

CPU_LIVE_BLOCKS = 64
"""Blocks of all vectors together on a CPU; with many members, chunks get smaller."""

BACKENDS = ("auto", "numba", "torch")

DIGIT_BITS = 16
"""Bits of a magnitude that one histogram tells apart."""


class Kernels(Protocol):
    """What a backend does. Vectors of one call have the same number of elements n."""

    name: str
    workers: int
    """How many threads may call the backend at the same time with profit."""

    copies: bool
    """Whether `load` copies to a device, so that vectors are worth keeping beside their bytes."""

    def session(self) -> AbstractContextManager[None]:
        """Settings of the library underneath that hold while jobs run, and are then undone."""

    def worker(self) -> AbstractContextManager[None]:
        """The same for what one thread does with a tensor."""

    def chunk_blocks(self, vectors: int) -> int:
        """How many blocks of how many vectors are worth handling at once."""

    def load(self, raw: Raw, dtype: DType) -> Vector:
        """Stored bytes as a vector; the bytes must not change while the vector is used."""

    def part(self, vector: Vector, start: int, stop: int) -> Vector:
        """Elements `start` to `stop` of a vector, without a copy."""

    def block_moments(
        self, vectors: Sequence[Vector], origin: Vector | None, absolute: bool
    ) -> Moments:
        """Moments of `x_k - o` for every block of `BLOCK` elements: leading shape (blocks,)."""

    def vector_moments(
        self, vectors: Sequence[Vector], origin: Vector | None, layout: Layout, absolute: bool
    ) -> Moments:
        """Moments of `x_k - o` for every vector of at most `BLOCK` elements: (outer, inner)."""

    def mixture(
        self,
        vectors: Sequence[Vector],
        origin: Vector | None,
        coefficients: Doubles,
        layout: Layout,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """`o + sum_k c_k (x_k - o)`, with coefficients of shape (outer or 1, inner or 1, K).

        An element that all members have in common comes back bit for bit where the coefficients
        sum to 1 (within `NEARLY_ONE`), and so does one of the origin that all members share with
        it: in float64 too, and zeros with their sign.
        """

    def histogram(
        self,
        vectors: Sequence[Vector],
        origin: Vector,
        measure: Measure,
        prefix: int,
        shift: int,
    ) -> NDArray[np.int64]:
        """Counts of the `DIGIT_BITS` bits above `shift` in the measure's float64 bit patterns.

        Only elements whose bits above those equal `prefix` count.
        """

    def measured(
        self,
        vectors: Sequence[Vector],
        origin: Vector,
        measure: Measure,
        low: float,
        high: float,
    ) -> tuple[Doubles, int]:
        """The measures in [low, high], and how many are larger."""

    def tally(
        self, vectors: Sequence[Vector], origin: Vector, measure: Measure, limits: Doubles
    ) -> NDArray[np.int64]:
        """How many measures are at least each of the limits."""

    def kept_sums(
        self, vectors: Sequence[Vector], origin: Vector, keeps: Sequence[Keep], squares: bool
    ) -> Doubles:
        """Sums for every block, of shape (blocks, K, 2 or 3): `|d|`, kept `|d|`, kept `d^2`."""

    def shared_counts(
        self, vectors: Sequence[Vector], origin: Vector, keeps: Sequence[Keep]
    ) -> NDArray[np.int64]:
        """How many elements of each delta are kept by it alone, and by others too: (K, 2)."""

    def consensus(
        self,
        vectors: Sequence[Vector],
        origin: Vector,
        keeps: Sequence[Keep],
        combine: Combine,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """Combine the kept elements of the deltas and add them to the origin.

        Where nothing comes together the origin's element comes back as it is. `finite` also tells
        of the inputs, since an element that is not kept does not show.
        """

    def centre(
        self, vectors: Sequence[Vector], trim: int, dtype: DType, divide: Divide | None = None
    ) -> Output:
        """The mean of each element's values without the `trim` smallest and largest."""

    def near(
        self,
        vector: Vector,
        origin: Vector,
        reach: float,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """`o + clip(reach / |d|, 0, 1) d`, with `|d|` at least 1e-6: at most `reach` from `o`."""

    def fisher_mean(
        self,
        vectors: Sequence[Vector],
        fishers: Sequence[Vector],
        weights: FisherWeights,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """The mean of the vectors, each element weighing by its Fisher.

        Where no Fisher is above the floor, or those that are weigh nothing, the mean by `weight`.
        An element that all members have in common comes back bit for bit. `finite` also tells of
        the Fishers.
        """

    def regressor(
        self, grams: Sequence[Vector], size: int, weight: Doubles, alpha: float
    ) -> Regressor:
        """What `regress` needs, from Gram matrices of `size` by `size` numbers.

        Raises:
            ValueError: when the matrices are those of no inputs: not positive semidefinite.
        """

    def regress(
        self,
        vectors: Sequence[Vector],
        regressor: Regressor,
        transposed: bool,
        dtype: DType,
        divide: Divide | None = None,
    ) -> Output:
        """Rows of `M + (sum_k w_k (W_k - M) G_k) (sum_k w_k G_k)^+`, M the mean by `weight`.

        `G_k` with its off-diagonal entries times alpha. The vectors are whole rows of matrices that
        are stored (out, in), or whole matrices (in, out) when `transposed`. Rows that all members
        have in common come back bit for bit.

        The products are those of the library underneath, on one thread: for vectors of the same
        length they are the same on the same machine, and may differ in the last bits of float64 on
        another.
        """

    def is_finite(self, vector: Vector) -> bool:
        """True when no element is infinite or not a number."""


def cpu_chunk_blocks(vectors: int) -> int:
    """`Kernels.chunk_blocks` on a CPU."""
    return max(1, min(CPU_BLOCKS, CPU_LIVE_BLOCKS // max(vectors, 1)))


def compiled_chunk_blocks(vectors: int) -> int:
    """The same for compiled kernels, which make no float64 copies.

    What Python does once for a chunk should take little of the time.
    """
    return max(1, min(COMPILED_BLOCKS, CPU_LIVE_BLOCKS // max(vectors, 1)))


def cpu_memory(vectors: int) -> int:
    """Resident bytes of a run on the CPU, measured with room to spare: libraries and chunks.

    Torch makes float64 copies of chunks, with differences and products; Numba works on pieces.
    """
    if has_numba():
        chunk = 8 * BLOCK * compiled_chunk_blocks(vectors)
        return 180 * 10**6 + cpu_workers() * chunk * (vectors + 2)
    chunk = 8 * BLOCK * cpu_chunk_blocks(vectors)
    return 330 * 10**6 + cpu_workers() * chunk * (3 * vectors + 4)


def has_numba() -> bool:
    """Whether Numba is installed."""
    return importlib.util.find_spec("numba") is not None


def cpu_workers() -> int:
    """`Kernels.workers` on a CPU: one for every core that this process may use, up to 8."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(len(os.sched_getaffinity(0)), 8))
    return max(1, min(os.cpu_count() or 1, 8))


def open_kernels(device: str = "auto", backend: str = "auto", *, small: bool = False) -> Kernels:
    """The backend for a device: "auto" (a CUDA device when there is one), "cpu", "cuda", "cuda:1".

    On a CPU that is Numba where it is installed, else torch. `backend` asks for one by name:
    "numba" or "torch". For something `small` Numba is not taken before its kernels are compiled.

    Raises:
        UsageError: when there is no such device or backend, or they do not go together.
    """
    if backend not in BACKENDS:
        raise UsageError(f"{backend!r} is no backend; use {', '.join(BACKENDS)}")
    if backend == "numba" and device not in {"auto", "cpu"}:
        raise UsageError(f"numba computes on the CPU; {device!r} needs the torch backend")
    device = "cpu" if backend == "numba" else device
    if backend == "numba" and not has_numba():
        raise UsageError("numba is not there; run `pip install 'mergekit_embed[fast]'`")
    if device in {"auto", "cpu"} and backend != "torch" and has_numba():
        from .compilation import is_compiled

        ready = backend == "numba" or not small or is_compiled()
        if ready and (device == "cpu" or not _has_cuda()):
            from .numba_backend import NumbaKernels

            return NumbaKernels()
    from .torch_backend import TorchKernels, choose_device

    return TorchKernels(choose_device(device))


def _has_cuda() -> bool:
    """Whether there is a CUDA device. Torch takes a second to say, so only where it may be."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


__all__ = [
    "BACKENDS",
    "BLOCK",
    "COMPILED_BLOCKS",
    "CPU_BLOCKS",
    "CPU_LIVE_BLOCKS",
    "DIGIT_BITS",
    "NEARLY_ONE",
    "Band",
    "Combine",
    "Divide",
    "Doubles",
    "Draw",
    "FisherWeights",
    "Importance",
    "Keep",
    "Kernels",
    "Layout",
    "Magnitude",
    "Measure",
    "Moments",
    "Output",
    "RankedDraw",
    "Raw",
    "Regressor",
    "Variance",
    "Vector",
    "compiled_chunk_blocks",
    "cpu_chunk_blocks",
    "cpu_memory",
    "cpu_workers",
    "has_numba",
    "open_kernels",
]
