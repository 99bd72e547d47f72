"""Stored elements as pieces of float64 and back: what the compiled kernels are made of.

A kernel is given addresses of stored elements and their kinds, widens a piece of each vector that
fits in the first cache, computes in float64, and rounds the piece to the stored type once. So there
is one compiled kernel for all stored types and any number of vectors.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic, overload

from ..dtypes import DType
from ..process import is_ours

PIECE = 1024
"""Elements of a piece."""

LINE = 8
"""Float64 in a line of the caches."""

F64, F32, F16, BF16 = 0, 1, 2, 3
KINDS = {DType.F64: F64, DType.F32: F32, DType.F16: F16, DType.BF16: BF16}

MAGNITUDE = np.uint64(0x7FFFFFFFFFFFFFFF)
INFINITE = np.uint64(0x7FF0000000000000)
OVERFLOW = 2.0**128 - 2.0**103
"""The least number that float32 rounds to infinity: half a step above its largest."""

ONE, ZERO = np.uint64(1), np.uint64(0)


@contextmanager
def _without_scipy() -> Iterator[None]:
    """Keep Numba from asking SciPy for a BLAS, which takes longer than a small merge.

    No kernel wants one. Other compiled functions of this process could then not multiply matrices.
    """
    if "scipy.linalg" in sys.modules or not is_ours():
        yield
        return
    sys.modules["scipy.linalg"] = None  # what Python takes for a module that is not there
    try:
        yield
    finally:
        del sys.modules["scipy.linalg"]


def _sources() -> str:
    """A digest of all sources from which functions are compiled into each other."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


SOURCES = _sources()


class _Cache(FunctionCache):
    """Compiled functions on disk. They are made again where they cannot be stored or read."""

    def _index_key(self, sig, codegen):
        """Numba itself sees to a change of the function's own file alone, not of what it calls."""
        return *super()._index_key(sig, codegen), SOURCES

    def load_overload(self, sig, target_context):
        """What is there of a function, or None.

        Numba first makes ready to compile, for three times as long as loading takes; what is
        compiled already wants no more than Numba's runtime.
        """
        with _without_scipy(), suppress(OSError), self._guard_against_spurious_io_errors():
            rtsys.initialize(target_context)
            found = self._load_overload(sig, target_context)
            if found is None:
                target_context.refresh()
            return found

    def save_overload(self, sig, data):
        """Store a function, if the disk takes it: a merge needs no more than its memory."""
        with suppress(OSError):
            super().save_overload(sig, data)


def compiled(function):
    """Compile to IEEE arithmetic as written: no reassociation, no fused operations."""
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    # As `cache=True` does, which stops where no folder can be written or the disk is full.
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> ir.Value:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@compiled
def room_for(rows, count):
    """Room for (rows, count) float64 that begins with a line of the caches.

    Vectors of 512 bits that lie across two lines are read at half the speed.
    """
    room = np.empty(rows * count + LINE)
    skip = -(room.ctypes.data // 8) % LINE
    return room[skip : skip + rows * count].reshape(rows, count)


@compiled
def shorts(address, start, count):
    """16-bit elements `start` to `start + count` of those at an address, as uint16."""
    return carray(_pointer(address + 2 * start), (count,), np.uint16)


@compiled
def singles(address, start, count):
    """The same of float32 elements."""
    return carray(_pointer(address + 4 * start), (count,), np.float32)


@compiled
def doubles(address, start, count):
    """The same of float64 elements."""
    return carray(_pointer(address + 8 * start), (count,), np.float64)


def double(element):
    """An element that is read from memory as float64; bfloat16 is read as uint16."""
    raise NotImplementedError("compiled functions alone can call this")


@overload(double)
def _double(element):
    if element == types.uint16:
        return _from_brain
    return lambda element: np.float64(element)


def _from_brain(element):
    bits = np.uint32(np.uint32(element) << np.uint32(16))
    return np.float64(bits.view(np.float32))


@compiled
def widen(kind, address, start, count, out):
    """Write elements `start` to `start + count` to `out` as float64, exactly."""
    if kind == BF16:
        _copy(shorts(address, start, count), out, count)
    elif kind == F32:
        _copy(singles(address, start, count), out, count)
    elif kind == F64:
        _copy(doubles(address, start, count), out, count)
    else:
        _widen_halves(shorts(address, start, count), out, count)


@compiled
def _copy(elements, out, count):
    for i in range(count):
        out[i] = double(elements[i])


@compiled
def _widen_halves(halves, out, count):
    for i in range(count):
        half = np.uint32(halves[i])
        shifted = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
        # The exponent moved by 112 makes subnormal halves right as well.
        value = np.float64(shifted.view(np.float32)) * 2.0**112
        if (half & np.uint32(0x7C00)) == np.uint32(0x7C00):
            special = np.uint32(shifted | np.uint32(0x7F800000))
            value = np.float64(special.view(np.float32))
        out[i] = -value if half & np.uint32(0x8000) else value


@compiled
def narrow(kind, values, count, address, start):
    """Store float64 from element `start` on, rounded once to nearest even; True: all are finite."""
    if kind == BF16:
        return _narrow_to_16(values, count, address + 2 * start, 45, 896, 7, 2.0**-126, 2.0**133)
    if kind == F16:
        return _narrow_to_16(values, count, address + 2 * start, 42, 1008, 10, 2.0**-14, 2.0**24)
    bad = ZERO
    bits = values.view(np.uint64)
    if kind == F32:
        out = singles(address, start, count)
        for i in range(count):
            out[i] = np.float32(values[i])
            # All that is rounded to infinity, and what is none of the numbers.
            bad |= ZERO if abs(values[i]) < OVERFLOW else ONE
        return bad == ZERO
    wide = doubles(address, start, count)
    for i in range(count):
        wide[i] = values[i]
        bad |= ONE if (bits[i] & MAGNITUDE) >= INFINITE else ZERO
    return bad == ZERO


@compiled
def _narrow_to_16(values, count, address, cut, bias, mantissa, normal, unit):
    """Round to a 16-bit type: `cut` bits of a float64 fall away, its exponent loses `bias`.

    Below `normal` numbers are multiples of `1 / unit`.
    """
    out = shorts(address, 0, count)
    bits = values.view(np.uint64)
    cut, mantissa = np.uint64(cut), np.uint64(mantissa)
    half = (ONE << (cut - ONE)) - ONE
    moved = np.uint64(bias) << mantissa
    infinite = ((np.uint64(0x7FF) - np.uint64(2 * bias)) << mantissa) & np.uint64(0x7FFF)
    whole = np.float64(2.0**52)
    bad = ZERO
    for i in range(count):
        magnitude = bits[i] & MAGNITUDE
        sign = (bits[i] >> np.uint64(63)) << np.uint64(15)
        stored = ((magnitude + half + ((magnitude >> cut) & ONE)) >> cut) - moved
        # Adding 2^52 rounds to a whole number, to nearest even, in the last bits.
        steps = np.float64(abs(values[i]) * unit + whole).view(np.uint64) & np.uint64(0xFFFF)
        stored = steps if abs(values[i]) < normal else min(stored, infinite)
        stored = (infinite | ONE << (mantissa - ONE)) if magnitude > INFINITE else stored
        bad |= ONE if stored >= infinite else ZERO
        out[i] = np.uint16(stored | sign)
    return bad == ZERO
