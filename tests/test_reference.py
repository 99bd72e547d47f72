"""The references and the tiny models are right themselves: by hand, by torch, by loading them."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import tiny_models as tiny

ROOT = math.sqrt(0.5)
SENTENCES = ["the quick brown fox jumps over the lazy dog", "Where does winter snow go?"]


def array(*values: float | list[float]) -> ref.Array:
    """One float64 array of the values."""
    return np.array(values, dtype=np.float64)


def same(result: ref.Array, *values: float | list[float]) -> None:
    """Assert float64 equality but for a few roundings."""
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, array(*values), rtol=1e-13, atol=1e-15)


# --- mixtures -----------------------------------------------------------------------------


def test_linear_divides_by_the_sum_of_the_weights() -> None:
    members = [array(1, 2), array(3, 6)]
    same(ref.linear(members, [1, 3]), 2.5, 5)
    same(ref.linear(members, [1, 3], normalize=False), 10, 20)
    with pytest.raises(ValueError, match="cancel"):
        ref.linear(members, [1, -1])


def test_task_arithmetic_adds_weighted_deltas() -> None:
    members, base = [array(2, 1), array(1, 4)], array(1, 1)
    same(ref.task_arithmetic(members, base, [0.5, 2]), 1.5, 7)
    same(ref.task_arithmetic(members, base, [1, 3], lam=2, normalize=True), 1.5, 5.5)


def test_slerp_scales_the_raw_tensors() -> None:
    same(ref.slerp(array(1, 0), array(0, 2), 0.5), ROOT, 2 * ROOT)
    sixty = array(0.5, math.sqrt(0.75))
    same(ref.slerp(array(1, 0), sixty, 0.5), math.sqrt(0.75), 0.5)
    same(ref.slerp(array(3, 0), sixty, 0.0), 3, 0)
    same(ref.slerp(array(3, 0), sixty, 1.0), 0.5, math.sqrt(0.75))


def test_slerp_is_linear_above_its_threshold_only() -> None:
    def at(angle: float) -> ref.Array:
        return array(math.cos(angle), math.sin(angle))

    near, far = math.acos(0.9996), math.acos(0.9994)
    same(ref.slerp(at(0), 2 * at(near), 0.25), 0.75 + 0.5 * 0.9996, 0.5 * math.sin(near))
    same(ref.slerp(at(0), at(far), 0.25), *at(far / 4))
    same(ref.slerp(at(0), -3 * at(0), 0.25), 0, 0)
    same(ref.slerp(array(0, 0), array(0, 2), 0.5), 0, 2 * ROOT)


def test_nuslerp_takes_its_place_from_the_weights() -> None:
    def at(angle: float) -> ref.Array:
        return array(math.cos(angle), math.sin(angle))

    same(ref.nuslerp(at(0), at(1.2), 3, 1), *at(0.3))
    same(ref.nuslerp(at(0), at(1e-3), 3, 1), *at(0.25e-3))
    same(ref.nuslerp(array(1, 3), array(1, 3), 1, 1), 1, 3)
    same(ref.nuslerp(array(1, 3), array(-1, -3), 3, 1), 0.5, 1.5)
    base = array(5, -1)
    same(ref.nuslerp(at(0) + base, at(1.2) + base, 3, 1, base), *(at(0.3) + base))


def test_nuslerp_of_rows_and_of_columns() -> None:
    a, b = array([1, 0], [0, 2]), array([0, 1], [0, 4])
    rows = ref.nuslerp(a, b, 1, 1, flatten=False)
    same(rows, [ROOT, ROOT], [0, 3])
    same(ref.nuslerp(a.T, b.T, 1, 1, flatten=False, row_wise=True), *rows.T.tolist())
    cube_a, cube_b = a[:, None, :], b[:, None, :]
    same(ref.nuslerp(cube_a, cube_b, 1, 1, flatten=False)[:, 0, :], *rows.tolist())
    whole = ref.nuslerp(a.reshape(-1), b.reshape(-1), 1, 1)
    for flags in ({"flatten": False}, {"flatten": False, "row_wise": True}):
        same(ref.nuslerp(a.reshape(-1), b.reshape(-1), 1, 1, None, **flags), *whole)
    same(ref.nuslerp(a, b, 1, 1).reshape(-1), *whole)


def test_multislerp_is_mean_direction_times_mean_length() -> None:
    members = [array(1, 0), array(0, 3)]
    same(ref.multislerp(members, [2, 2]), 2 * ROOT, 2 * ROOT)
    base = array(-1, 7)
    same(ref.multislerp([m + base for m in members], [1, 1], base), *(base + 2 * ROOT))
    weighted = array(3, 1) / math.sqrt(10) * (0.75 * 1 + 0.25 * 3)
    same(ref.multislerp(members, [3, 1]), *weighted)


def test_multislerp_without_directions() -> None:
    zero, base = array(0, 0), array(4, 5)
    same(ref.multislerp([array(2, 0), zero], [1, 1]), 1, 0)
    same(ref.multislerp([base, base], [1, 1], base), 4, 5)
    same(ref.multislerp([array(3, 1), array(-9, -3)], [1, 1]), -3, -1)


def test_karcher_lies_on_the_arc_between_two() -> None:
    members, length = [array(1, 0), array(0, 3)], 0.25 * 1 + 0.75 * 3
    angle, start = 0.75 * math.pi / 2, math.atan(3)
    mean = array(math.cos(angle), math.sin(angle)) * length
    begun = array(math.cos(start), math.sin(start)) * length
    same(ref.karcher(members, [1, 3]), *mean)
    same(ref.karcher(members, [1, 3], max_iter=1), *mean)
    same(ref.karcher(members, [1, 3], max_iter=0), *begun)
    same(ref.karcher(members, [1, 3], tol=0.1), *begun)


def test_karcher_has_no_tangent_left() -> None:
    random = np.random.default_rng(0)
    units = [x / np.linalg.norm(x) for x in random.normal(size=(3, 4)) + 1]
    weights = [0.5, 0.3, 0.2]
    mean = ref.karcher(units, weights, max_iter=50, tol=1e-14)
    cosines = [float(mean @ unit) for unit in units]
    tangent = sum(
        w * math.acos(c) / math.sin(math.acos(c)) * (unit - c * mean)
        for w, c, unit in zip(weights, cosines, units, strict=True)
    )
    np.testing.assert_allclose(tangent, 0.0, atol=1e-12)


def test_karcher_without_directions() -> None:
    zero = array(0, 0)
    same(ref.karcher([array(0, 4), zero], [1, 1]), 0, 2)
    same(ref.karcher([zero, zero], [1, 1]), 0, 0)
    same(ref.karcher([zero, array(0, 1), array(0, -3)], [2, 1, 1]), 0, 1)


def test_model_stock_moves_by_the_cosine() -> None:
    base = array(1, 1)
    sixty = array(0.5, math.sqrt(0.75))
    half = 2 / 3 * (array(1, 0) + sixty) / 2
    same(ref.model_stock([base + array(1, 0), base + sixty], base), *(base + half))
    same(ref.model_stock([base + array(1e-9, 0), base + array(0, 1e-9)], base), 1, 1)
    same(ref.model_stock([array(3, 0)] * 3, base), 3, 0)
    moved = base + array(1, 0)
    same(ref.model_stock([moved, moved, base], base), 1 + 0.6 * 2 / 3, 1)


def test_model_stock_of_rows() -> None:
    base = np.zeros((2, 2))
    members = [array([1, 0], [2, 0]), array([1, 0], [0, 2])]
    same(ref.model_stock(members, base, filter_wise=True), [1, 0], [0, 0])
    flat = [array(1, 0), array(1, 1)], array(0, 0)
    same(ref.model_stock(*flat, filter_wise=True), *ref.model_stock(*flat))
    with pytest.raises(ValueError, match="directions"):
        ref.model_stock([array(1, 0), array(-2, 0)], array(0, 0))
    with pytest.raises(ValueError, match="two members"):
        ref.model_stock([array(1, 0)], array(0, 0))


def test_delta_guided_weighs_by_distance() -> None:
    base = array(10, 10)
    members = [base + array(1, 0), base + array(0, 3)]
    same(ref.delta_guided(members, base, [1, 1]), 10.25, 12.25)
    same(ref.delta_guided(members, base, [1, 1], gamma=-1), 10.75, 10.75)
    same(ref.delta_guided(members, base, [1, 3], gamma=0), 10.25, 12.25)
    same(ref.delta_guided(members, base, [3, 1]), 10.5, 11.5)
    wide = [base + array(1, 1), base + array(0, 3)]
    same(ref.delta_guided(wide, base, [1, 1], norm="l1"), 10 + 0.4, 10 + 0.4 + 1.8)
    for norm in ("rms", "relative"):
        same(ref.delta_guided(wide, base, [1, 1], norm=norm), *ref.delta_guided(wide, base, [1, 1]))


def test_delta_guided_by_row_and_by_element() -> None:
    base = np.zeros((2, 2))
    members = [array([1, 0], [2, 0]), array([0, 3], [0, 2])]
    same(ref.delta_guided(members, base, [1, 1], granularity="row"), [0.25, 2.25], [1, 1])
    by_element = ref.delta_guided(
        [array([1.0, 2.0]), array([3.0, 0.0])], array([0.0, 0.0]), [1, 1], granularity="element"
    )
    same(by_element, [10 / 4, 2])


def test_delta_guided_with_zero_deltas() -> None:
    base, moved = array(1, 1), array(1, 3)
    same(ref.delta_guided([base, moved], base, [1, 1], gamma=-1), 1, 3)
    same(ref.delta_guided([base, moved], base, [1, 1], gamma=0), 1, 2)
    for gamma in (-1, 0, 1):
        same(ref.delta_guided([base, base], base, [1, 1], gamma), 1, 1)


def test_delta_guided_over_a_group() -> None:
    base = [array(0, 0), array(0)]
    members = [[array(3, 0), array(4)], [array(0, 0), array(15)]]
    first, second = ref.delta_guided_grouped(members, base, [1, 1])
    same(first, 0.25 * 3, 0)
    same(second, 0.25 * 4 + 0.75 * 15)


def test_self_positioning_goes_from_arc_to_arc() -> None:
    base = array(1, 1, 1)
    members = [base + array(2, 0, 0), base + array(0, 2, 0), base + array(0, 0, 5)]
    same(ref.self_positioning(members[:2], base, [3, 3]), 1 + 2 * ROOT, 1 + 2 * ROOT, 1)
    # Five sixths of a right angle, then (3 against the mean of 1 and 5) half of one; half as long.
    first, second = 2 * math.sin(math.radians(15)), 2 * math.sin(math.radians(75))
    wanted = [1 + 0.5 * ROOT * part for part in (first, second, 5)]
    same(ref.self_positioning(members, base, [1, 5, 3], lam=0.5), *wanted)
    same(ref.self_positioning([base, members[0]], base, [1, 1]), 1 + 2 * ROOT, 1, 1)
    opposite = [base + array(2, 0, 0), base - array(4, 0, 0)]
    same(ref.self_positioning(opposite, base, [1, 3]), 1 + 0.25 * 2 - 0.75 * 4, 1, 1)
    same(ref.self_positioning(members[:1], base, [7]), 3, 1, 1)


def test_self_positioning_of_a_whole_model() -> None:
    base = [array([0, 0], [0, 0]), array(0)]
    members = [[array([0, 2], [0, 0]), array(0)], [np.zeros((2, 2)), array(2)]]
    first, second = ref.self_positioning_grouped(members, base, [1, 1])
    same(first, [0, math.sqrt(2)], [0, 0])
    same(second, math.sqrt(2))


def test_ema_and_passthrough() -> None:
    members = [array(7), array(14), array(28)]
    same(ref.ema(members, 0.5), (7 * 0.25 + 14 * 0.5 + 28) / 1.75)
    same(ref.ema(members, 0), 28)
    same(ref.passthrough(array(2, 3), 0.5), 1, 1.5)


# --- consensus ----------------------------------------------------------------------------


def test_ties_trims_elects_and_averages() -> None:
    base = array(10, 10, 10, 10)
    members = [base + array(4, -3, 1, 2), base + array(-1, -1, 2, 4)]
    # Half is kept: (4, -3, 0, 0) and (0, 0, 2, 4).
    same(ref.ties(members, base, [1, 1], [0.5, 0.5]), 14, 7, 12, 14)
    # Everything is kept; the signs are +, -, +, +: the -1 of the second member loses.
    same(ref.ties(members, base, [1, 3], [1, 1]), 14, 10 - 6 / 4, 10 + 7 / 4, 10 + 14 / 4)
    same(ref.ties(members, base, [1, 3], [1, 1], lam=2, normalize=False), 18, -2, 24, 38)


def test_ties_keeps_all_of_equal_magnitude_and_at_least_one() -> None:
    delta = array(1, -2, 2, 3)
    assert ref.keep_largest(delta, 0.5).tolist() == [False, True, True, True]
    assert ref.keep_largest(delta, 0.01).tolist() == [False, False, False, True]
    assert ref.keep_largest(delta, 0.74).tolist() == [False, True, True, True]
    assert ref.keep_largest(array(5).reshape(()), 0.1).tolist() is True
    assert ref.keep_largest(np.zeros(0), 0.5).size == 0


def test_ties_rescales_by_the_l1_norms() -> None:
    zero = array(0, 0, 0)
    same(ref.ties([array(4, -3, 1)], zero, [1], [0.4], rescale=True), 8, 0, 0)
    same(ref.ties([zero], zero, [1], [0.4], rescale=True), 0, 0, 0)


def test_ties_when_signs_and_weights_cancel() -> None:
    zero = array(0)
    # The sum is zero and counts as +; only the positive one agrees.
    same(ref.ties([array(2), array(-2)], zero, [1, 1], [1, 1]), 2)
    # Weighted deltas 2 and 3 agree, their weights sum to 0: not divided.
    same(ref.ties([array(2), array(-3)], zero, [1, -1], [1, 1]), 5)
    # A zero delta agrees with nothing, and does not dilute the mean.
    same(ref.ties([array(2), array(0)], zero, [1, 1], [1, 1]), 2)


# --- storage and rounding -----------------------------------------------------------------


def test_bfloat16_is_rounded_once() -> None:
    above_the_middle = array(1 + 2**-8 + 2**-40)
    assert ref.round_to(above_the_middle.astype(np.float32).astype(np.float64), "BF16") == 1.0
    assert ref.round_to(above_the_middle, "BF16") == 1 + 2**-7
    assert ref.round_to(-above_the_middle, "BF16") == -1 - 2**-7


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_middle_of_two_neighbours_goes_to_the_even_one(dtype: str) -> None:
    infinity = 0x7C00 if dtype == "F16" else 0x7F80
    bits = np.arange(infinity, dtype="<u2")  # every finite positive value, ascending
    values = ref.float64_from_storage(bits.tobytes(), dtype)
    assert np.array_equal(ref.round_to(values, dtype), values)
    assert ref.storage_from_float64(values, dtype) == bits.tobytes()
    low, high = values[:-1], values[1:]
    middle = (low + high) / 2
    assert np.array_equal(ref.round_to(middle, dtype), np.where(bits[:-1] % 2 == 0, low, high))
    assert np.array_equal(ref.round_to(np.nextafter(middle, -np.inf), dtype), low)
    assert np.array_equal(ref.round_to(-np.nextafter(middle, np.inf), dtype), -high)
    assert np.array_equal(ref.ulp(middle, dtype), high - low)
    beyond = values[-1] + ref.ulp(values[-1], dtype) / 2
    assert ref.round_to(beyond, dtype) == np.inf
    assert ref.round_to(-np.nextafter(beyond, 0), dtype) == -values[-1]


def any_float64(count: int) -> ref.Array:
    """Random bit patterns, many within reach of the small dtypes, and the special values."""
    random = np.random.default_rng(1)
    wild = random.integers(0, 2**64, count, dtype=np.uint64).view(np.float64)
    tame = random.normal(size=count) * 2.0 ** random.integers(-160, 130, count)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 2.0**-150, 3 * 2.0**-150, 65520.0]
    return np.concatenate([wild, tame, special])


@pytest.mark.parametrize(("dtype", "numpy"), [("F32", np.float32), ("F16", np.float16)])
def test_rounding_agrees_with_numpy(dtype: str, numpy: type[np.floating]) -> None:
    values = any_float64(20000)
    with np.errstate(all="ignore"):
        expected = values.astype(numpy)
    ours = ref.round_to(values, dtype)
    np.testing.assert_array_equal(ours, expected.astype(np.float64))
    assert np.array_equal(np.signbit(ours[values == 0]), np.signbit(values[values == 0]))
    finite = np.abs(expected[np.isfinite(expected)])
    assert np.array_equal(ref.ulp(finite.astype(np.float64), dtype)[:-1], np.spacing(finite)[:-1])


def test_rounding_of_float32_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    with np.errstate(all="ignore"):
        narrow = torch.from_numpy(any_float64(20000).astype(np.float32))
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        expected = narrow.to(dtype)
        values = narrow.to(torch.float64).numpy()
        np.testing.assert_array_equal(
            ref.round_to(values, name), expected.to(torch.float64).numpy()
        )
        known = torch.isfinite(expected)  # a NaN may keep its sign and payload or not
        stored = expected[known].view(torch.int16).numpy().astype("<i2").tobytes()
        assert ref.storage_from_float64(values[known.numpy()], name) == stored


def test_float64_is_itself() -> None:
    values = any_float64(1000)
    np.testing.assert_array_equal(ref.round_to(values, "F64"), values)
    assert ref.storage_from_float64(values[:10], "F64") == values[:10].tobytes()
    finite = np.abs(values[np.isfinite(values)])
    assert np.array_equal(ref.ulp(finite, "F64"), np.spacing(finite))


def test_storage_keeps_shapes_and_special_values() -> None:
    assert ref.storage_from_float64(np.array(-2.0), "BF16") == b"\x00\xc0"
    grid = array([1, -2, 3], [0.5, np.inf, -0.0])
    for dtype in ref.FORMATS:
        raw = ref.storage_from_float64(grid.T, dtype)
        read = ref.float64_from_storage(raw, dtype, (3, 2))
        np.testing.assert_array_equal(read, grid.T)
        assert np.array_equal(np.signbit(read), np.signbit(grid.T))
        nan = ref.storage_from_float64(array(np.nan), dtype)
        assert np.isnan(ref.float64_from_storage(nan, dtype))[0]
        assert ref.float64_from_storage(raw[: len(raw) // 6], dtype, ()).shape == ()


def test_ulp_at_the_ends() -> None:
    assert ref.ulp(array(0.0, 1.0, 1e300), "BF16").tolist() == [2.0**-133, 2.0**-7, 2.0**120]
    assert np.isnan(ref.ulp(array(np.inf, np.nan), "F32")).all()


def test_check_numerics_accepts_what_is_promised_and_no_more() -> None:
    exact = np.random.default_rng(2).normal(size=2000)
    best, one = ref.round_to(exact, "BF16"), ref.ulp(exact, "BF16")
    ref.check_numerics(best, exact, "BF16", 1.0)
    other = best + np.where(best < exact, one, -one)  # the other neighbour of the exact value

    def with_wrong(count: int) -> ref.Array:
        return np.where(np.arange(2000) < count, other, best)

    ref.check_numerics(with_wrong(2), exact, "BF16", 1.0)
    with pytest.raises(AssertionError, match=r"3 of 2000 elements are not correctly rounded"):
        ref.check_numerics(with_wrong(3), exact, "BF16", 1.0)
    ref.check_numerics(with_wrong(1)[:900], exact[:900], "BF16", 1.0)
    with pytest.raises(AssertionError, match="only 1 may be"):
        ref.check_numerics(with_wrong(2)[:900], exact[:900], "BF16", 1.0)
    far = best.copy()
    far[7] += 2 * one[7]
    with pytest.raises(AssertionError, match=r"1 of 2000 elements.* 1 ulp .*at \(7,\)"):
        ref.check_numerics(far, exact, "BF16", 1.0)
    with pytest.raises(AssertionError, match="not values of BF16"):
        ref.check_numerics(exact, exact, "BF16", 1.0)
    with pytest.raises(AssertionError, match="shape"):
        ref.check_numerics(best[:, None], exact, "BF16", 1.0)


def test_check_numerics_where_terms_cancel() -> None:
    exact, ours = array(1e-9), ref.round_to(array(1.1e-9), "F32")
    ref.check_numerics(ours, exact, "F32", array(1.0))
    with pytest.raises(AssertionError, match="1 ulp"):
        ref.check_numerics(ours, exact, "F32", array(1e-6))
    ref.check_numerics(array(1 + 2**-45), array(1), "F64", 1.0)
    with pytest.raises(AssertionError, match="2\\^-40"):
        ref.check_numerics(array(1 + 2**-39), array(1), "F64", 1.0)
    ref.check_numerics(array(np.inf, np.nan), array(1e39, np.nan), "F32", 1.0)
    with pytest.raises(AssertionError, match="ulp"):
        ref.check_numerics(array(np.inf), array(1.0), "F32", 1.0)


# --- tiny models --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each architecture, with a 2_Dense; not to be changed."""
    path = tmp_path_factory.mktemp("models") / request.param
    return tiny.ARCHITECTURES[request.param](path, 3, dense=True)


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """A MiniLM with a 2_Dense and an integer tensor."""
    return tiny.build_minilm(tmp_path / "minilm", 0, dense=True, position_ids=True)


