"""The compiled kernels of mixtures: inner products, and weighted sums."""

from __future__ import annotations

import numpy as np

from . import BLOCK
from .numba_pieces import MAGNITUDE, ONE, PIECE, ZERO, compiled, narrow, widen

LEAVES = 8
"""Terms that are added at once: three halvings. The first six of a block are two such steps."""

TRUNK = BLOCK // LEAVES**2
"""Terms that are left of a block after these."""

STRIP = 256
"""Terms of each part that are made at once."""

NONE = -1
"""The kind of an origin that is not there."""


@compiled
def halve(terms, length, inner):
    """Add up (length, inner) over the length, in place: the sums are the first `inner` numbers."""
    while length > 1:
        half = 1
        while 2 * half < length:
            half *= 2
        lower, upper = terms[: half * inner], terms[half * inner : length * inner]
        for i in range((length - half) * inner):
            lower[i] += upper[i]
        length = half


@compiled
def deltas(kinds, addresses, origin_kind, origin, start, count, out, base):
    """`x_k - o` of a piece: out (K, PIECE) or longer; the origin's elements go to `base`."""
    if origin_kind != NONE:
        widen(origin_kind, origin, start, count, base)
    for k in range(len(kinds)):
        widen(kinds[k], addresses[k], start, count, out[k])
        if origin_kind != NONE:
            subtract(base, out[k], count)


@compiled
def fold(leaves, out, count):
    """Add terms (LEAVES, count) as three halvings would."""
    for i in range(count):
        even = (leaves[0, i] + leaves[4, i]) + (leaves[2, i] + leaves[6, i])
        odd = (leaves[1, i] + leaves[5, i]) + (leaves[3, i] + leaves[7, i])
        out[i] = even + odd


@compiled
def fold_products(leaves, boughs, bough):
    """`fold` of the products of all pairs of vectors (K, LEAVES, STRIP)."""
    row = 0
    for one in range(len(leaves)):
        for other in range(one, len(leaves)):
            for i in range(STRIP):
                a = (
                    leaves[one, 0, i] * leaves[other, 0, i]
                    + leaves[one, 4, i] * leaves[other, 4, i]
                )
                b = (
                    leaves[one, 2, i] * leaves[other, 2, i]
                    + leaves[one, 6, i] * leaves[other, 6, i]
                )
                c = (
                    leaves[one, 1, i] * leaves[other, 1, i]
                    + leaves[one, 5, i] * leaves[other, 5, i]
                )
                d = (
                    leaves[one, 3, i] * leaves[other, 3, i]
                    + leaves[one, 7, i] * leaves[other, 7, i]
                )
                boughs[row, bough, i] = (a + b) + (c + d)
            row += 1


@compiled
def positive(values, count):
    """`|x|` in the place of x."""
    for i in range(count):
        values[i] = abs(values[i])


@compiled
def block_moments(kinds, addresses, origin_kind, origin, count, absolute, products, absolutes):
    """Moments of every block: products (blocks, K, K), absolutes (blocks, K)."""
    members = len(kinds)
    pairs = members * (members + 1) // 2
    sums = pairs + members if absolute else pairs
    leaves = np.empty((members, LEAVES, STRIP))
    boughs, trunks = np.empty((sums, LEAVES, STRIP)), np.empty((sums, TRUNK))
    base = np.empty(STRIP)
    whole = count // BLOCK
    for block in range(whole):
        for first in range(0, TRUNK, STRIP):
            for bough in range(LEAVES):
                for leaf in range(LEAVES):
                    start = block * BLOCK + (leaf * LEAVES + bough) * TRUNK + first
                    if origin_kind != NONE:
                        widen(origin_kind, origin, start, STRIP, base)
                    for k in range(members):
                        widen(kinds[k], addresses[k], start, STRIP, leaves[k, leaf])
                        if origin_kind != NONE:
                            subtract(base, leaves[k, leaf], STRIP)
                fold_products(leaves, boughs, bough)
                for k in range(sums - pairs):
                    for leaf in range(LEAVES):
                        positive(leaves[k, leaf], STRIP)
                    fold(leaves[k], boughs[pairs + k, bough], STRIP)
            for row in range(sums):
                fold(boughs[row], trunks[row, first : first + STRIP], STRIP)
        row = 0
        for one in range(members):
            for other in range(one, members):
                halve(trunks[row], TRUNK, 1)
                products[block, one, other] = products[block, other, one] = trunks[row, 0]
                row += 1
        for k in range(sums - pairs):
            halve(trunks[pairs + k], TRUNK, 1)
            absolutes[block, k] = trunks[pairs + k, 0]
    if count > whole * BLOCK:
        start, rest = whole * BLOCK, count - whole * BLOCK
        one_moment(
            kinds, addresses, origin_kind, origin, start, rest, 1, absolute,
            products[whole : whole + 1], absolutes[whole : whole + 1],
        )  # fmt: skip


