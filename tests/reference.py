"""The merge methods again, in float64 NumPy: what results of the package are tested against.

Each function is the definition of its method, on whole tensors: vectors are normalised, added and
measured, never through a Gram matrix, so that an error in the algebra of the package cannot hide
here as well. Slow and plain on purpose.

`members` is one tensor of each of the K members, `base` the same tensor of the base: float64 arrays
of one common shape. Every method returns a new float64 array of that shape. Weights are K numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A unit-vector sum or a sine this small is zero but for the rounding of what it was computed from.
VANISHES = 1e-8


# --- mixtures ---------------------------------------------------------------------------


def linear(members: Sequence[Array], weights: Sequence[float], normalize: bool = True) -> Array:
    """sum_k w_k x_k, the weights divided by their sum when `normalize`."""
    return _weighted_sum(normalised(weights) if normalize else weights, members)


def task_arithmetic(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    lam: float = 1.0,
    normalize: bool = False,
) -> Array:
    """b + lambda * sum_k w_k d_k, the weights divided by their sum when `normalize`."""
    return base + lam * linear(_deltas(members, base), weights, normalize)


def slerp(a: Array, b: Array, t: float) -> Array:
    """Great-circle interpolation from `a` (t = 0) to `b` (t = 1), on the tensors as they are.

    sin((1-t) angle) / sin(angle) * a + sin(t angle) / sin(angle) * b, the angle being that between
    the whole tensors; linear where abs(cos angle) > 0.9995. A zero tensor stands at a right angle
    to every other one. Source: Shoemake 1985; the threshold is mergekit's.
    """
    if abs(float(np.sum(_unit(a) * _unit(b)))) > 0.9995:
        return (1.0 - t) * a + t * b
    return _along_the_arc(a, b, t)


def nuslerp(
    a: Array,
    b: Array,
    w1: float,
    w2: float,
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    """Slerp with t = w2 / (w1 + w2), of the deltas when there is a base.

    Linear only where the sine of the angle vanishes. `flatten`: the whole tensor is one vector.
    Otherwise every vector along the last dimension, or with `row_wise` along the first, is
    interpolated by itself; a tensor of one dimension is one vector. Source: mergekit's `nuslerp`.
    """
    t = normalised([w1, w2])[1]
    origin = np.zeros_like(a) if base is None else base

    def interpolate(vectors: Sequence[Array]) -> Array:
        return _along_the_arc(vectors[0], vectors[1], t)

    return origin + _vector_by_vector(interpolate, [a - origin, b - origin], flatten, row_wise)


def multislerp(
    members: Sequence[Array], weights: Sequence[float], base: Array | None = None
) -> Array:
    """The members' weighted mean direction at their weighted mean length, around 0 or the base.

    (sum_k w_k n_k) * m / |m| with m = sum_k w_k x_k / n_k and the weights normalised. A zero vector
    adds nothing to the direction (and a length of zero to the mean length). All zero: the origin.
    Directions that cancel: the linear mean. Source: goddard.blog/posts/multislerp, closed form.
    """
    origin = np.zeros_like(members[0]) if base is None else base
    vectors = _deltas(members, origin)
    shares = normalised(weights)
    if all(_length(vector) == 0.0 for vector in vectors):
        return origin.copy()
    direction = _weighted_sum(shares, [_unit(vector) for vector in vectors])
    if _length(direction) < VANISHES:
        return origin + _weighted_sum(shares, vectors)
    mean_length = sum(w * _length(vector) for w, vector in zip(shares, vectors, strict=True))
    return origin + mean_length * _unit(direction)


def karcher(
    members: Sequence[Array], weights: Sequence[float], max_iter: int = 10, tol: float = 1e-5
) -> Array:
    """The weighted Riemannian mean of the unit vectors, times sum_k w_k n_k.

    Fixed point from the normalised weighted mean: T = sum_k w_k log_u(u_k); stop when |T| < tol,
    else u <- cos|T| u + sin|T| T/|T|. A zero vector drops out of the directions (the weights of the
    others are normalised again) and adds a length of zero. A start that vanishes is replaced by the
    first unit vector. A vector opposite to u has no unique logarithm and adds nothing to T.
    Source: Karcher 1977; iteration and defaults are those of mergekit's `karcher`.
    """
    mean_length = sum(w * _length(x) for w, x in zip(normalised(weights), members, strict=True))
    present = [k for k, member in enumerate(members) if _length(member) > 0.0]
    if not present:
        return np.zeros_like(members[0])
    units = [_unit(members[k]) for k in present]
    shares = normalised([weights[k] for k in present])
    start = _weighted_sum(shares, units)
    point = units[0] if _length(start) < VANISHES else _unit(start)
    for _ in range(max_iter):
        tangent = _weighted_sum(shares, [_logarithm(point, unit) for unit in units])
        step = _length(tangent)
        if step < tol:
            break
        point = _unit(math.cos(step) * point + math.sin(step) * tangent / step)
    return mean_length * point


def model_stock(members: Sequence[Array], base: Array, filter_wise: bool = False) -> Array:
    """b + t * (mean delta), t = K cos / (1 + (K-1) cos), cos the deltas' mean pairwise cosine.

    A pair with a zero delta counts as cosine 0. `filter_wise`: every row (vector along the last
    dimension) by itself. Source: Jang et al. 2024, arXiv 2403.19522.
    """
    if len(members) < 2:
        raise ValueError("Model Stock needs two members or more: one has no pair")
    return base + _vector_by_vector(_stock_of_deltas, _deltas(members, base), not filter_wise)


def delta_guided(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    gamma: float = 1.0,
    norm: str = "l2",
    granularity: str = "tensor",
) -> Array:
    """b + sum_k c_k d_k with c_k = w_k n_k^gamma / sum_j w_j n_j^gamma.

    `granularity` says what one n_k measures: the "tensor", each "row" (vector along the last
    dimension) or each "element" of the delta. `norm`: l2, l1, rms, or relative (|d_k| / |b|).
    A zero delta takes no part when gamma < 0; all zero: the base; gamma 0: the weights alone.
    Source: a reading of CoDiEmb's fusion by deviation from the initial weights, as described.
    """
    if granularity == "tensor":
        return delta_guided_grouped([[x] for x in members], [base], weights, gamma, norm)[0]

    def guided(vectors: Sequence[Array]) -> Array:
        *ours, origin = vectors
        return delta_guided(ours, origin, weights, gamma, norm)

    if granularity == "row":
        return _vector_by_vector(guided, [*members, base], whole=False)
    if granularity == "element":
        columns = [x.reshape(-1, 1) for x in [*members, base]]
        return _vector_by_vector(guided, columns, whole=False).reshape(base.shape)
    raise ValueError(f"unknown granularity {granularity!r}")


def delta_guided_grouped(
    members: Sequence[Sequence[Array]],
    base: Sequence[Array],
    weights: Sequence[float],
    gamma: float = 1.0,
    norm: str = "l2",
) -> list[Array]:
    """`delta_guided` with one n_k over all the tensors of a group: a layer, or the whole model.

    members[k][i] is tensor i of member k, base[i] that of the base; returns the tensors merged.
    """
    deltas = [[x - b for x, b in zip(member, base, strict=True)] for member in members]
    norms = [_norm_of_group(delta, base, norm) for delta in deltas]
    shares = _delta_guided_shares(norms, weights, gamma)
    return [b + _weighted_sum(shares, [delta[i] for delta in deltas]) for i, b in enumerate(base)]


def self_positioning(
    members: Sequence[Array], base: Array, weights: Sequence[float], lam: float = 1.0
) -> Array:
    """b + lambda V_(1..K), the deltas joined one after the other by slerp, as one vector each.

    V_(1..n) = slerp(V_(1..n-1), V_n; t = a_n / (mean(a_1..a_(n-1)) + a_n)) of the vectors as they
    are: sin((1-t) angle) / sin(angle) and sin(t angle) / sin(angle), linear where the sine
    vanishes; a zero vector stands at a right angle to every other one.
    Source: arXiv 2410.15035; that lengths are interpolated with the directions is our reading.
    """
    return self_positioning_grouped([[x] for x in members], [base], weights, lam)[0]


def self_positioning_grouped(
    members: Sequence[Sequence[Array]],
    base: Sequence[Array],
    weights: Sequence[float],
    lam: float = 1.0,
) -> list[Array]:
    """`self_positioning` of all the tensors of a layer or a model as one vector.

    members[k][i] is tensor i of member k, base[i] that of the base; returns the tensors merged.
    """
    origin = np.concatenate([b.reshape(-1) for b in base])
    deltas = [np.concatenate([x.reshape(-1) for x in member]) - origin for member in members]
    point = deltas[0]
    for n in range(1, len(deltas)):
        before = sum(weights[:n]) / n
        point = _along_the_arc(point, deltas[n], weights[n] / (before + weights[n]))
    merged = origin + lam * point
    ends = np.cumsum([b.size for b in base])[:-1]
    return [part.reshape(b.shape) for part, b in zip(np.split(merged, ends), base, strict=True)]


def ema(members: Sequence[Array], decay: float) -> Array:
    """Average along a training run, the newest member last: c_k is decay^(K-1-k) over their sum."""
    last = len(members) - 1
    return linear(members, [decay ** (last - k) for k in range(len(members))], normalize=True)


def passthrough(x: Array, scale: float = 1.0) -> Array:
    """The one member, times `scale`."""
    return scale * x


# --- consensus --------------------------------------------------------------------------


def ties(
    members: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    densities: Sequence[float],
    lam: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
) -> Array:
    """TIES: trim every delta, elect a sign for each element, average what agrees with it.

    Trim: of delta k keep the elements at least as large as the floor(density * numel)-th largest
    magnitude (ties at that threshold are all kept); `rescale` multiplies them by the L1 norm before
    over the L1 norm after. Elect: the sign of sum_k w_k d_k over what is kept, zero counting as +.
    Average: over the kept elements whose w_k d_k has that sign, sum w d / sum w when `normalize`
    (not divided where sum w is exactly 0), else sum w d; times lambda; plus the base.
    Source: Yadav et al. 2023, arXiv 2306.01708.
    """
    total = np.zeros_like(base)
    kept = []
    for weight, density, delta in zip(weights, densities, _deltas(members, base), strict=True):
        mask = keep_largest(delta, density)
        trimmed = np.where(mask, delta, 0.0)
        if rescale:
            trimmed = trimmed * _l1_ratio(delta, trimmed)
        kept.append(weight * trimmed)
        total = total + weight * trimmed
    sign = np.where(total < 0.0, -1.0, 1.0)
    summed = np.zeros_like(base)
    divisor = np.zeros_like(base)
    for weight, weighted in zip(weights, kept, strict=True):
        agrees = np.sign(weighted) == sign  # a zero has sign 0: it agrees with nothing
        summed = summed + np.where(agrees, weighted, 0.0)
        divisor = divisor + np.where(agrees, weight, 0.0)
    if normalize:
        summed = summed / np.where(divisor == 0.0, 1.0, divisor)
    return base + lam * summed


def keep_largest(delta: Array, density: float) -> NDArray[np.bool_]:
    """True where abs(delta) is at least its k-th largest value, k = floor(density * numel) >= 1."""
    if delta.size == 0:
        return np.zeros(delta.shape, dtype=bool)
    k = max(1, math.floor(density * delta.size))
    magnitudes = np.abs(delta)
    threshold = np.sort(magnitudes, axis=None)[::-1][k - 1]
    return np.asarray(magnitudes >= threshold)


# --- storage and rounding ---------------------------------------------------------------

# dtype: bits of precision (with the implicit one), exponent of the smallest and the largest normal
FORMATS = {
    "F64": (53, -1022, 1023),
    "F32": (24, -126, 127),
    "F16": (11, -14, 15),
    "BF16": (8, -126, 127),
}

_NUMPY_NAMES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def round_to(array64: Array, dtype: str) -> Array:
    """`array64` rounded once, to nearest even, to the values `dtype` can hold; float64, same shape.

    Too large becomes infinite, subnormals round on their own grid, the sign of zero and NaN stay.
    """
    _, _, largest = FORMATS[dtype]
    array = np.asarray(array64, dtype=np.float64)
    spacing = _exponent_of_ulp(array, dtype)
    finite = np.isfinite(array)
    # A multiplication by a power of two is exact, so rint is the only rounding.
    rounded = np.ldexp(np.rint(np.ldexp(np.where(finite, array, 0.0), -spacing)), spacing)
    if dtype != "F64":
        rounded = np.where(
            np.abs(rounded) >= math.ldexp(1.0, largest + 1), np.copysign(np.inf, array), rounded
        )
    return np.where(finite, rounded, array)


def ulp(array64: Array, dtype: str) -> Array:
    """The distance between neighbouring values of `dtype` at abs(array64); NaN where not finite.

    At zero and among the subnormals it is the smallest subnormal, beyond the largest value that of
    the largest binade.
    """
    array = np.asarray(array64, dtype=np.float64)
    return np.where(np.isfinite(array), np.ldexp(1.0, _exponent_of_ulp(array, dtype)), np.nan)


def check_numerics(ours64: Array, exact64: Array, dtype: str, largest64: Array | float) -> None:
    """Assert that `ours64`, the values stored as `dtype`, are as exact as is promised.

    `exact64` is the float64 result before rounding, `largest64` the largest magnitude among the
    members' and the base's element (or one number for all). At least 99.9 % of the elements must be
    the correctly rounded value (below 1000 elements: all but one), and every element within 1 ulp
    of the exact value or, where terms cancel, within 2^-21 of `largest64`.
    F64 is held to 2^-40 of the larger of the two instead: there the reference has rounded as well.
    """
    ours = np.asarray(ours64, dtype=np.float64)
    exact = np.asarray(exact64, dtype=np.float64)
    assert ours.shape == exact.shape, f"the shape is {ours.shape}, not {exact.shape}"
    largest = np.broadcast_to(np.asarray(largest64, dtype=np.float64), exact.shape)
    expected = round_to(exact, dtype)
    same = (ours == expected) | (np.isnan(ours) & np.isnan(expected))
    stored = (ours == round_to(ours, dtype)) | np.isnan(ours)
    _assert_all(stored, f"not values of {dtype} at all", ours, exact, expected)
    with np.errstate(invalid="ignore"):  # inf - inf: equal infinities are `same`, others fail
        error = np.abs(ours - exact)
    if dtype == "F64":
        close = error <= 2.0**-40 * np.maximum(largest, np.abs(exact))
        _assert_all(same | close, "further than 2^-40 from exact", ours, exact, expected)
        return
    close = (error <= ulp(exact, dtype)) | (error <= 2.0**-21 * largest)
    _assert_all(same | close, "further than 1 ulp from exact", ours, exact, expected)
    wrong = int(np.count_nonzero(~same))
    allowed = max(1, ours.size // 1000)
    if wrong > allowed:
        text = f"not correctly rounded to {dtype} (only {allowed} may be)"
        _assert_all(same, text, ours, exact, expected)


def float64_from_storage(raw: bytes, dtype: str, shape: Sequence[int] | None = None) -> Array:
    """Little-endian bytes of a safetensors float `dtype` as float64, exact; flat if no shape."""
    if dtype == "BF16":  # a bfloat16 is the upper half of a float32
        bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << np.uint32(16)
        values = bits.view(np.float32).astype(np.float64)
    else:
        values = np.frombuffer(raw, dtype=_NUMPY_NAMES[dtype]).astype(np.float64)
    return values.reshape(-1 if shape is None else tuple(shape))


def storage_from_float64(array64: Array, dtype: str) -> bytes:
    """`array64` rounded once to a safetensors float `dtype`, as little-endian bytes in C order."""
    rounded = round_to(np.asarray(array64, dtype=np.float64), dtype)
    if dtype == "BF16":
        bits = np.atleast_1d(rounded).astype("<f4").view("<u4")
        return (bits >> np.uint32(16)).astype("<u2").tobytes()
    return rounded.astype(_NUMPY_NAMES[dtype]).tobytes()


# --- parts ------------------------------------------------------------------------------


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights over their sum; ValueError if they cancel."""
    total = sum(weights)
    if total == 0.0:
        raise ValueError(f"weights cancel: {list(weights)}")
    return [weight / total for weight in weights]


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    total = np.zeros_like(arrays[0])
    for weight, array in zip(weights, arrays, strict=True):
        total = total + weight * array
    return total


def _deltas(members: Sequence[Array], base: Array) -> list[Array]:
    return [member - base for member in members]


def _length(vector: Array) -> float:
    return math.sqrt(float(np.sum(vector * vector)))


def _unit(vector: Array) -> Array:
    """`vector` at length 1; the zero vector stays zero."""
    length = _length(vector)
    return np.zeros_like(vector) if length == 0.0 else vector / length


def _along_the_arc(a: Array, b: Array, t: float) -> Array:
    """The slerp of raw `a` and `b`, linear where the sine of their angle vanishes."""
    u, v = _unit(a), _unit(b)
    # The same angle as arccos(u . v), but exact near 0 and pi as well (Kahan).
    angle = 2.0 * math.atan2(_length(u - v), _length(u + v))
    sine = math.sin(angle)
    if sine < VANISHES:
        return (1.0 - t) * a + t * b
    return math.sin((1.0 - t) * angle) / sine * a + math.sin(t * angle) / sine * b


def _logarithm(point: Array, unit: Array) -> Array:
    """The tangent at unit vector `point` that leads to `unit`; 0 if they are equal or opposite."""
    cosine = float(np.sum(point * unit))
    across = unit - cosine * point
    sine = _length(across)
    if sine < VANISHES:
        return np.zeros_like(point)
    return math.atan2(sine, cosine) * across / sine


