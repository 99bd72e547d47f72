"""The elementwise merge methods, in float64 NumPy: what results of the package are tested against.

Written from the definitions in docs/methods.md and from the papers named below, not from the
package: whole tensors, one step of a definition after the other, nothing streamed and nothing
merged into one pass. Slow and plain on purpose.

`members` is one tensor of each of the K members, `base` the same tensor of the base: float64 arrays
of one common shape. `weights`, `densities` and their like are K numbers. Every method returns a new
float64 array of that shape. `d_k = x_k - b` is member k's delta.

Rounding is part of no definition. Sums over members are taken in their order, a quotient after its
sum, `lambda` after that and the base last, as the formulas are written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from reference import Array, _deltas, _l1_ratio, keep_largest

Mask = NDArray[np.bool_]

# --- random draws: DARE and DELLA ---------------------------------------------------------


def dare(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    densities: Sequence[float],
    seed: int,
    tensor: str,
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool | Literal["exact"] = True,
    vote: bool = False,
) -> Array:
    """DARE: drop elements of every delta at random, make the others larger, and combine.

    Element i of delta k is kept when U(seed, tensor, k, i) < density_k, i counting in C order.
    `rescale="exact"` multiplies what is kept by 1 / density_k, `True` by the L1 norm of the delta
    before over after (by 1 where nothing but zeros is kept). Then `combine`, times lambda, plus b.
    Draws may drop all of a tensor; a density of 0 always does. The result is then the base.
    Source: Yu et al. 2023, arXiv 2311.03099, for the draws and "exact"; docs/methods.md.
    """
    masks, kept = [], []
    for k, (delta, density) in enumerate(zip(_deltas(members, base), densities, strict=True)):
        draws = uniform(seed, tensor, k, delta.size).reshape(delta.shape)
        mask = draws < density
        masks.append(mask)
        if rescale == "exact":
            # A density of 0 keeps no element that could be divided by it.
            kept.append(np.where(mask, delta, 0.0) / (density or 1.0))
        else:
            kept.append(_trimmed(delta, mask, rescale))
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
    rescale: bool = True,
    vote: bool = True,
) -> Array:
    """DELLA: as `dare`, but large elements of a delta are kept more often than small ones.

    Element i of delta k is kept when U(seed, tensor, k, i) < p_i, see `della_probabilities`.
    `rescale` is by the L1 norm of the whole delta before over after.
    Source: Deep et al. 2024, arXiv 2406.11617, for the idea; docs/methods.md for the probabilities.
    """
    masks, kept = [], []
    for k, delta in enumerate(_deltas(members, base)):
        draws = uniform(seed, tensor, k, delta.size).reshape(delta.shape)
        mask = draws < della_probabilities(delta, densities[k], epsilons[k])
        masks.append(mask)
        kept.append(_trimmed(delta, mask, rescale))
    return base + lam * combine(kept, masks, weights, normalize, vote)


def della_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """With what probability DELLA keeps each element of `delta`; same shape.

    The n elements of a row have ranks 0 (the least magnitude) to n - 1 (the largest), and equal
    magnitudes the mean of their ranks: as many below, plus half of its other equals. The
    probability is linear in the rank, from low = max(density - epsilon, 0) at rank 0 to
    high = min(density + epsilon, 1) at rank n - 1: p = low + (high - low) * rank / (n - 1).
    A row of one is all ties and gets what any row of ties gets, the middle of low and high.
    A row runs along the last dimension; a scalar is a row of one. Source: docs/methods.md.
    """
    low, high = max(density - epsilon, 0.0), min(density + epsilon, 1.0)
    probabilities = np.empty_like(delta)
    for index in np.ndindex(delta.shape[:-1]):
        row = np.abs(delta[index]).reshape(-1)
        if len(row) == 1:
            share = np.array([0.5])
        else:
            ordered = np.sort(row)
            below = np.searchsorted(ordered, row, side="left")
            others_equal = np.searchsorted(ordered, row, side="right") - below - 1
            share = (below + others_equal / 2.0) / (len(row) - 1)
        probabilities[index] = (low + (high - low) * share).reshape(probabilities[index].shape)
    return probabilities


# --- Breadcrumbs --------------------------------------------------------------------------


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
    """Model Breadcrumbs: leave out each delta's outliers and its small elements, and combine.

    See `keep_between` for what is kept and `combine` for the rest; `rescale` is by the L1 norm of
    the delta before over after. Source: Davari and Belilovsky 2023, arXiv 2312.06795;
    docs/methods.md for the counts.
    """
    masks, kept = [], []
    for delta, density, gamma in zip(_deltas(members, base), densities, gammas, strict=True):
        mask = keep_between(delta, density, gamma)
        masks.append(mask)
        kept.append(_trimmed(delta, mask, rescale))
    return base + lam * combine(kept, masks, weights, normalize, vote)


def keep_between(delta: Array, density: float, gamma: float) -> Mask:
    """True for the k = floor(density n) largest magnitudes after the floor(gamma n) largest.

    k is at least 1 and at least one element is left over by gamma, so that nothing is wiped out;
    where fewer than k are left, all that is left is kept. What ties with the first or the last kept
    magnitude is kept as well. Products are taken in float64 before their floor.
    """
    if delta.size == 0:
        return np.zeros(delta.shape, dtype=bool)
    magnitudes = np.abs(delta)
    descending = np.sort(magnitudes, axis=None)[::-1]
    dropped = min(math.floor(gamma * delta.size), delta.size - 1)
    band = descending[dropped : dropped + max(1, math.floor(density * delta.size))]
    return np.asarray((magnitudes <= band[0]) & (magnitudes >= band[-1]))


# --- SCE ----------------------------------------------------------------------------------


def sce(
    members: Sequence[Array],
    base: Array,
    select_topk: float = 1.0,
    lam: float = 1.0,
    normalize: bool = False,
    weights: Sequence[float] | None = None,
) -> Array:
    """SCE: select the elements that differ most, calculate weights, erase the minority's sign.

    Select: the floor(select_topk n) elements, at least one, whose variance across the members is
    largest, with all that tie. Calculate: w_k = mean(d_k^2) over what is selected, divided by the
    sum of the members' means; all zero where no delta is left; times the recipe's `weights` (1 by
    default), without dividing by a sum again. Erase: `combine` by vote. Times lambda, plus b.
    Source: Wan et al. 2024, arXiv 2408.07990 (FuseChat); docs/methods.md.
    """
    deltas = _deltas(members, base)
    selected = keep_largest(_variance(deltas), select_topk)
    kept = [np.where(selected, delta, 0.0) for delta in deltas]
    # All means are over the same number of elements, which cancels.
    squares = [float(np.sum(delta * delta)) for delta in kept]
    shares = [square / (sum(squares) or 1.0) for square in squares]
    factors = [1.0] * len(members) if weights is None else weights
    products = [factor * share for factor, share in zip(factors, shares, strict=True)]
    return base + lam * combine(kept, [selected] * len(kept), products, normalize, vote=True)


def _variance(arrays: Sequence[Array]) -> Array:
    """The variance of each element across `arrays`, times K^2: a number to compare, not to use.

    K^2 var = sum over the pairs i < j of (x_i - x_j)^2. Unlike deviations from a rounded mean this
    is 0 where all are equal. The squares are added from the least: elements with the same values in
    other order, shifted by an exact amount or negated tie exactly, as their variances do.
    """
    squares = [(one - other) ** 2 for one, other in combinations(arrays, 2)]
    total = np.zeros_like(arrays[0])
    for square in np.sort(np.array(squares), axis=0) if squares else []:
        total = total + square
    return total


# --- robust centres -----------------------------------------------------------------------


def median(members: Sequence[Array]) -> Array:
    """The middle of the members' values, element by element; of an even K the middle two's mean."""
    values = np.sort(np.stack(members), axis=0)
    count = len(members)
    return np.asarray((values[(count - 1) // 2] + values[count // 2]) / 2.0)


def trimmed_mean(members: Sequence[Array], trim: float = 0.2) -> Array:
    """The mean of each element without the floor(trim K) smallest and as many largest values.

    The middle value of an odd number, or the middle two of an even one, always stay, so that
    `trim` 0.5 gives the median.
    """
    values = np.sort(np.stack(members), axis=0)
    count = len(members)
    cut = min(math.floor(trim * count), (count - 1) // 2)
    return np.asarray(np.sum(values[cut : count - cut], axis=0) / (count - 2 * cut))


# --- the base and one member --------------------------------------------------------------


def nearswap(member: Array, base: Array, t: float) -> Array:
    """b + clip(t / abs(d), 0, 1) d with abs(d) at least 1e-6: every element moves by t at most.

    Source: docs/methods.md.
    """
    delta = member - base
    share = np.clip(t / np.maximum(np.abs(delta), 1e-6), 0.0, 1.0)
    return base + share * delta


def arcee_fusion(member: Array, base: Array) -> Array:
    """The base, plus those elements of the delta whose importance stands out in the tensor.

    The importance of an element is abs(d) times the divergence of its row from the base's, see
    `_divergence`. Kept is what is at least median + 1.5 (upper - lower quartile) of all importances
    of the tensor; quantiles are interpolated linearly. A row runs along the last dimension; a
    scalar is a row of one, diverges by 0 and is kept, being no less than the threshold, 0.
    Source: docs/methods.md.
    """
    if base.size == 0:
        return base.copy()
    delta = member - base
    importance = np.empty_like(delta)
    for index in np.ndindex(delta.shape[:-1]):
        importance[index] = np.abs(delta[index]) * _divergence(member[index], base[index])
    lower, middle, upper = np.quantile(importance, [0.25, 0.5, 0.75], method="linear")
    outstanding = importance >= middle + 1.5 * (upper - lower)
    return base + np.where(outstanding, delta, 0.0)


def _divergence(member: Array, base: Array) -> float:
    """sum p log(p / q), p and q the softmax of the two rows plus 1e-8.

    p and q have the same sum, so sum p log(p / q) = sum (p log(p / q) - (p - q)), whose terms are
    never negative. The plain sum cancels to (p - q)^2 / 2q: where a row moves by 1e-7, float64
    leaves no digit of it.
    """
    p, q = _softmax(member) + 1e-8, _softmax(base) + 1e-8
    return float(np.sum(p * np.log1p((p - q) / q) - (p - q)))


def _softmax(row: Array) -> Array:
    """exp(x) over its sum; the largest is subtracted first, which cancels."""
    powers = np.exp(row - np.max(row))
    return np.asarray(powers / np.sum(powers))


# --- RAM ----------------------------------------------------------------------------------


def ram(members: Sequence[Array], base: Array, epsilon: float = 1e-5) -> Array:
    """RAM: what one member alone has changed, whole; what several have, their mean.

    A member has an element when abs(d) > epsilon. Plus the base; where no member has the element,
    the base. Source: docs/methods.md.
    """
    return ramplus_tl(members, base, epsilon, r=0.0)


def ramplus_tl(
    members: Sequence[Array],
    base: Array,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> Array:
    """RAM with each member's lone elements enlarged by 1 + r min(rho_k, alpha).

    rho_k is the number of elements that member k shares with some other member over the number
    that it has alone, in this tensor. Shared elements are averaged as in `ram`.
    Source: docs/methods.md.
    """
    deltas = _deltas(members, base)
    has = [np.abs(delta) > epsilon for delta in deltas]
    owners = np.sum(np.stack(has), axis=0)
    merged = np.zeros_like(base)
    for delta, own in zip(deltas, has, strict=True):
        merged = merged + np.where(own, delta, 0.0)
    merged = np.where(owners > 1, merged / np.maximum(owners, 1), merged)
    for own in has:
        alone = own & (owners == 1)
        lone_count, shared_count = np.count_nonzero(alone), np.count_nonzero(own & (owners > 1))
        if lone_count:  # without any there is nothing to enlarge
            factor = 1.0 + r * min(shared_count / lone_count, alpha)
            merged = np.where(alone, factor * merged, merged)
    return base + merged


# --- parts --------------------------------------------------------------------------------


def combine(
    kept: Sequence[Array],
    masks: Sequence[Mask],
    weights: Sequence[float],
    normalize: bool,
    vote: bool,
) -> Array:
    """One delta out of what is kept of K, element by element, before lambda and the base.

    `kept` are the deltas, 0 where their mask is not. Sum: sum_k w_k d_k; `normalize` divides by the
    sum of the weights of the members that keep the element. Sign consensus (`vote`): the sign s of
    an element is that of sum_k w_k d_k, + where this is 0; only the members for which w_k d_k has
    the sign s count, in the sum and in the divisor. A kept zero has neither sign and never counts,
    as in the TIES paper, whose sgn(0) is 0. Where the divisor is exactly 0 nothing is divided.
    Source: Yadav et al. 2023, arXiv 2306.01708, for the consensus; docs/methods.md.
    """
    weighted = [weight * delta for weight, delta in zip(weights, kept, strict=True)]
    counts = list(masks)
    if vote:
        total = np.zeros_like(kept[0])
        for delta in weighted:
            total = total + delta
        positive = total >= 0.0
        counts = [
            mask & np.where(positive, delta > 0.0, delta < 0.0)
            for mask, delta in zip(masks, weighted, strict=True)
        ]
    summed, divisor = np.zeros_like(kept[0]), np.zeros_like(kept[0])
    for delta, count, weight in zip(weighted, counts, weights, strict=True):
        summed = summed + np.where(count, delta, 0.0)
        divisor = divisor + np.where(count, weight, 0.0)
    if not normalize:
        return summed
    return np.asarray(summed / np.where(divisor == 0.0, 1.0, divisor))


def _trimmed(delta: Array, mask: Mask, rescale: bool) -> Array:
    """The delta where the mask is, else 0; `rescale`: times the L1 norm before over after."""
    trimmed = np.where(mask, delta, 0.0)
    return trimmed * _l1_ratio(delta, trimmed) if rescale else trimmed


def uniform(seed: int, tensor: str, member: int, count: int) -> Array:
    """U(seed, tensor, member, i) for i = 0 .. count - 1: float64 in [0, 1), multiples of 2^-53.

    The key is the 8-byte BLAKE2b hash, read as a little-endian number, of the UTF-8 text of seed,
    member and tensor with a zero byte between each two; member counts from 0. The draws are the
    upper 53 bits of the outputs of SplitMix64 with that key as its seed.
    Source: the package's documented derivation, mergekit_embed/kernels/draw.py.
    """
    text = b"\0".join([str(seed).encode(), str(member).encode(), tensor.encode()])
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return np.array([(z >> 11) * 2.0**-53 for z in splitmix64(key, count)], dtype=np.float64)


def splitmix64(key: int, count: int) -> list[int]:
    """The first `count` outputs of SplitMix64 seeded with `key`, unsigned 64-bit numbers.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; constants
    and form are those of Vigna's public-domain splitmix64.c.
    """
    outputs = []
    state = key
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs
