"""The merge methods that decide element by element, again, in float64 NumPy.

As in `reference`: each function is the definition of its method on whole tensors, slow and plain on
purpose. `members` is one tensor of each of the K members, `base` the same tensor of the base:
float64 arrays of one common shape. Every method returns a new float64 array of that shape.
Weights, densities, epsilons and gammas are K numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from reference import Array, _deltas, _l1_ratio, _vector_by_vector, keep_largest

Mask = NDArray[np.bool_]
Rescale = bool | Literal["exact"]


# --- sparse deltas, summed or voted on --------------------------------------------------


def dare(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    densities: Sequence[float],
    seed: int,
    tensor: str,
    lam: float = 1.0,
    normalize: bool = False,
    rescale: Rescale = True,
    vote: bool = False,
) -> Array:
    """DARE: keep each element of delta k where its random number is below density k.

    Kept deltas are rescaled: True, by the L1 norm before over the L1 norm after; "exact", by
    1 / density. Then summed (dare_linear), or with `vote` by sign consensus (dare_ties).
    Source: Yu et al. 2024, arXiv 2311.03099; the ratio of L1 norms is mergekit's.
    """
    deltas = _deltas(members, base)
    chances = [np.full(base.shape, density) for density in densities]
    masks = [_below(chance, seed, tensor, k) for k, chance in enumerate(chances)]
    kept = [
        _rescaled(delta, mask, chance, rescale)
        for delta, mask, chance in zip(deltas, masks, chances, strict=True)
    ]
    return base + lam * combine(kept, masks, weights, normalize, vote)


def della(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    seed: int,
    tensor: str,
    lam: float = 1.0,
    normalize: bool = True,
    rescale: Rescale = True,
    vote: bool = True,
) -> Array:
    """DELLA: DARE, the probability to keep an element growing with its rank in its row.

    See `della_probabilities`. `rescale`: True, by the L1 norm of the tensor before over after;
    "exact", each element by 1 / its own probability. Summed (della_linear), or with `vote` by sign
    consensus (della). Source: Deep et al. 2024, arXiv 2406.11617.
    """
    deltas = _deltas(members, base)
    chances = [
        della_probabilities(delta, density, epsilon)
        for delta, density, epsilon in zip(deltas, densities, epsilons, strict=True)
    ]
    masks = [_below(chance, seed, tensor, k) for k, chance in enumerate(chances)]
    kept = [
        _rescaled(delta, mask, chance, rescale)
        for delta, mask, chance in zip(deltas, masks, chances, strict=True)
    ]
    return base + lam * combine(kept, masks, weights, normalize, vote)


def della_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """The probability with which DELLA keeps each element, by the rank of abs(delta) in its row.

    Linear in the rank from density - epsilon (smallest) to density + epsilon (largest), these ends
    clipped to [0, 1] first. A row runs along the last dimension. Equal magnitudes share the mean of
    their ranks; a row of one element gets the middle.
    """
    low = min(max(density - epsilon, 0.0), 1.0)
    high = min(max(density + epsilon, 0.0), 1.0)

    def of_row(rows: Sequence[Array]) -> Array:
        magnitudes = np.abs(rows[0])
        if magnitudes.size <= 1:
            return np.full(magnitudes.shape, (low + high) / 2.0)
        ordered = np.sort(magnitudes)
        first = np.searchsorted(ordered, magnitudes, side="left")
        last = np.searchsorted(ordered, magnitudes, side="right") - 1
        rank = (first + last) / 2.0  # from 0 to size - 1
        return low + (high - low) * rank / (magnitudes.size - 1)

    return _vector_by_vector(of_row, [delta], whole=False)


def breadcrumbs(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    vote: bool = False,
) -> Array:
    """Model Breadcrumbs: keep neither the largest elements of a delta nor the smallest.

    See `keep_between`. `rescale` multiplies what is kept by the L1 norm before over after. Summed
    (breadcrumbs), or with `vote` by sign consensus (breadcrumbs_ties).
    Source: Davari and Belilovsky 2023, arXiv 2312.06795.
    """
    deltas = _deltas(members, base)
    masks = [
        keep_between(delta, density, gamma)
        for delta, density, gamma in zip(deltas, densities, gammas, strict=True)
    ]
    kept = [
        _rescaled(delta, mask, np.ones_like(delta), rescale)
        for delta, mask in zip(deltas, masks, strict=True)
    ]
    return base + lam * combine(kept, masks, weights, normalize, vote)


def keep_between(delta: Array, density: float, gamma: float) -> Mask:
    """Drop the floor(gamma * n) largest magnitudes, keep the next floor(density * n).

    At most n - 1 are dropped and at least one is kept; fewer than floor(density * n) where no more
    are left. What equals the smallest or the largest magnitude kept is kept as well.
    """
    count = delta.size
    if count == 0:
        return np.zeros(delta.shape, dtype=bool)
    dropped = min(math.floor(gamma * count), count - 1)
    wanted = max(1, math.floor(density * count))
    magnitudes = np.abs(delta)
    window = np.sort(magnitudes, axis=None)[::-1][dropped : dropped + wanted]
    return np.asarray((magnitudes >= window[-1]) & (magnitudes <= window[0]))


def sce(
    members: Sequence[Array],
    base: Array,
    select_topk: float = 1.0,
    lam: float = 1.0,
    normalize: bool = False,
) -> Array:
    """SCE: select the elements that vary most across the members, calculate weights, elect signs.

    Select: the floor(select_topk * n) largest variances (at least one; ties are all kept) of the
    deltas, the variance being the mean of the squared deviations. Calculate: w_k = sum of the
    squares of what is selected of delta k, over the sum of these of all members; all equal where
    that is zero. Erase: sign consensus with these weights. Source: Wan et al. 2024,
    arXiv 2408.07990.
    """
    deltas = _deltas(members, base)
    # A common shift leaves a variance as it is; by this one that of equal deltas is exactly 0.
    shifted = [delta - deltas[0] for delta in deltas]
    variance = _mean([(delta - _mean(shifted)) ** 2 for delta in shifted])
    mask = keep_largest(variance, select_topk)
    selected = [np.where(mask, delta, 0.0) for delta in deltas]
    squares = [float(np.sum(delta * delta)) for delta in selected]
    total = math.fsum(squares)
    weights = [s / total for s in squares] if total > 0.0 else [1.0 / len(deltas)] * len(deltas)
    return base + lam * combine(selected, [mask] * len(deltas), weights, normalize, vote=True)


# --- robust centres ---------------------------------------------------------------------


def median(members: Sequence[Array]) -> Array:
    """The middle value of the members, element by element; the mean of the two of an even K."""
    return np.asarray(np.median(np.stack(members), axis=0))


def trimmed_mean(members: Sequence[Array], trim: float = 0.2) -> Array:
    """The mean without the floor(trim * K) smallest and largest values, element by element.

    The middle value of an odd K, the middle two of an even K, are never trimmed.
    """
    count = len(members)
    cut = min(math.floor(trim * count), (count - 1) // 2)
    return np.asarray(np.mean(np.sort(np.stack(members), axis=0)[cut : count - cut], axis=0))


# --- one member and the base ------------------------------------------------------------


def nearswap(member: Array, base: Array, t: float) -> Array:
    """b + clip(t / abs(d), 0, 1) * d, abs(d) being 1e-6 at least: the member where it is near.

    Source: mergekit's `nearswap`, after alchemonaut's.
    """
    delta = member - base
    return base + np.clip(t / np.maximum(np.abs(delta), 1e-6), 0.0, 1.0) * delta


def arcee_fusion(member: Array, base: Array) -> Array:
    """Take the elements of outstanding importance from the member, the others from the base.

    Importance: abs(d) * sum(p log(p / q)) over the row, p and q being the softmax of the member's
    and of the base's row plus 1e-8; a row runs along the last dimension. Outstanding: at least the
    median + 1.5 * (upper quartile - lower quartile) of the tensor, linearly interpolated.
    Source: mergekit's `arcee_fusion`.
    """
    if base.size == 0:
        return base.copy()

    def importance_of_row(rows: Sequence[Array]) -> Array:
        x, b = rows
        p, q = _softmax(x) + 1e-8, _softmax(b) + 1e-8
        return np.abs(x - b) * np.sum(p * np.log(p / q))

    importance = _vector_by_vector(importance_of_row, [member, base], whole=False)
    lower, middle, upper = np.quantile(importance, [0.25, 0.5, 0.75], method="linear")
    outstanding = importance >= middle + 1.5 * (upper - lower)
    return base + np.where(outstanding, member - base, 0.0)


# --- unique and shared changes ----------------------------------------------------------


def ram(members: Sequence[Array], base: Array, epsilon: float = 1e-5) -> Array:
    """RAM: an element only one member changed is that change, of shared ones the mean.

    Member k has an element where abs(d_k) > epsilon. The mean is over those that have it. Elements
    nobody has are the base. Source: arXiv 2601.13572.
    """
    return ramplus_tl(members, base, epsilon, r=0.0)


def ramplus_tl(
    members: Sequence[Array],
    base: Array,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> Array:
    """RAM, the elements only member k has times 1 + r * min(rho_k, alpha).

    rho_k = how many elements member k shares with others / how many it has alone, in this tensor;
    0 where it has none alone. Source: arXiv 2601.13572, per tensor.
    """
    deltas = _deltas(members, base)
    has = [np.abs(delta) > epsilon for delta in deltas]
    owners = np.sum(has, axis=0)
    merged = np.zeros_like(base)
    for delta, mine in zip(deltas, has, strict=True):
        alone, shared = mine & (owners == 1), mine & (owners > 1)
        unique = int(np.count_nonzero(alone))
        rho = int(np.count_nonzero(shared)) / unique if unique > 0 else 0.0
        merged = merged + np.where(alone, (1.0 + r * min(rho, alpha)) * delta, 0.0)
        merged = merged + np.where(shared, delta / np.maximum(owners, 1), 0.0)
    return base + merged


# --- parts ------------------------------------------------------------------------------


def combine(
    kept: Sequence[Array],
    masks: Sequence[Mask],
    weights: Sequence[float],
    normalize: bool,
    vote: bool,
) -> Array:
    """sum_k w_k d_k over the members that keep an element, or with `vote` those of the agreed sign.

    `kept` are the deltas, zero outside their masks. The agreed sign is that of sum_k w_k d_k, zero
    counting as +; a member agrees where its w_k d_k has that sign, so nowhere it is zero.
    `normalize` divides by sum w of the members that were added up, unless that is exactly 0.
    """
    weighted = [weight * delta for weight, delta in zip(weights, kept, strict=True)]
    counted = [np.asarray(mask) for mask in masks]
    if vote:
        agreed = np.where(sum(weighted) < 0.0, -1.0, 1.0)
        counted = [np.asarray(np.sign(delta) == agreed) for delta in weighted]
    summed = np.zeros_like(kept[0])
    divisor = np.zeros_like(kept[0])
    for weight, delta, takes_part in zip(weights, weighted, counted, strict=True):
        summed = summed + np.where(takes_part, delta, 0.0)
        divisor = divisor + np.where(takes_part, weight, 0.0)
    if normalize:
        summed = summed / np.where(divisor == 0.0, 1.0, divisor)
    return summed


def uniform(seed: int, tensor: str, member: int, count: int) -> Array:
    """`count` numbers in [0, 1): element i depends on seed, tensor name, member number and i alone.

    SplitMix64 in counter mode, its key the 8-byte BLAKE2b digest of "seed NUL member NUL tensor"
    read as a little-endian integer. Source: Steele, Lea and Flood 2014.
    """
    text = f"{seed}\0{member}\0{tensor}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return np.array([(z >> 11) / 2.0**53 for z in splitmix64(key, count)], dtype=np.float64)


def splitmix64(key: int, count: int) -> list[int]:
    """The first `count` outputs of SplitMix64 whose state is `key`: 64-bit unsigned integers."""
    below = 2**64
    outputs = []
    for i in range(count):
        z = (key + (i + 1) * 0x9E3779B97F4A7C15) % below
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % below
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % below
        outputs.append(z ^ (z >> 31))
    return outputs


def _below(chance: Array, seed: int, tensor: str, member: int) -> Mask:
    """True where the random number of an element is below its `chance`."""
    numbers = uniform(seed, tensor, member, chance.size).reshape(chance.shape)
    return np.asarray(numbers < chance)


def _rescaled(delta: Array, mask: Mask, chance: Array, rescale: Rescale) -> Array:
    """`delta` where `mask`, zero elsewhere, rescaled as told; kept elements have a chance > 0."""
    kept = np.where(mask, delta, 0.0)
    if rescale == "exact":
        return kept / np.where(mask, chance, 1.0)
    return kept * _l1_ratio(delta, kept) if rescale else kept


def _mean(arrays: Sequence[Array]) -> Array:
    return np.asarray(np.mean(np.stack(arrays), axis=0))


def _softmax(row: Array) -> Array:
    powers = np.exp(row - np.max(row))
    return np.asarray(powers / np.sum(powers))