def _stock_of_deltas(deltas: Sequence[Array]) -> Array:
    """t * (mean of the deltas), the Model Stock of vectors around 0."""
    count = len(deltas)
    units = [_unit(delta) for delta in deltas]
    pairs = [float(np.sum(units[i] * units[j])) for i in range(count) for j in range(i)]
    cosine = sum(pairs) / len(pairs)
    if 1.0 + (count - 1) * cosine < VANISHES:
        raise ValueError("Model Stock is undefined: the directions of the deltas cancel")
    ratio = count * cosine / (1.0 + (count - 1) * cosine)
    return ratio * _weighted_sum([1.0 / count] * count, deltas)


def _norm_of_group(tensors: Sequence[Array], base: Sequence[Array], norm: str) -> float:
    """One norm over all `tensors`, deltas from the tensors of `base`."""
    if norm == "l1":
        return float(sum(np.sum(np.abs(tensor)) for tensor in tensors))
    length = math.sqrt(sum(_length(tensor) ** 2 for tensor in tensors))
    if norm == "l2":
        return length
    if norm == "rms":
        return length / math.sqrt(max(1, sum(tensor.size for tensor in tensors)))
    if norm == "relative":  # of a zero base: its length is common to all members, and cancels
        return length / (math.sqrt(sum(_length(b) ** 2 for b in base)) or 1.0)
    raise ValueError(f"unknown norm {norm!r}")


