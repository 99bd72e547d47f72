"""The backends give the same bytes, kernel by kernel; whole merges are in test_backend_merges.py.

NaN payloads aside: which of two NaNs an operation gives back is the processor's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from reference import FORMATS, round_to, storage_from_float64

from mergekit_embed.dtypes import DType
from mergekit_embed.kernels import (
    BLOCK,
    DIGIT_BITS,
    Band,
    Combine,
    Divide,
    Draw,
    FisherWeights,
    Importance,
    Keep,
    Kernels,
    Layout,
    Magnitude,
    Measure,
    Output,
    RankedDraw,
    Raw,
    Variance,
    Vector,
    open_kernels,
)

NUMBA, TORCH = open_kernels("cpu", "numba"), open_kernels("cpu", "torch")

TYPES = (DType.F64, DType.F32, DType.F16, DType.BF16)
LENGTHS = (1, 2, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, int(2.3 * BLOCK))
VALUES = ("changes", "ties", "zeros", "subnormal", "huge", "shared", "not finite")
LEAD = 3
"""Elements before a vector that is a part of a longer one."""

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator


class Stored(NamedTuple):
    """A vector of stored elements: those of `raw` from `lead` on."""

    raw: Raw
    dtype: DType
    lead: int

    def handed(self, kernels: Kernels) -> Vector:
        vector = kernels.load(self.raw, self.dtype)
        count = len(self.raw) // self.dtype.itemsize
        return kernels.part(vector, self.lead, count) if self.lead else vector


@dataclass(frozen=True)
class Drawn:
    """Members and an origin of `count` elements each."""

    members: tuple[Stored, ...]
    origin: Stored
    count: int

    def same(self, call: Callable[[Kernels, list[Vector], Vector], object]) -> None:
        """Assert that the backends give the same when they are asked the same."""
        found = [
            call(kernels, [m.handed(kernels) for m in self.members], self.origin.handed(kernels))
            for kernels in (NUMBA, TORCH)
        ]
        assert_same(*found)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert bits(found) == bits(expected)
    else:
        assert found == expected


def bits(array: Array) -> bytes:
    """The bytes of an array, with one NaN for all."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    return array.tobytes()


def plain(output: Output, dtype: DType) -> tuple[Array, bool]:
    """Output whose NaNs are all the same."""
    if dtype is not DType.BF16:
        kinds = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
        return output.raw.view(kinds[dtype]), output.finite
    stored = output.raw.view(np.uint16)
    return np.where((stored & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), stored), output.finite


def values_of(kind: str, around: Array, dtype: DType, random: Random) -> Array:
    """A member: float64, rounded to its type when it is stored."""
    count = len(around)
    _, least, most = FORMATS[dtype.name]
    if kind == "changes":
        return around + 0.01 * random.standard_normal(count)
    if kind == "ties":
        return around + random.choice([-0.25, -0.125, 0.0, 0.125, 0.25], size=count)
    if kind == "zeros":
        return random.choice([0.0, -0.0, 0.5, -0.5], size=count, p=[0.4, 0.4, 0.1, 0.1])
    if kind == "subnormal":
        return random.integers(-9, 9, size=count) * 2.0 ** max(least - 8, -1074)
    if kind == "huge":
        return random.choice([-1.0, 1.0, 0.75, 1.5], size=count) * 2.0**most
    if kind == "shared":
        return np.where(random.random(count) < 0.7, around, random.standard_normal(count))
    odd = random.choice([np.inf, -np.inf, np.nan], size=count)
    return np.where(random.random(count) < 1.5 / count + 0.01, odd, around)


def store(values: Array, dtype: DType, lead: int) -> Stored:
    filled = np.concatenate([np.ones(lead), values])
    raw = np.frombuffer(storage_from_float64(filled, dtype.name), np.uint8)
    return Stored(raw.copy(), dtype, lead)


def drawn(random: Random, kind: str, count: int, members: int) -> Drawn:
    """Members of mixed types, some of which are parts of longer vectors."""
    lead = int(random.choice([0, 1, LEAD]))
    around = round_to(np.round(random.standard_normal(count), 2), "BF16")
    if kind in {"zeros", "subnormal"}:
        around = values_of(kind, around, DType.F16, random)
    found = []
    for _ in range(members):
        dtype = TYPES[random.integers(4)]
        found.append(store(values_of(kind, around, dtype, random), dtype, lead))
    dtype = TYPES[random.integers(4)]
    alike = kind not in {"huge", "not finite"}  # the difference of huge numbers may be infinite
    start = around if alike else values_of(kind, around, dtype, random)
    return Drawn(tuple(found), store(start, dtype, lead), count)


def some(kind: str, count: int) -> list[tuple[Drawn, Random]]:
    """Cases of a kind: one for every number of members up to 6, or one of long vectors."""
    random = np.random.default_rng([VALUES.index(kind), count])
    few = range(1, 7) if count < 1000 else random.choice(range(1, 7), 1)
    return [(drawn(random, kind, count, int(members)), random) for members in few]


def output_types(random: Random) -> DType:
    return TYPES[random.integers(4)]


def divide_of(count: int, random: Random) -> Divide | None:
    """The first elements divided by something, or nothing."""
    choices = [None, Divide(3.0, 1), Divide(0.7, count), Divide(1e-3, (count + 1) // 2)]
    return choices[random.integers(4)]


each_length = pytest.mark.parametrize("count", LENGTHS)
each_kind = pytest.mark.parametrize("kind", VALUES)


# --- sums -------------------------------------------------------------------------------


@each_kind
@each_length
def test_moments_of_blocks(kind: str, count: int) -> None:
    for case, _ in some(kind, count):
        for absolute in (False, True):
            case.same(lambda k, v, o, a=absolute: tuple(k.block_moments(v, o, a)))
            case.same(lambda k, v, _, a=absolute: tuple(k.block_moments(v, None, a)))


SHAPES = [
    (1, 1, 1),
    (1, 513, 1),
    (7, 96, 1),
    (40, 1, 1),
    (1, 20, 13),
    (3, 5, 7),
    (2, 1, 600),
    (1, 700, 91),
    (3, 1025, 1),
    (1, BLOCK, 1),
]
"""Of chunks: (outer, length, inner)."""


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_of_rows_and_columns(kind: str, shape: tuple[int, int, int]) -> None:
    layout = Layout(*shape[1:])
    for case, _ in some(kind, math.prod(shape)):
        for absolute in (False, True):
            case.same(lambda k, v, o, a=absolute: tuple(k.vector_moments(v, o, layout, a)))
            case.same(lambda k, v, _, a=absolute: tuple(k.vector_moments(v, None, layout, a)))


# --- mixtures ---------------------------------------------------------------------------


def coefficients_of(shape: Sequence[int], random: Random) -> Array:
    """Some vectors sum to 1, exactly or but for rounding; others do not, and hold zeros."""
    found = random.standard_normal(shape)
    found[random.random(shape) < 0.2] = 0.0
    sums = found.sum(axis=-1, keepdims=True)
    normal = np.where(sums == 0, 1.0, sums)
    return np.where(random.random(sums.shape) < 0.6, found / normal, found)


def check_mixture(case: Drawn, coefficients: Array, layout: Layout, random: Random) -> None:
    dtype, divide = output_types(random), divide_of(case.count, random)

    def mixed(kernels: Kernels, vectors: list[Vector], origin: Vector | None) -> object:
        return plain(kernels.mixture(vectors, origin, coefficients, layout, dtype, divide), dtype)

    case.same(mixed)
    case.same(lambda kernels, vectors, _: mixed(kernels, vectors, None))


@each_kind
@each_length
def test_mixtures(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        coefficients = coefficients_of((1, 1, len(case.members)), random)
        check_mixture(case, coefficients, Layout(count), random)
        alone = np.zeros_like(coefficients)
        alone[..., -1] = 1.0
        check_mixture(case, alone, Layout(count), random)


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_mixtures_row_by_row_and_column_by_column(kind: str, shape: tuple[int, int, int]) -> None:
    outer, length, inner = shape
    for case, random in some(kind, math.prod(shape)):
        for rows, columns in ((outer, 1), (1, inner), (outer, inner)):
            coefficients = coefficients_of((rows, columns, len(case.members)), random)
            check_mixture(case, coefficients, Layout(length, inner), random)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 171), (3, 171)])
def test_what_all_share_comes_back_from_mixtures(shape: tuple[int, int]) -> None:
    """Also where the differences from the origin would lose it, zeros with their sign."""
    random = np.random.default_rng(shape)
    values = random.choice([0.0, -0.0, 1e-19, 5.0, 2.0**-149], size=513)
    for dtype in TYPES:
        stored = store(values, dtype, 1)
        for origin in (stored, store(np.ones(513), DType.F32, 0)):
            case = Drawn((stored,) * 3, origin, 513)
            check_mixture(
                case,
                coefficients_of((*shape, 3), random),
                Layout(171 // shape[1], shape[1]),
                random,
            )


@pytest.mark.parametrize("dtype", TYPES)
def test_coefficients_that_cancel_sum_to_one_for_both_or_for_neither(dtype: DType) -> None:
    """Large ones have another sum in another order: what is common would come back, or not."""
    random = np.random.default_rng(0)
    for _ in range(60):
        large = random.standard_normal(9) * 10.0 ** random.integers(0, 10, 9)
        coefficients = random.permutation(np.append(large, 1.0 - large.sum()))
        common = store(np.full(3, 1e-3), dtype, 0)
        case = Drawn((common,) * 10, store(np.ones(3), DType.F32, 0), 3)
        check_mixture(case, coefficients.reshape(1, 1, -1), Layout(3), random)


# --- order statistics -------------------------------------------------------------------


def measures_of(case: Drawn) -> list[Measure]:
    row = next(row for row in (171, 97, 16, 2, 1) if case.count % row == 0)
    return [Magnitude(0), Magnitude(len(case.members) - 1), Variance(), Importance(row)]


def sizes_of(case: Drawn, measure: Measure) -> Array:
    vectors = [member.handed(TORCH) for member in case.members]
    found, _ = TORCH.measured(vectors, case.origin.handed(TORCH), measure, 0.0, math.inf)
    return found


def limits_of(case: Drawn, measure: Measure, number: int, random: Random) -> Array:
    """Some of the measure's numbers in order, or their neighbours."""
    sizes = sizes_of(case, measure)
    chosen = random.choice(np.append(sizes, [0.0, 1e-300, 1.0]), number)
    return np.sort(
        np.nextafter(chosen, random.choice([0.0, np.inf], number)) if random.integers(2) else chosen
    )


@each_kind
@each_length
def test_measures(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        for measure in measures_of(case):
            low, high = limits_of(case, measure, 2, random)
            limits = limits_of(case, measure, 5, random)
            for ends in ((0.0, math.inf), (low, high), (low, math.inf), (low, low)):
                case.same(lambda k, v, o, m=measure, e=ends: k.measured(v, o, m, *e))
            for some_limits in (limits, limits[:0], limits[:1]):
                case.same(lambda k, v, o, m=measure, x=some_limits: k.tally(v, o, m, x))


@each_kind
@each_length
def test_histograms(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        for measure in measures_of(case):
            sizes = sizes_of(case, measure)
            one = int(random.choice(np.append(sizes, 1.0)).view(np.uint64))
            for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
                prefix = one >> shift + DIGIT_BITS
                case.same(lambda k, v, o, m=measure, p=prefix, s=shift: k.histogram(v, o, m, p, s))


# --- consensus --------------------------------------------------------------------------


def keeps_of(case: Drawn, how: str, row: int, start: int, random: Random) -> list[Keep]:
    """What each member keeps: all in one way, or each in its own."""
    members = range(len(case.members))
    ways = ["band", "variance", "importance", "draw", "ranked"]
    return [
        _keep(case, how if how != "mixed" else str(random.choice(ways)), m, row, start, random)
        for m in members
    ]


def _keep(case: Drawn, how: str, member: int, row: int, start: int, random: Random) -> Keep:
    key, chance = int(random.integers(2**63)) * 2 + 1, float(random.random())
    if how == "draw":
        return Draw(key, start, float(random.choice([0.0, chance, 1.0])))
    if how == "ranked":
        return RankedDraw(key, start, row, chance / 2, chance / 2 + 0.5)
    other = int(random.integers(len(case.members)))
    measure: Measure = {
        "band": Magnitude(other),
        "variance": Variance(),
        "importance": Importance(row),
    }[how]
    low, high = limits_of(case, measure, 2, random)
    return Band(measure, low, high if random.integers(2) else math.inf)


def combine_of(members: int, random: Random) -> Combine:
    lone = random.choice([1.0, 1.5, 2.0], size=members) if random.integers(2) else None
    return Combine(
        vote=bool(random.integers(2)),
        mean=bool(random.integers(2)),
        normalize=bool(random.integers(2)),
        factors=random.choice([1.0, 2.5, 1 / 3, np.inf], size=members, p=[0.4, 0.3, 0.25, 0.05]),
        lone_factors=lone,
        weight=random.choice([1.0, 0.3, -0.7, 0.0, 2.0], size=members),
        scale=float(random.choice([1.0, 0.4, -1.0])),
    )


def check_consensus(case: Drawn, keeps: list[Keep], random: Random) -> None:
    dtype, divide = output_types(random), divide_of(case.count, random)
    combine = combine_of(len(case.members), random)
    for squares in (False, True):
        case.same(lambda k, v, o, squares=squares: k.kept_sums(v, o, keeps, squares))
    case.same(lambda k, v, o: k.shared_counts(v, o, keeps))
    case.same(lambda k, v, o: plain(k.consensus(v, o, keeps, combine, dtype, divide), dtype))


@each_kind
@each_length
@pytest.mark.parametrize("how", ["band", "variance", "draw"])
def test_consensus_of_elements(how: str, kind: str, count: int) -> None:
    for case, random in some(kind, count):
        start = int(random.integers(2**40))
        check_consensus(case, keeps_of(case, how, count, start, random), random)


@each_kind
@pytest.mark.parametrize(("rows", "row"), [(1, 1), (9, 1), (5, 2), (3, 511), (40, 513), (65, 1025)])
@pytest.mark.parametrize("how", ["importance", "ranked", "mixed"])
def test_consensus_of_rows(how: str, rows: int, row: int, kind: str) -> None:
    for case, random in some(kind, rows * row):
        start = row * int(random.integers(2**30))
        check_consensus(case, keeps_of(case, how, row, start, random), random)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("vote", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("lone", [False, True])
def test_all_ways_of_coming_together(vote: bool, mean: bool, normalize: bool, lone: bool) -> None:
    for kind in VALUES:
        for case, random in some(kind, 513):
            members = len(case.members)
            keeps = keeps_of(case, "draw", 513, 0, random)
            lone_factors = random.choice([1.0, 1.5], size=members) if lone else None
            for weight in (np.ones(members), np.zeros(members), np.linspace(-1, 2, members)):
                how = Combine(
                    vote, mean, normalize, np.full(members, 1.25), lone_factors, weight, 0.5
                )
                case.same(
                    lambda k, v, o, s=keeps, h=how: plain(
                        k.consensus(v, o, s, h, DType.F64), DType.F64
                    )
                )


# --- the other elementwise methods ------------------------------------------------------


@each_kind
@each_length
def test_centres(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        for trim in range((len(case.members) + 1) // 2):
            dtype, divide = output_types(random), divide_of(count, random)
            case.same(lambda k, v, _, t=trim, d=dtype, x=divide: plain(k.centre(v, t, d, x), d))


@each_kind
@each_length
def test_what_is_near(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        for reach in (0.0, 1e-7, 0.01, 3.0):
            dtype, divide = output_types(random), divide_of(count, random)
            case.same(
                lambda k, v, o, r=reach, d=dtype, x=divide: plain(k.near(v[0], o, r, d, x), d)
            )


@each_kind
@each_length
def test_fisher_means(kind: str, count: int) -> None:
    for case, random in some(kind, count):
        members = len(case.members)
        sizes = random.choice([0.0, 1e-9, 1.0], size=(members, count))
        sizes *= random.uniform(0.5, 2.0, (members, count))
        if kind == "not finite":
            sizes[random.random(sizes.shape) < 0.01] = random.choice([np.inf, np.nan])
        fishers = [store(own, TYPES[random.integers(4)], 1) for own in sizes]
        for normalize in (False, True):
            weights = FisherWeights(
                random.choice([0.0, 0.5, 2.0], members) + np.eye(members)[0],
                random.choice([1.0, 1 / 3, 7.0], members),
                float(random.choice([0.0, 1e-6, 0.5])),
                normalize,
            )
            dtype, divide = output_types(random), divide_of(count, random)

            def mean(
                kernels: Kernels,
                vectors: list[Vector],
                _: Vector,
                w: FisherWeights = weights,
                d: DType = dtype,
                x: Divide | None = divide,
                f: list[Stored] = fishers,
            ) -> object:
                handed = [one.handed(kernels) for one in f]
                return plain(kernels.fisher_mean(vectors, handed, w, d, x), d)

            case.same(mean)


@each_kind
@pytest.mark.parametrize("transposed", [False, True])
def test_regressions(kind: str, transposed: bool) -> None:
    rows, size = 40, 33
    for case, random in some(kind, rows * size):
        members = len(case.members)
        inputs = random.standard_normal((members, 50, size))
        grams = [store((x.T @ x).reshape(-1), DType.F32, 0) for x in inputs]
        weight, dtype = random.uniform(0.5, 2.0, members), output_types(random)

        def regressed(
            kernels: Kernels,
            vectors: list[Vector],
            _: Vector,
            g: list[Stored] = grams,
            w: Array = weight,
            d: DType = dtype,
        ) -> object:
            with kernels.session():
                found = kernels.regressor([one.handed(kernels) for one in g], size, w, 0.9)
                return plain(kernels.regress(vectors, found, transposed, d), d)

        case.same(regressed)


@each_kind
@each_length
def test_what_is_finite(kind: str, count: int) -> None:
    for case, _ in some(kind, count):
        case.same(lambda k, v, o: tuple(k.is_finite(one) for one in (*v, o)))
        told = [NUMBA.is_finite(member.handed(NUMBA)) for member in case.members]
        assert kind == "not finite" or all(told)
