"""The compiled kernels of consensus methods: what is kept of each delta, and what becomes of it."""

from __future__ import annotations

import numpy as np

from . import BLOCK, DIGIT_BITS
from .draw import GAMMA, LAST_SHIFT, MIX
from .numba_mixtures import LEAVES, STRIP, TRUNK, add, deltas, fold, halve, scale
from .numba_pieces import ONE, PIECE, ZERO, compiled, narrow, widen

BAND, SPREAD, DRAWN, GIVEN = 0, 1, 2, 3
"""How a member's elements are chosen: by their magnitude, by the variance, at random, by a mask."""

GAMMA64 = np.uint64(GAMMA)
(SHIFT1, FACTOR1), (SHIFT2, FACTOR2) = ((np.uint64(by), np.uint64(f)) for by, f in MIX)
SHIFT3, SHIFT4, STEP = np.uint64(LAST_SHIFT), np.uint64(11), 2.0**-53
DIGITS, DIGIT_MASK = np.uint64(DIGIT_BITS), np.uint64(2**DIGIT_BITS - 1)


@compiled
def draw(key, first, probability, mask, count):
    """`uniform(key, i) < probability` of draw.py for `count` elements from `first` on."""
    start = np.uint64(key) + (np.uint64(first) + ONE) * GAMMA64
    for i in range(count):
        z = start + np.uint64(i) * GAMMA64
        z = (z ^ (z >> SHIFT1)) * FACTOR1
        z = (z ^ (z >> SHIFT2)) * FACTOR2
        z ^= z >> SHIFT3
        mask[i] = np.float64(np.int64(z >> SHIFT4)) * STEP < probability


@compiled
def within(values, low, high, mask, count):
    """Whether `|x|` is in [low, high]."""
    for i in range(count):
        size = abs(values[i])
        mask[i] = (size >= low) & (size <= high)


@compiled
def order(lower, upper, count):
    """Put the smaller of each pair into `lower`; equal ones stay, what is no number goes up."""
    for i in range(count):
        a, b = lower[i], upper[i]
        swap = (b < a) | ((a != a) & (b == b))
        lower[i] = b if swap else a
        upper[i] = a if swap else b


@compiled
def order_rows(rows, number, count):
    """Sort the first `number` rows, element by element."""
    for step in range(number):
        for row in range(step % 2, number - 1, 2):
            order(rows[row], rows[row + 1], count)


@compiled
def spread(kinds, addresses, start, count, values, squares, out):
    """The variance across the vectors: squares of all differences, the least first, over K^2.

    Without the sign that a difference of infinities has, its bit pattern is above all others.
    """
    members = len(kinds)
    deltas(kinds, addresses, -1, 0, start, count, values, out)
    out[:count] = 0.0
    pairs = 0
    for one in range(members):
        for other in range(one + 1, members):
            for i in range(count):
                difference = values[one, i] - values[other, i]
                squares[pairs, i] = difference * difference
            pairs += 1
    order_rows(squares, pairs, count)
    for pair in range(pairs):
        add(squares[pair], out, count)
    if pairs:
        for i in range(count):
            out[i] = abs(out[i] / np.float64(members * members))


@compiled
def choose(
    keeps, numbers, given, kinds, addresses, first, start, count, values, squares, variance, masks
):
    """What each member keeps of a piece: masks (K, PIECE), from deltas `values` (K, PIECE).

    `keeps` (K, 3) holds how, the member whose magnitude counts, and the key of draws; `numbers`
    (K, 2) the band, or the probability; `given` (K, n) the masks of the whole chunk for those that
    are chosen by a mask. The chunk begins at element `first` of the tensor.
    """
    known = False
    for k in range(len(keeps)):
        how, mask = keeps[k, 0], masks[k]
        if how == BAND:
            within(values[keeps[k, 1]], numbers[k, 0], numbers[k, 1], mask, count)
        elif how == SPREAD:
            if not known:
                spread(kinds, addresses, start, count, squares[-len(keeps) :], squares, variance)
                known = True
            within(variance, numbers[k, 0], numbers[k, 1], mask, count)
        elif how == DRAWN:
            draw(keeps[k, 2], first + start, numbers[k, 0], mask, count)
        else:
            chosen = given[k]
            for i in range(count):
                mask[i] = chosen[start + i]


@compiled
def room(keeps):
    """Rows for the squares of all pairs and the vectors, where variances are wanted."""
    members = len(keeps)
    for k in range(members):
        if keeps[k, 0] == SPREAD:
            return members * (members - 1) // 2 + members
    return 1


@compiled
def magnitudes(
    kinds, addresses, origin_kind, origin, member, start, count, values, base, squares, out
):
    """The measure of a piece: `|d|` of a member, or the variance for member -1."""
    if member < 0:
        spread(kinds, addresses, start, count, values, squares, out)
        return
    deltas(
        kinds[member : member + 1], addresses[member : member + 1], origin_kind, origin,
        start, count, values, base,
    )  # fmt: skip
    row = values[0]
    for i in range(count):
        out[i] = abs(row[i])


@compiled
def histogram(kinds, addresses, origin_kind, origin, member, count, prefix, shift, counts):
    """See `Kernels.histogram`."""
    members = len(kinds)
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, sizes = np.empty((max(1, members * (members - 1) // 2), PIECE)), np.empty(PIECE)
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
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, sizes = np.empty((max(1, members * (members - 1) // 2), PIECE)), np.empty(PIECE)
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
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, sizes = np.empty((max(1, members * (members - 1) // 2), PIECE)), np.empty(PIECE)
    bits = sizes.view(np.uint64)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        magnitudes(
            kinds, addresses, origin_kind, origin, member, start, piece, values, base, squares,
            sizes,
        )  # fmt: skip
        for index in range(len(limits)):
            counts[index] += count_at_least(bits, limits[index], piece)


@compiled
def count_at_least(bits, limit, count):
    """How many bit patterns are at least the limit."""
    found = 0
    for i in range(count):
        found += 1 if bits[i] >= limit else 0
    return found


@compiled
def kept_sums(kinds, addresses, origin_kind, origin, keeps, numbers, given, first, count, sums):
    """See `Kernels.kept_sums`: (blocks, K, 3)."""
    members = len(kinds)
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, variance = np.empty((room(keeps), PIECE)), np.empty(PIECE)
    masks = np.empty((members, PIECE), np.bool_)
    leaves, boughs = np.empty((3 * members, LEAVES, STRIP)), np.empty((3 * members, LEAVES, STRIP))
    trunks = np.empty((3 * members, TRUNK))
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
                        _terms(values[k], masks[k], STRIP, leaves, 3 * k, leaf)
                for row in range(3 * members):
                    fold(leaves[row], boughs[row, bough], STRIP)
            for row in range(3 * members):
                fold(boughs[row], trunks[row, top : top + STRIP], STRIP)
        for row in range(3 * members):
            halve(trunks[row], TRUNK, 1)
            sums[block, row // 3, row % 3] = trunks[row, 0]
    rest = count - whole * BLOCK
    if rest == 0:
        return
    terms, short = np.empty((3 * members, rest)), np.empty((3, 1, PIECE))
    for at in range(0, rest, PIECE):
        piece, start = min(PIECE, rest - at), whole * BLOCK + at
        deltas(kinds, addresses, origin_kind, origin, start, piece, values, base)
        choose(
            keeps, numbers, given, kinds, addresses, first, start, piece, values, squares,
            variance, masks,
        )  # fmt: skip
        for k in range(members):
            _terms(values[k], masks[k], piece, short, 0, 0)
            terms[3 * k : 3 * k + 3, at : at + piece] = short[:, 0, :piece]
    for row in range(3 * members):
        halve(terms[row], rest, 1)
        sums[whole, row // 3, row % 3] = terms[row, 0]


@compiled
def _terms(values, mask, count, out, row, leaf):
    """`|d|`, kept `|d|` and kept `d^2` into three rows."""
    for i in range(count):
        size = abs(values[i])
        chosen = size if mask[i] else 0.0
        out[row, leaf, i] = size
        out[row + 1, leaf, i] = chosen
        out[row + 2, leaf, i] = chosen * chosen


@compiled
def shared_counts(
    kinds, addresses, origin_kind, origin, keeps, numbers, given, first, count, counts
):
    """See `Kernels.shared_counts`: (K, 2)."""
    members = len(kinds)
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, variance = np.empty((room(keeps), PIECE)), np.empty(PIECE)
    masks = np.empty((members, PIECE), np.bool_)
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
def count_keepers(masks, keepers, count):
    """How many members keep each element."""
    keepers[:count] = 0
    for k in range(len(masks)):
        mask = masks[k]
        for i in range(count):
            keepers[i] += 1 if mask[i] else 0


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
    values, base = np.empty((members, PIECE)), np.empty(PIECE)
    squares, variance = np.empty((room(keeps), PIECE)), np.empty(PIECE)
    masks = np.empty((members, PIECE), np.bool_)
    keepers = np.empty(PIECE, np.int64)
    elected, total, shares = np.empty(PIECE), np.empty(PIECE), np.empty(PIECE)
    finite = True
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        deltas(kinds, addresses, origin_kind, origin, start, piece, values, base)
        choose(
            keeps, numbers, given, kinds, addresses, first, start, piece, values, squares,
            variance, masks,
        )  # fmt: skip
        if mean or len(lone_factors):
            count_keepers(masks, keepers, piece)
        elected[:piece] = 0.0
        total[:piece] = 0.0
        shares[:piece] = 0.0
        known = True
        for k in range(members):
            if len(lone_factors):
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
def scale_lone(values, keepers, factor, count):
    """Multiply what one member alone keeps."""
    for i in range(count):
        values[i] = values[i] * factor if keepers[i] == 1 else values[i]


@compiled
def divide(total, shares, count):
    """Divide by the weights that came together, where there are some."""
    for i in range(count):
        total[i] /= 1.0 if shares[i] == 0.0 else shares[i]