def _delta_guided_shares(
    norms: Sequence[float], weights: Sequence[float], gamma: float
) -> list[float]:
    """w_k n_k^gamma over their sum; 0 for zero deltas unless gamma is 0."""
    if gamma == 0.0:
        return normalised(weights)
    longest = max(norms)
    if longest == 0.0:
        return [0.0] * len(norms)
    pairs = zip(weights, norms, strict=True)
    # Over the longest, which cancels: a power of a tiny norm must not leave the range.
    return normalised([w * (n / longest) ** gamma if n > 0.0 else 0.0 for w, n in pairs])


def _vector_by_vector(
    function: Callable[[Sequence[Array]], Array],
    arrays: Sequence[Array],
    whole: bool,
    first_dimension: bool = False,
) -> Array:
    """`function` of the corresponding vectors of `arrays`, put together in their shape.

    `whole`, or one dimension at most: the tensor is one vector. Otherwise the vectors run along the
    last dimension, or along the first.
    """
    shape = arrays[0].shape
    if whole or len(shape) <= 1:
        return function([array.reshape(-1) for array in arrays]).reshape(shape)
    axis = 0 if first_dimension else -1
    moved = [np.moveaxis(array, axis, -1) for array in arrays]
    result = np.empty_like(moved[0])
    for index in np.ndindex(*moved[0].shape[:-1]):
        result[index] = function([array[index] for array in moved])
    return np.ascontiguousarray(np.moveaxis(result, -1, axis))


