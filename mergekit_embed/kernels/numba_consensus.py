"""The compiled kernels of consensus methods: sums over what is kept, and what becomes of it."""

from __future__ import annotations

import numpy as np

from . import BLOCK
from .numba_choice import all_by_own_size, choose, count_keepers, room
from .numba_mixtures import LEAVES, STRIP, TRUNK, deltas, fold, halve
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


@compiled
def kept_sums(kinds, addresses, origin_kind, origin, keeps, numbers, given, first, count, sums):
    """See `Kernels.kept_sums`: (blocks, K, 2 or 3)."""
    members, number = sums.shape[1:]
    values, base = room_for(members, PIECE), room_for(1, PIECE)[0]
    squares, variance = room_for(room(keeps), PIECE), room_for(1, PIECE)[0]
    masks = room_for(members, PIECE // 8).view(np.bool_)
    leaves = room_for(number * members * LEAVES, STRIP).reshape(number * members, LEAVES, STRIP)
    boughs = room_for(number * members * LEAVES, STRIP).reshape(number * members, LEAVES, STRIP)
    trunks = room_for(number * members, TRUNK)
    whole = count // BLOCK
    for block in range(whole):
        for top in range(0, TRUNK, STRIP):
            for bough in range(LEAVES):
                for leaf in range(LEAVES):
                    start = block * BLOCK + (leaf * LEAVES + bough) * TRUNK + top
                    deltas(kinds, addresses, origin_kind, origin, start, STRIP, values, base)
                    choose(
                        keeps, numbers, given, kinds, addresses, first, start, STRIP, values,
                        squares, variance, masks,
                    )  # fmt: skip
                    for k in range(members):
                        _terms(values[k], masks[k], STRIP, leaves, number * k, number, leaf)
                for row in range(number * members):
                    fold(leaves[row], boughs[row, bough], STRIP)
            for row in range(number * members):
                fold(boughs[row], trunks[row, top : top + STRIP], STRIP)
        for row in range(number * members):
            halve(trunks[row], TRUNK, 1)
            sums[block, row // number, row % number] = trunks[row, 0]
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
            _terms(values[k], masks[k], piece, short, 0, number, 0)
            terms[number * k : number * k + number, at : at + piece] = short[:, 0, :piece]
    for row in range(number * members):
        halve(terms[row], rest, 1)
        sums[whole, row // number, row % number] = terms[row, 0]


@compiled
def _terms(values, mask, count, out, row, number, leaf):
    """`|d|`, kept `|d|`, and where three numbers are wanted kept `d^2`, into rows of `out`."""
    for i in range(count):
        size = abs(values[i])
        out[row, leaf, i] = size
        out[row + 1, leaf, i] = size if mask[i] else 0.0
    if number == 3:
        for i in range(count):
            chosen = out[row + 1, leaf, i]
            out[row + 2, leaf, i] = chosen * chosen


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