def assert_same_tensors(left: Path, right: Path) -> None:
    """Names, dtypes, shapes and values agree."""
    ours, theirs = tiny.read_tensors(left), tiny.read_tensors(right)
    assert list(ours) == list(theirs)
    for name, (dtype, values) in ours.items():
        assert dtype == theirs[name][0]
        assert np.array_equal(values, theirs[name][1]), name
        assert values.shape == theirs[name][1].shape


def test_a_tiny_model_loads_and_embeds(folder: Path) -> None:
    vectors = tiny.embed(folder, SENTENCES)
    assert vectors.dtype == np.float32
    assert vectors.shape == (2, 16)
    assert np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_read_tensors_reads_what_the_model_holds(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device="cpu")
    held = dict(model[0].model.state_dict())
    held |= {f"2_Dense/{name}": tensor for name, tensor in model[2].state_dict().items()}
    tensors = tiny.read_tensors(folder)
    assert "2_Dense/linear.weight" in tensors
    for name, (dtype, values) in tensors.items():
        assert dtype == "F32"
        assert np.array_equal(values, held[name].numpy()), name
        assert values.std() > 0, f"{name} is constant, as in no trained model"
    assert set(held) - set(tensors) <= {
        "encoder.embed_tokens.weight"
    }  # T5 ties it to shared.weight


def test_weights_follow_from_the_seed(folder: Path, tmp_path: Path) -> None:
    build = tiny.ARCHITECTURES[folder.name]
    assert_same_tensors(build(tmp_path / "again", 3, dense=True), folder)
    other = tiny.read_tensors(build(tmp_path / "other", 4, dense=True))
    for name, (_, values) in tiny.read_tensors(folder).items():
        assert not np.array_equal(values, other[name][1]), name


def test_options_reach_the_folder(tmp_path: Path) -> None:
    path = tiny.build_minilm(
        tmp_path / "m", 0, pooling="cls", prompts={"query": "find: "}, normalize=False, layers=3
    )
    assert json.loads((path / "1_Pooling" / "config.json").read_text())["pooling_mode"] == "cls"
    settings = json.loads((path / "config_sentence_transformers.json").read_text())
    assert settings["prompts"]["query"] == "find: "
    assert len(json.loads((path / "modules.json").read_text())) == 2
    assert "encoder.layer.2.output.dense.weight" in tiny.read_tensors(path)
    plain, prompted = tiny.embed(path, SENTENCES), tiny.embed(path, SENTENCES, prompt_name="query")
    assert np.array_equal(prompted, tiny.embed(path, [f"find: {text}" for text in SENTENCES]))
    assert not np.array_equal(plain, prompted)


