"""The compiled kernels of the other elementwise methods: robust centres, Fishers, ranks."""

from __future__ import annotations

import numpy as np

from .numba_choice import draw, order_rows
from .numba_consensus import all_finite
from .numba_mixtures import add, restore
from .numba_pieces import PIECE, compiled, narrow, room_for, widen


@compiled
def centre(kinds, addresses, trim, divisor, divided, kind, address, count):
    """See `Kernels.centre`. Returns whether the result and all inputs are finite."""
    members = len(kinds)
    values, total = room_for(members, PIECE), room_for(1, PIECE)[0]
    finite = True
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        for k in range(members):
            widen(kinds[k], addresses[k], start, piece, values[k])
            finite &= all_finite(values[k], piece)
        order_rows(values, members, piece)
        least, most = values[trim], values[members - trim - 1]
        total[:piece] = least[:piece]
        for k in range(trim + 1, members - trim):
            add(values[k], total, piece)
        for i in range(piece):
            mean = total[i] / np.float64(members - 2 * trim)
            total[i] = least[i] if least[i] == most[i] else mean
        _divide_first(total, divisor, divided - start, piece)
        finite &= narrow(kind, total, piece, address, start)
    return finite


@compiled
def near(kinds, addresses, origin_kind, origin, reach, divisor, divided, kind, address, count):
    """See `Kernels.near`. Returns whether the result and all inputs are finite."""
    room = room_for(2, PIECE)
    values, base = room[0], room[1]
    finite = True
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        widen(kinds[0], addresses[0], start, piece, values)
        widen(origin_kind, origin, start, piece, base)
        finite &= all_finite(values, piece) & all_finite(base, piece)
        for i in range(piece):
            delta = values[i] - base[i]
            share = min(reach / max(abs(delta), 1e-6), 1.0)
            moved = values[i] if share == 1.0 else base[i] + share * delta
            values[i] = base[i] if delta == 0.0 else moved
        _divide_first(values, divisor, divided - start, piece)
        finite &= narrow(kind, values, piece, address, start)
    return finite


@compiled
def fisher_mean(
    kinds, addresses, fisher_kinds, fisher_addresses, weight, plain, norms, floor, normalize,
    divisor, divided, kind, address, count,
):  # fmt: skip
    """See `Kernels.fisher_mean`; `plain` is the weight over its sum.

    Returns:
        whether the result and all Fishers are finite.
    """
    members = len(kinds)
    room, pulls = room_for(4, PIECE), room_for(members, PIECE)
    values, total, sums, spare = room[0], room[1], room[2], room[3]
    low, differ = np.empty(PIECE, np.bool_), np.empty(PIECE, np.bool_)
    finite = True
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        low[:piece] = True
        sums[:piece] = 0.0
        for k in range(members):
            widen(fisher_kinds[k], fisher_addresses[k], start, piece, values)
            finite &= all_finite(values, piece)
            for i in range(piece):
                relative = values[i] / norms[k]
                low[i] &= relative <= floor
                pull = max(relative, floor) * weight[k]
                pulls[k, i] = pull if normalize else pull * norms[k]
            add(pulls[k], sums, piece)
        for i in range(piece):
            low[i] |= sums[i] == 0.0
        for k in range(members):
            widen(kinds[k], addresses[k], start, piece, values)
            for i in range(piece):
                values[i] *= plain[k] if low[i] else pulls[k, i] / sums[i]
            if k == 0:
                total[:piece] = values[:piece]
            else:
                add(values, total, piece)
        differ[:piece] = False
        restore(kinds, addresses, start, piece, True, differ, values, spare, total)
        _divide_first(total, divisor, divided - start, piece)
        finite &= narrow(kind, total, piece, address, start)
    return finite


@compiled
def _divide_first(values, divisor, divided, count):
    for i in range(min(count, divided)):
        values[i] /= divisor


@compiled
def ranked(kind, address, origin_kind, origin, key, first, row, lowest, highest, count, mask):
    """What `RankedDraw` keeps of a member, in whole rows; what is no number ranks as infinity."""
    sizes, base = np.empty(row), np.empty(row)
    one = np.empty(1, np.bool_)
    for start in range(0, count, row):
        widen(kind, address, start, row, sizes)
        widen(origin_kind, origin, start, row, base)
        for i in range(row):
            size = abs(sizes[i] - base[i])
            sizes[i] = np.inf if np.isnan(size) else size
        ordered = np.sort(sizes)
        below = np.searchsorted(ordered, sizes, side="left")
        to = np.searchsorted(ordered, sizes, side="right")
        for i in range(row):
            rank = np.float64(below[i] + to[i] - 1) / 2.0
            part = rank / np.float64(row - 1) if row > 1 else 0.5
            draw(key, first + start + i, lowest + part * (highest - lowest), one, 1)
            mask[start + i] = one[0]


@compiled
def is_finite(kind, address, count):
    """See `Kernels.is_finite`."""
    values = np.empty(PIECE)
    for start in range(0, count, PIECE):
        piece = min(PIECE, count - start)
        widen(kind, address, start, piece, values)
        if not all_finite(values, piece):
            return False
    return True
