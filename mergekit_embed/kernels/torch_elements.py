"""Elementwise pieces of the torch kernels: measures, masks, and how kept elements come together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import Band, Combine, Draw, Importance, Keep, Magnitude, Measure, RankedDraw
from .draw import GAMMA, LAST_SHIFT, MIX, signed

PAIR_ELEMENTS = 2**21
"""Most differences of pairs of members that are at hand at once."""


def halved(terms: Tensor) -> Tensor:
    """Sum over the last dimension but one: padded to a power of two and halved to one number."""
    while (length := terms.shape[-2]) > 1:
        half = 1 << (length - 1).bit_length() - 1
        upper = terms[..., half:, :]
        if length == 2 * half:
            terms = terms[..., :half, :] + upper
        else:
            lower = terms[..., :half, :].clone()
            lower[..., : length - half, :] += upper
            terms = lower
    return terms.squeeze(-2)


def measure_of(vectors: Sequence[Tensor], origin: Tensor, measure: Measure) -> Tensor:
    """The measure of every element, float64 (n,), never negative: what is no number is the largest.

    Without the sign that a difference of infinities has, its bit pattern is above all others.
    """
    base = origin.double()
    if isinstance(measure, Magnitude):
        return (vectors[measure.member].double() - base).abs_()
    if isinstance(measure, Importance):
        return _importance(vectors[0].double(), base, measure.row).abs_()
    return _variance([vector.double() for vector in vectors]).abs_()


def _variance(members: Sequence[Tensor]) -> Tensor:
    """Sums of squared differences of all pairs, over K^2, the least first.

    Deviations from a rounded mean would break ties of equal variances by the order of the members.
    """
    count = len(members)
    spread = torch.zeros_like(members[0])
    if count == 1:
        return spread
    step = max(1, PAIR_ELEMENTS // (count * (count - 1) // 2))
    for start in range(0, len(spread), step):
        part = [member[start : start + step] for member in members]
        pairs = [(left - right) ** 2 for left, right in itertools.combinations(part, 2)]
        total = spread[start : start + step]
        for squares in torch.stack(pairs).sort(dim=0).values:
            total += squares
    return spread / torch.full_like(spread, count**2)  # a tensor: see `TorchKernels.centre`


def _importance(member: Tensor, base: Tensor, row: int) -> Tensor:
    ours = torch.softmax(member.reshape(-1, row), dim=1) + 1e-8
    theirs = torch.softmax(base.reshape(-1, row), dim=1) + 1e-8
    # p and q have one sum, so p log(p / q) - (p - q) adds up to the same, and no term is negative:
    # of rows that are nearly alike, p log(p / q) would leave nothing but rounding.
    change = ours - theirs
    terms = ours * (change / theirs).log1p() - change
    divergence = halved(terms.T[None])[0]
    size = (member - base).abs_().reshape(-1, row)
    importance: Tensor = size * divergence.clamp(min=0.0)[:, None]
    return importance.reshape(-1)


def masks_of(vectors: Sequence[Tensor], origin: Tensor, keeps: Sequence[Keep]) -> Tensor:
    """What each member keeps: bool (K, n)."""
    found: dict[Measure, Tensor] = {}
    masks = []
    for index, keep in enumerate(keeps):
        if isinstance(keep, Band):
            if keep.measure not in found:
                found = {keep.measure: measure_of(vectors, origin, keep.measure)}
            value = found[keep.measure]
            masks.append((value >= keep.low) & (value <= keep.high))
        elif isinstance(keep, Draw):
            masks.append(uniform(keep.key, keep.start, len(origin), origin) < keep.probability)
        else:
            chance = _ranked_chance(vectors[index].double() - origin.double(), keep)
            masks.append(uniform(keep.key, keep.start, len(origin), origin) < chance)
    return torch.stack(masks)


def uniform(key: int, start: int, count: int, like: Tensor) -> Tensor:
    """`uniform(key, i)` of draw.py for `i` from `start` on: float64 (count,)."""
    index = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=like.device)
    bits = index * signed(GAMMA) + signed(key)
    for shift, factor in MIX:
        bits = (bits ^ _shifted(bits, shift)) * signed(factor)
    bits = bits ^ _shifted(bits, LAST_SHIFT)
    drawn: Tensor = _shifted(bits, 11).double() * 2.0**-53
    return drawn


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def _ranked_chance(delta: Tensor, keep: RankedDraw) -> Tensor:
    """The probability of each element by the rank of its magnitude in its row.

    What is no number has no rank of its own, and takes that of infinity.
    """
    size = delta.abs_().reshape(-1, keep.row)
    size = torch.where(size.isnan(), torch.inf, size)
    ordered = size.sort(dim=1).values
    below = torch.searchsorted(ordered, size.contiguous(), right=False)
    to = torch.searchsorted(ordered, size.contiguous(), right=True)
    rank = (below + to - 1).double() / 2
    part = rank / (keep.row - 1) if keep.row > 1 else torch.full_like(rank, 0.5)
    return (keep.lowest + part * (keep.highest - keep.lowest)).reshape(-1)


def combined(deltas: Sequence[Tensor], masks: Tensor, how: Combine) -> Tensor:
    """What comes together of the kept elements, before scale and origin: float64 (n,)."""
    lone = masks.sum(dim=0) == 1 if how.lone_factors is not None else None
    terms = []
    for index, (delta, mask) in enumerate(zip(deltas, masks, strict=True)):
        term = delta
        if how.factors[index] != 1.0:
            term = term * float(how.factors[index])
        if lone is not None and how.lone_factors is not None:
            term = torch.where(lone, term * float(how.lone_factors[index]), term)
        # At last, since a factor may be infinite: what is not kept stays away from it.
        terms.append(torch.where(mask, term * float(how.weight[index]), 0.0))
    counts = masks
    if how.vote:
        election = terms[0].clone()
        for term in terms[1:]:
            election += term
        elected = torch.where(election >= 0, 1.0, -1.0)
        counts = torch.stack([term.sign() == elected for term in terms])
    total = torch.zeros_like(terms[0])
    divisor = torch.zeros_like(terms[0])
    for term, counted, share in zip(terms, counts, how.weight, strict=True):
        total += torch.where(counted, term, 0.0)
        if how.normalize:
            divisor += counted.double() * float(share)
    if how.normalize:
        total /= torch.where(divisor == 0, 1.0, divisor)
    if how.mean:
        total /= masks.sum(dim=0).clamp(min=1)
    return total