def test_perturb_moves_every_float_tensor_a_little(folder: Path, tmp_path: Path) -> None:
    target = tiny.perturb(folder, tmp_path / "tuned", seed=1, scale=0.05)
    before, after = tiny.read_tensors(folder), tiny.read_tensors(target)
    assert list(before) == list(after)
    for name, (dtype, values) in before.items():
        assert after[name][0] == dtype
        ratio = np.std(after[name][1] - values) / np.std(values)
        assert 0.05 / 2 < ratio < 0.05 * 2, name
    files = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (folder, target)]
    assert files[0] == files[1]
    moved = np.abs(tiny.embed(folder, SENTENCES) - tiny.embed(target, SENTENCES)).max()
    assert 0 < moved < 0.2


def test_perturb_does_not_depend_on_sharding(minilm: Path, tmp_path: Path) -> None:
    first = tiny.shard(tiny.perturb(minilm, tmp_path / "a", seed=1), 30000)
    second = tiny.perturb(tiny.shard(minilm, 30000), tmp_path / "b", seed=1)
    assert_same_tensors(first, second)
    dtype, values = tiny.read_tensors(first)["embeddings.position_ids"]
    assert dtype == "I64"
    assert values.dtype == np.int64
    assert values.tolist() == [list(range(tiny.MAX_TOKENS))]


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")]
)
def test_cast_rounds_and_declares_the_dtype(dtype: str, stored: str, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    before = tiny.read_tensors(minilm)
    after = tiny.read_tensors(tiny.cast(minilm, dtype))
    for name, (old, values) in before.items():
        assert after[name][0] == ("I64" if old == "I64" else stored)
        expected = values if old == "I64" else ref.round_to(values, stored)
        assert np.array_equal(after[name][1], expected), name
    model = SentenceTransformer(str(minilm), device="cpu")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert np.isfinite(model.encode(SENTENCES, show_progress_bar=False)).all()


def test_a_sharded_model_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    target = tiny.perturb(folder, tmp_path / "sharded", seed=0, scale=0.0)
    tiny.shard(target, 40000)
    assert not (target / "model.safetensors").exists()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(target.glob("*.safetensors"))
    assert [f.name for f in files] == sorted(set(index["weight_map"].values()))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same_tensors(target, folder)
    assert np.array_equal(tiny.embed(target, SENTENCES), tiny.embed(folder, SENTENCES))


def test_an_index_is_that_of_save_pretrained(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    kind = AutoConfig.from_pretrained(folder).model_type
    model = (T5EncoderModel if kind == "t5" else AutoModel).from_pretrained(folder)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=40000)
    ours = tiny.shard(tiny.perturb(folder, tmp_path / "ours", seed=0, scale=0.0), 40000)
    name = "model.safetensors.index.json"
    left, right = ((p / name).read_text() for p in (ours, tmp_path / "theirs"))
    assert json.loads(left)["metadata"] == json.loads(right)["metadata"]
    assert set(json.loads(left)["weight_map"]) == set(json.loads(right)["weight_map"])


def test_shard_refuses_to_do_nothing(minilm: Path) -> None:
    with pytest.raises(ValueError, match="one shard"):
        tiny.shard(minilm, 10**9)
    assert (minilm / "model.safetensors").exists()


@pytest.mark.parametrize("prepare", [lambda path: path, lambda path: tiny.shard(path, 30000)])
def test_pickles_hold_the_same_tensors(
    prepare: Callable[[Path], Path], minilm: Path, tmp_path: Path
) -> None:
    source = prepare(tiny.cast(minilm, "bfloat16"))
    target = tiny.to_pickle(tiny.perturb(source, tmp_path / "pickled", seed=0, scale=0.0))
    files = sorted(target.rglob("*.bin"))
    assert target / "2_Dense" / "pytorch_model.bin" in files
    assert all(zipfile.is_zipfile(file) for file in files)
    assert not list(target.rglob("*.safetensors*"))
    assert_same_tensors(target, source)
    assert np.array_equal(tiny.embed(target, SENTENCES), tiny.embed(source, SENTENCES))
    tiny.cast(tiny.perturb(target, tmp_path / "both", seed=0), "float32")


def test_read_tensors_refuses_contradictions(minilm: Path) -> None:
    single = (minilm / "model.safetensors").read_bytes()
    index = tiny.shard(minilm, 30000) / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    bad = {
        **good,
        "weight_map": {**good["weight_map"], "ghost": "model-00001-of-00002.safetensors"},
    }
    index.write_text(json.dumps(bad))
    with pytest.raises(ValueError, match="does not list"):
        tiny.read_tensors(minilm)
    index.write_text(json.dumps(good))
    (minilm / "model.safetensors").write_bytes(single)
    with pytest.raises(ValueError, match=r"is in .* and in"):
        tiny.read_tensors(minilm)
