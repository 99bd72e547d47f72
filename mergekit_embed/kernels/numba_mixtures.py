"""The compiled kernels of mixtures: inner products, and weighted sums."""

from __future__ import annotations

import numpy as np

from . import BLOCK
from .numba_pieces import (
    BF16,
    F32,
    F64,
    compiled,
    double,
    doubles,
    narrow,
    room_for,
    shorts,
    singles,
    widen,
)

LEAVES = 8
"""Terms that are added at once: three halvings. The first six of a block are two such steps."""

TRUNK = BLOCK // LEAVES**2
"""Terms that are left of a block after these."""

STRIP = 256
"""Terms of each part that are made at once."""

WIDE = 1024
"""Elements of a piece where few rows of them are at hand."""

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
        widen_from(kinds[k], addresses[k], origin_kind, start, count, base, out[k])


@compiled
def widen_from(kind, address, origin_kind, start, count, base, out):
    """`x - b` of a piece of one vector, or x where there is no origin."""
    if origin_kind != NONE and kind == BF16:
        _subtract(shorts(address, start, count), base, out, count)
    elif origin_kind != NONE and kind == F32:
        _subtract(singles(address, start, count), base, out, count)
    else:
        widen(kind, address, start, count, out)
        if origin_kind != NONE:
            _subtract(out, base, out, count)


@compiled
def _subtract(elements, base, out, count):
    for i in range(count):
        out[i] = double(elements[i]) - base[i]


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
    leaves = room_for(members * LEAVES, STRIP).reshape(members, LEAVES, STRIP)
    boughs = room_for(sums * LEAVES, STRIP).reshape(sums, LEAVES, STRIP)
    trunks, base = room_for(sums, TRUNK), room_for(1, STRIP)[0]
    whole = count // BLOCK
    for block in range(whole):
        for first in range(0, TRUNK, STRIP):
            for bough in range(LEAVES):
                for leaf in range(LEAVES):
                    start = block * BLOCK + (leaf * LEAVES + bough) * TRUNK + first
                    if origin_kind != NONE:
                        widen(origin_kind, origin, start, STRIP, base)
                    for k in range(members):
                        widen_from(
                            kinds[k], addresses[k], origin_kind, start, STRIP, base, leaves[k, leaf]
                        )
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
    """See `Kernels.mixture`.

    Coefficients are (outer or 1, inner or 1, K), and `affine` (outer or 1, inner or 1) tells which
    sum to 1. `exposed`: what all vectors have in common is sought everywhere, not just at zeros.

    Returns:
        whether all of the result is finite.
    """
    finite = True
    rows, columns, members = coefficients.shape
    room = room_for(5, WIDE)
    values, total, base, factors = room[0], room[1], room[2], room[3]
    differ = room[4].view(np.bool_)[:WIDE]
    run = count if rows == 1 else length * inner  # elements with the same row of coefficients
    for top in range(0, count, run):
        own, same_sum = coefficients[top // run], affine[top // run]
        for start in range(top, min(top + run, count), WIDE):
            piece = min(WIDE, top + run - start, count - start)
            # Negative zero is what changes nothing when something is added to it.
            total[:piece] = -0.0 if origin_kind == NONE else 0.0
            if origin_kind != NONE:
                widen(origin_kind, origin, start, piece, base)
            for k in range(members):
                if columns > 1:
                    for i in range(piece):
                        factors[i] = own[(start + i) % inner, k]
                    widen(kinds[k], addresses[k], start, piece, values)
                    if origin_kind != NONE:
                        take_away(values, base, piece)
                    add_products(values, factors, total, piece)
                elif origin_kind != NONE:
                    add_away(kinds[k], addresses[k], start, piece, own[0, k], base, values, total)
                else:
                    add_weighted(kinds[k], addresses[k], start, piece, own[0, k], values, total)
            if origin_kind != NONE:
                take_away(total, base, piece)
            if (exposed or has_zero(total, piece)) and (columns > 1 or same_sum[0]):
                differ[:piece] = False
                if columns > 1:
                    for i in range(piece):
                        differ[i] = not same_sum[(start + i) % inner]
                restore(kinds, addresses, start, piece, exposed, differ, values, factors, total)
            if start < divided:
                for i in range(min(piece, divided - start)):
                    total[i] /= divisor
            finite &= narrow(kind, total, piece, address, start)
    return finite


@compiled
def add_weighted(kind, address, start, count, factor, spare, total):
    """Add `c x` to the total."""
    if kind == BF16:
        _add_weighted(shorts(address, start, count), factor, total, count)
    elif kind == F32:
        _add_weighted(singles(address, start, count), factor, total, count)
    else:
        widen(kind, address, start, count, spare)
        _add_weighted(spare, factor, total, count)


@compiled
def _add_weighted(elements, factor, total, count):
    for i in range(count):
        total[i] += double(elements[i]) * factor


@compiled
def add_away(kind, address, start, count, factor, base, spare, total):
    """Add `c (b - x)` to the total."""
    if kind == BF16:
        _add_away(shorts(address, start, count), factor, base, total, count)
    elif kind == F32:
        _add_away(singles(address, start, count), factor, base, total, count)
    else:
        widen(kind, address, start, count, spare)
        _add_away(spare, factor, base, total, count)


@compiled
def _add_away(elements, factor, base, total, count):
    for i in range(count):
        total[i] += (base[i] - double(elements[i])) * factor


@compiled
def take_away(values, base, count):
    """`b - x` in the place of x."""
    for i in range(count):
        values[i] = base[i] - values[i]


@compiled
def add_products(values, factors, total, count):
    """Add `c_i x_i` to the total."""
    for i in range(count):
        total[i] += values[i] * factors[i]


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
def compare(kinds, addresses, start, count, differ, first, other):
    """Note the elements in which any vector differs from the first; two rows are spare."""
    for k in range(1, len(kinds)):
        if kinds[k] != kinds[0]:
            widen(kinds[0], addresses[0], start, count, first)
            widen(kinds[k], addresses[k], start, count, other)
            _compare(first.view(np.uint64), other.view(np.uint64), differ, count)
        elif kinds[k] == F64:
            one, two = doubles(addresses[0], start, count), doubles(addresses[k], start, count)
            _compare(one.view(np.uint64), two.view(np.uint64), differ, count)
        elif kinds[k] == F32:
            one, two = singles(addresses[0], start, count), singles(addresses[k], start, count)
            _compare(one.view(np.uint32), two.view(np.uint32), differ, count)
        else:
            one, two = shorts(addresses[0], start, count), shorts(addresses[k], start, count)
            _compare(one, two, differ, count)


@compiled
def _compare(one, two, differ, count):
    for i in range(count):
        differ[i] |= one[i] != two[i]


@compiled
def restore(kinds, addresses, start, count, everywhere, differ, first, other, total):
    """Give back what all vectors have in common, everywhere or where the total is zero.

    Elements in which they are not to be compared are noted in `differ`; two rows are spare.
    """
    compare(kinds, addresses, start, count, differ, first, other)
    common = False
    for i in range(count):
        common |= not differ[i]
    if not common:
        return
    widen(kinds[0], addresses[0], start, count, first)
    for i in range(count):
        chosen = (everywhere | (total[i] == 0.0)) & (not differ[i])
        total[i] = first[i] if chosen else total[i]