def _l1_ratio(before: Array, after: Array) -> float:
    """L1 norm before over L1 norm after; 1 where nothing is left to scale."""
    left = float(np.sum(np.abs(after)))
    return float(np.sum(np.abs(before))) / left if left > 0.0 else 1.0


def _exponent_of_ulp(array: Array, dtype: str) -> NDArray[np.int32]:
    """e such that neighbouring values of `dtype` around abs(array) lie 2^e apart."""
    precision, smallest, largest = FORMATS[dtype]
    finite = np.where(np.isfinite(array), array, 0.0)
    _, exponent = np.frexp(finite)  # abs(array) = fraction * 2^exponent, fraction in [1/2, 1)
    exponent = np.where(finite == 0.0, smallest, exponent - 1)
    return (np.clip(exponent, smallest, largest) - (precision - 1)).astype(np.int32)


def _assert_all(
    good: NDArray[np.bool_], fault: str, ours: Array, exact: Array, expected: Array
) -> None:
    """Fail with the number of bad elements and the first of them."""
    bad = np.argwhere(~good)
    if len(bad) == 0:
        return
    first = tuple(int(i) for i in bad[0])
    raise AssertionError(
        f"{len(bad)} of {good.size} elements are {fault}; the first, at {first}: got "
        f"{ours[first]!r}, exact {exact[first]!r}, correctly rounded {expected[first]!r}"
    )
