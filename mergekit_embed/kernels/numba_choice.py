"""The compiled choice of elements: by their magnitude, by the variance, at random."""

from __future__ import annotations

import numpy as np

from .draw import GAMMA, LAST_SHIFT, MIX
from .numba_mixtures import add, deltas
from .numba_pieces import ONE, compiled

BAND, SPREAD, DRAWN, GIVEN = 0, 1, 2, 3
"""How a member's elements are chosen: by their magnitude, by the variance, at random, by a mask."""

GAMMA64 = np.uint64(GAMMA)
(SHIFT1, FACTOR1), (SHIFT2, FACTOR2) = ((np.uint64(by), np.uint64(f)) for by, f in MIX)
SHIFT3, SHIFT4, STEP = np.uint64(LAST_SHIFT), np.uint64(11), 2.0**-53


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
def all_by_own_size(keeps):
    """Whether every member keeps elements by its own magnitude."""
    found = True
    for k in range(len(keeps)):
        found &= (keeps[k, 0] == BAND) & (keeps[k, 1] == k)
    return found


@compiled
def count_keepers(masks, keepers, count):
    """How many members keep each element."""
    keepers[:count] = 0
    for k in range(len(masks)):
        mask = masks[k]
        for i in range(count):
            keepers[i] += 1 if mask[i] else 0