@compiled
def one_moment(
    kinds, addresses, origin_kind, origin, start, length, inner, absolute, products, absolutes
):
    """Moments over the length of (length, inner): products (inner, K, K), absolutes (inner, K)."""
    members, count = len(kinds), length * inner
    values, base, terms = np.empty((members, count)), np.empty(count), np.empty(count)
    deltas(kinds, addresses, origin_kind, origin, start, count, values, base)
    for one in range(members):
        for other in range(one, members):
            for i in range(count):
                terms[i] = values[one, i] * values[other, i]
            halve(terms, length, inner)
            for i in range(inner):
                products[i, one, other] = products[i, other, one] = terms[i]
        if absolute:
            for i in range(count):
                terms[i] = abs(values[one, i])
            halve(terms, length, inner)
            for i in range(inner):
                absolutes[i, one] = terms[i]


@compiled
def vector_moments(
    kinds, addresses, origin_kind, origin, length, inner, absolute, products, absolutes
):
    """Moments of (outer, length, inner): products (outer, inner, K, K)."""
    for outer in range(len(products)):
        start = outer * length * inner
        one_moment(
            kinds, addresses, origin_kind, origin, start, length, inner, absolute,
            products[outer], absolutes[outer],
        )  # fmt: skip


@compiled
def mixture(
    kinds, addresses, origin_kind, origin, coefficients, affine, length, inner, exposed,
    divisor, divided, kind, address, count,
):  # fmt: skip
    """See `Kernels.mixture`; coefficients (outer or 1, inner or 1, K), affine (outer or 1, inner or 1).

    Returns:
        whether all of the result is finite.
    """  # noqa: E501
    finite = True
    rows, columns, members = coefficients.shape
    values, total, base = np.empty(PIECE), np.empty(PIECE), np.empty(PIECE)
    bits, total_bits = values.view(np.uint64), total.view(np.uint64)
    first, differ = np.empty(PIECE, np.uint64), np.empty(PIECE, np.uint64)
    factors = np.empty(PIECE)
    run = count if rows == 1 else length * inner  # elements with the same row of coefficients
    for top in range(0, count, run):
        own, same_sum = coefficients[top // run], affine[top // run]
        for start in range(top, min(top + run, count), PIECE):
            piece = min(PIECE, top + run - start, count - start)
            if origin_kind != NONE:
                widen(origin_kind, origin, start, piece, base)
                total[:piece] = 0.0
            for k in range(members):
                widen(kinds[k], addresses[k], start, piece, values)
                if exposed:
                    compare(bits, k == 0, first, differ, piece)
                if origin_kind != NONE:
                    take_away(values, base, piece)
                if columns > 1:
                    for i in range(piece):
                        factors[i] = own[(start + i) % inner, k]
                    multiply(values, factors, piece)
                else:
                    scale(values, own[0, k], piece)
                if k == 0 and origin_kind == NONE:
                    total[:piece] = values[:piece]
                else:
                    add(values, total, piece)
            if origin_kind != NONE:
                take_away(total, base, piece)
            if exposed or has_zero(total, piece):
                if not exposed:
                    for k in range(members):
                        widen(kinds[k], addresses[k], start, piece, values)
                        compare(bits, k == 0, first, differ, piece)
                for i in range(piece):
                    if not same_sum[(start + i) % inner if columns > 1 else 0]:
                        differ[i] = ONE
                restore(first, differ, exposed, total_bits, piece)
            if start < divided:
                for i in range(min(piece, divided - start)):
                    total[i] /= divisor
            finite &= narrow(kind, total, piece, address, start)
    return finite


@compiled
def subtract(base, values, count):
    """`x - b` in the place of x."""
    for i in range(count):
        values[i] -= base[i]


@compiled
def take_away(values, base, count):
    """`b - x` in the place of x."""
    for i in range(count):
        values[i] = base[i] - values[i]


@compiled
def scale(values, factor, count):
    """`c x` in the place of x."""
    for i in range(count):
        values[i] *= factor


@compiled
def multiply(values, factors, count):
    """`c_i x_i` in the place of x."""
    for i in range(count):
        values[i] *= factors[i]


@compiled
def add(values, total, count):
    """Add values to the total."""
    for i in range(count):
        total[i] += values[i]


@compiled
def has_zero(values, count):
    """Whether one of the values is zero."""
    found = False
    for i in range(count):
        found |= values[i] == 0.0
    return found


@compiled
def compare(bits, is_first, first, differ, count):
    """Remember the first vector's bits; of others, note those in which they differ from it."""
    if is_first:
        for i in range(count):
            first[i] = bits[i]
            differ[i] = ZERO
    else:
        for i in range(count):
            differ[i] |= bits[i] ^ first[i]


@compiled
def restore(first, differ, exposed, bits, count):
    """Give back what all vectors have in common: everywhere, or where the total is zero."""
    hidden = ZERO if exposed else MAGNITUDE
    for i in range(count):
        bits[i] = first[i] if (bits[i] & hidden | differ[i]) == ZERO else bits[i]
