"""The compiled kernels of consensus methods: sums over what is kept, and what becomes of it."""

from __future__ import annotations

import numpy as np

from . import BLOCK
from .numba_choice import all_by_own_size, choose, count_keepers, room
from .numba_mixtures import LEAVES, TRUNK, add, deltas, fold, halve
from .numba_pieces import (
    BF16,
    F32,
    ONE,
    PIECE,
    ZERO,
    compiled,
    double,
    narrow,
    room_for,
    shorts,
    singles,
    widen,
)

LEAF, SLOT = (0, 4, 2, 6, 1, 5, 3, 7), (0, 0, 1, 1, 1, 1, 2, 2)
"""The order in which halving adds eight leaves, and where each goes: every second is added."""


@compiled
def kept_sums(kinds, addresses, origin_kind, origin, keeps, numbers, given, first, count, sums):
    """See `Kernels.kept_sums`: (blocks, K, 2 or 3).

    Leaves are visited in the order in which halving adds them, so that three of a row are at hand
    in place of eight.
    """
    members, number = sums.shape[1:]
    rows = number * members
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares, variance = room_for(room(keeps), PIECE), room_for(1, PIECE)[0]
    masks = room_for(members, PIECE // 8).view(np.bool_)  # pieces and trunks are as long
    leaves = room_for(rows * 3, TRUNK).reshape(rows, 3, TRUNK)
    boughs = room_for(rows * LEAVES, TRUNK).reshape(rows, LEAVES, TRUNK)
    trunk = room_for(1, TRUNK)[0]
    whole = count // BLOCK
    for block in range(whole):
        for bough in range(LEAVES):
            for visit in range(LEAVES):
                start = block * BLOCK + (LEAF[visit] * LEAVES + bough) * TRUNK
                deltas(kinds, addresses, origin_kind, origin, start, TRUNK, values, base)
                choose(
                    keeps, numbers, given, kinds, addresses, first, start, TRUNK, values, squares,
                    variance, masks,
                )  # fmt: skip
                for k in range(members):
                    _terms(
                        values[k], masks[k], TRUNK, leaves, number * k, number, SLOT[visit],
                        visit % 2 == 1,
                    )  # fmt: skip
                if visit == 3:
                    for row in range(rows):
                        add(leaves[row, 1], leaves[row, 0], TRUNK)
            for row in range(rows):
                for i in range(TRUNK):
                    odd = leaves[row, 1, i] + leaves[row, 2, i]
                    boughs[row, bough, i] = leaves[row, 0, i] + odd
        for row in range(rows):
            fold(boughs[row], trunk, TRUNK)
            halve(trunk, TRUNK, 1)
            sums[block, row // number, row % number] = trunk[0]
    rest = count - whole * BLOCK
    if rest == 0:
        return
    terms, short = np.empty((number * members, rest)), np.empty((number, 1, PIECE))
    for at in range(0, rest, PIECE):
        piece, start = min(PIECE, rest - at), whole * BLOCK + at
        deltas(kinds, addresses, origin_kind, origin, start, piece, values, base)
        choose(
            keeps, numbers, given, kinds, addresses, first, start, piece, values, squares,
            variance, masks,
        )  # fmt: skip
        for k in range(members):
            _terms(values[k], masks[k], piece, short, 0, number, 0, False)
            terms[number * k : number * k + number, at : at + piece] = short[:, 0, :piece]
    for row in range(number * members):
        halve(terms[row], rest, 1)
        sums[whole, row // number, row % number] = terms[row, 0]


@compiled
def _terms(values, mask, count, out, row, number, slot, added):
    """`|d|`, kept `|d|` and, where three numbers are wanted, kept `d^2`: stored, or added."""
    if added:
        for i in range(count):
            size = abs(values[i])
            out[row, slot, i] += size
            out[row + 1, slot, i] += size if mask[i] else 0.0
    else:
        for i in range(count):
            size = abs(values[i])
            out[row, slot, i] = size
            out[row + 1, slot, i] = size if mask[i] else 0.0
    if number == 3:
        for i in range(count):
            size = abs(values[i]) if mask[i] else 0.0
            before = out[row + 2, slot, i] if added else 0.0
            out[row + 2, slot, i] = before + size * size


@compiled
def shared_counts(
    kinds, addresses, origin_kind, origin, keeps, numbers, given, first, count, counts
):
    """See `Kernels.shared_counts`: (K, 2)."""
    members = len(kinds)
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares, variance = room_for(room(keeps), PIECE), room_for(1, PIECE)[0]
    masks = room_for(members, PIECE // 8).view(np.bool_)
    keepers = np.empty(PIECE, np.int64)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        deltas(kinds, addresses, origin_kind, origin, start, piece, values, base)
        choose(
            keeps, numbers, given, kinds, addresses, first, start, piece, values, squares,
            variance, masks,
        )  # fmt: skip
        count_keepers(masks, keepers, piece)
        for k in range(members):
            for i in range(piece):
                if masks[k, i]:
                    counts[k, 0 if keepers[i] == 1 else 1] += 1


@compiled
def consensus(
    kinds, addresses, origin_kind, origin, keeps, numbers, given, first, vote, mean, normalize,
    factors, lone_factors, weight, factor, divisor, divided, kind, address, count,
):  # fmt: skip
    """See `Kernels.consensus`.

    Returns:
        whether the result and all inputs are finite.
    """
    members = len(kinds)
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares, variance = room_for(room(keeps), PIECE), room_for(1, PIECE)[0]
    masks = room_for(members, PIECE // 8).view(np.bool_)
    keepers = np.empty(PIECE, np.int64)
    sums = room_for(3, PIECE)
    elected, total, shares = sums[0], sums[1], sums[2]
    finite, at_once = True, len(lone_factors) == 0 and all_by_own_size(keeps)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        if at_once:
            widen(origin_kind, origin, start, piece, base)
        else:
            deltas(kinds, addresses, origin_kind, origin, start, piece, values, base)
            choose(
                keeps, numbers, given, kinds, addresses, first, start, piece, values, squares,
                variance, masks,
            )  # fmt: skip
        elected[:piece] = 0.0
        total[:piece] = 0.0
        shares[:piece] = 0.0
        known = True
        if len(lone_factors):
            count_keepers(masks, keepers, piece)
        for k in range(members):
            if at_once:
                known &= weigh_within(
                    kinds[k], addresses[k], start, piece, base, numbers[k, 0], numbers[k, 1],
                    factors[k], weight[k], values[k], masks[k], elected,
                )  # fmt: skip
            elif len(lone_factors):
                known &= all_finite(values[k], piece)
                scale(values[k], factors[k], piece)
                scale_lone(values[k], keepers, lone_factors[k], piece)
                known &= weigh(values[k], masks[k], 1.0, weight[k], elected, piece)
            else:
                known &= weigh(values[k], masks[k], factors[k], weight[k], elected, piece)
        for k in range(members):
            if vote:
                add_elected(values[k], elected, weight[k], total, shares, piece)
            else:
                add_kept(values[k], masks[k], weight[k], total, shares, piece)
        if normalize:
            divide(total, shares, piece)
        if mean:
            count_keepers(masks, keepers, piece)
            for i in range(piece):
                total[i] /= np.float64(max(keepers[i], 1))
        move(base, factor, total, piece)
        if start < divided:
            for i in range(min(piece, divided - start)):
                total[i] /= divisor
        finite &= narrow(kind, total, piece, address, start)
        if not known:  # a difference overflows, or was not finite to begin with
            finite &= all_finite(base, piece)
            for k in range(members):
                widen(kinds[k], addresses[k], start, piece, variance)
                finite &= all_finite(variance, piece)
    return finite


@compiled
def weigh_within(
    kind, address, start, count, base, low, high, factor, weight, values, mask, elected
):
    """`deltas`, `within` and `weigh` of one member in one loop."""
    if kind == BF16:
        stored = shorts(address, start, count)
        return _weigh_within(stored, base, low, high, factor, weight, values, mask, elected, count)
    if kind == F32:
        stored = singles(address, start, count)
        return _weigh_within(stored, base, low, high, factor, weight, values, mask, elected, count)
    widen(kind, address, start, count, values)
    return _weigh_within(values, base, low, high, factor, weight, values, mask, elected, count)


@compiled
def _weigh_within(elements, base, low, high, factor, weight, values, mask, elected, count):
    bad = ZERO
    for i in range(count):
        delta = double(elements[i]) - base[i]
        size = abs(delta)
        bad |= ZERO if size < np.inf else ONE
        kept = (size >= low) & (size <= high)
        term = delta * factor * weight if kept else 0.0
        mask[i] = kept
        values[i] = term
        elected[i] += term
    return bad == ZERO


@compiled
def weigh(values, mask, factor, weight, elected, count):
    """Kept elements times factor and weight, the others 0; also added to `elected`.

    Returns:
        whether the values were finite.
    """
    bad = ZERO
    for i in range(count):
        bad |= ZERO if abs(values[i]) < np.inf else ONE
        term = values[i] * factor * weight if mask[i] else 0.0
        values[i] = term
        elected[i] += term
    return bad == ZERO


@compiled
def add_elected(values, elected, weight, total, shares, count):
    """Add what has the elected sign, which zero has not; an election of zero is positive."""
    for i in range(count):
        value = values[i] if elected[i] >= 0.0 else -values[i]
        counts = value > 0.0
        total[i] += values[i] if counts else 0.0
        shares[i] += weight if counts else 0.0


@compiled
def add_kept(values, mask, weight, total, shares, count):
    """Add what is kept."""
    for i in range(count):
        total[i] += values[i]
        shares[i] += weight if mask[i] else 0.0


@compiled
def move(base, factor, total, count):
    """`b + f t` in the place of t; where nothing came together, b as it is."""
    for i in range(count):
        moved = base[i] + factor * total[i]
        total[i] = base[i] if total[i] == 0.0 else moved


@compiled
def all_finite(values, count):
    """Whether all of the values are finite."""
    bad = ZERO
    for i in range(count):
        bad |= ZERO if abs(values[i]) < np.inf else ONE
    return bad == ZERO


@compiled
def scale(values, factor, count):
    """`c x` in the place of x."""
    for i in range(count):
        values[i] *= factor


@compiled
def scale_lone(values, keepers, factor, count):
    """Multiply what one member alone keeps."""
    for i in range(count):
        values[i] = values[i] * factor if keepers[i] == 1 else values[i]


@compiled
def divide(total, shares, count):
    """Divide by the weights that came together, where there are some."""
    for i in range(count):
        total[i] /= 1.0 if shares[i] == 0.0 else shares[i]
