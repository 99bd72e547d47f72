"""The compiled kernels of order statistics: counts of measures, and those in a range."""

from __future__ import annotations

import numpy as np

from . import DIGIT_BITS
from .numba_choice import spread
from .numba_pieces import (
    BF16,
    F32,
    ONE,
    PIECE,
    compiled,
    double,
    room_for,
    shorts,
    singles,
    widen,
)

DIGITS, DIGIT_MASK = np.uint64(DIGIT_BITS), np.uint64(2**DIGIT_BITS - 1)


@compiled
def magnitudes(
    kinds, addresses, origin_kind, origin, member, start, count, values, base, squares, out
):
    """The measure of a piece: `|d|` of a member, or the variance for member -1."""
    if member < 0:
        spread(kinds, addresses, start, count, values, squares, out)
        return
    kind, address = kinds[member], addresses[member]
    widen(origin_kind, origin, start, count, base)
    if kind == BF16:
        _distances(shorts(address, start, count), base, out, count)
    elif kind == F32:
        _distances(singles(address, start, count), base, out, count)
    else:
        widen(kind, address, start, count, out)
        _distances(out, base, out, count)


@compiled
def _distances(elements, base, out, count):
    for i in range(count):
        out[i] = abs(double(elements[i]) - base[i])


@compiled
def histogram(kinds, addresses, origin_kind, origin, member, count, prefix, shift, counts):
    """See `Kernels.histogram`."""
    members = len(kinds)
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares = room_for(max(1, members * (members - 1) // 2), PIECE)
    sizes = room_for(1, PIECE)[0]
    bits = sizes.view(np.uint64)
    shift, prefix = np.uint64(shift), np.uint64(prefix)
    every = shift + DIGITS >= np.uint64(64)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        magnitudes(
            kinds, addresses, origin_kind, origin, member, start, piece, values, base, squares,
            sizes,
        )  # fmt: skip
        for i in range(piece):
            digits = bits[i] >> shift
            if every or digits >> DIGITS == prefix:
                counts[np.int64(digits & DIGIT_MASK)] += 1


@compiled
def gather(kinds, addresses, origin_kind, origin, member, count, low, high, out):
    """See `Kernels.measured`, with bit patterns for limits; `out` has room for all.

    Returns:
        how many are in `out`, and how many are larger.
    """
    members = len(kinds)
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares = room_for(max(1, members * (members - 1) // 2), PIECE)
    sizes = room_for(1, PIECE)[0]
    bits = sizes.view(np.uint64)
    found, above = 0, 0
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        magnitudes(
            kinds, addresses, origin_kind, origin, member, start, piece, values, base, squares,
            sizes,
        )  # fmt: skip
        larger = count_at_least(bits, high + ONE, piece)
        above += larger
        if count_at_least(bits, low, piece) > larger:
            for i in range(piece):
                out[found] = sizes[i]
                found += 1 if (bits[i] >= low) & (bits[i] <= high) else 0
    return found, above


@compiled
def tally(kinds, addresses, origin_kind, origin, member, count, limits, counts):
    """See `Kernels.tally`, with bit patterns for limits: added to `counts`."""
    members = len(kinds)
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares = room_for(max(1, members * (members - 1) // 2), PIECE)
    sizes = room_for(1, PIECE)[0]
    bits = sizes.view(np.uint64)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        magnitudes(
            kinds, addresses, origin_kind, origin, member, start, piece, values, base, squares,
            sizes,
        )  # fmt: skip
        index = 0
        while index + 4 <= len(limits):
            count_four(bits, limits[index : index + 4], counts[index : index + 4], piece)
            index += 4
        while index < len(limits):
            counts[index] += count_at_least(bits, limits[index], piece)
            index += 1


@compiled
def count_four(bits, limits, counts, count):
    """`count_at_least` of four limits in one loop."""
    one, two, three, four = limits[0], limits[1], limits[2], limits[3]
    a, b, c, d = 0, 0, 0, 0
    for i in range(count):
        a += 1 if bits[i] >= one else 0
        b += 1 if bits[i] >= two else 0
        c += 1 if bits[i] >= three else 0
        d += 1 if bits[i] >= four else 0
    counts[0] += a
    counts[1] += b
    counts[2] += c
    counts[3] += d


@compiled
def count_at_least(bits, limit, count):
    """How many bit patterns are at least the limit."""
    found = 0
    for i in range(count):
        found += 1 if bits[i] >= limit else 0
    return found
