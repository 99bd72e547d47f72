"""The algebra by itself: properties that hold for any members, and definitions by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mergekit_embed.methods import Gram, MergeWarning, available, mixture
from mergekit_embed.methods.registry import _METHODS, Weights

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

SIZE = 12
numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


def vectors(least: int = 1, most: int = 5) -> st.SearchStrategy[np.ndarray]:
    """K vectors of `SIZE` elements: shape (K, SIZE)."""
    return st.integers(least, most).flatmap(
        lambda count: st.lists(
            st.lists(numbers, min_size=SIZE, max_size=SIZE), min_size=count, max_size=count
        ).map(np.array)
    )


def weights_for(count: int) -> np.ndarray:
    return 1.0 + np.arange(count) / 3.0


def gram_of(members: np.ndarray, base: np.ndarray | None = None) -> Gram:
    deltas = members if base is None else members - base
    return Gram(deltas @ deltas.T, np.abs(deltas).sum(axis=1))


def merged(name: str, members: np.ndarray, base: np.ndarray | None = None, **given: Any) -> Any:
    """A mixture of vectors, by the method's own coefficients."""
    method = available()[name]
    if "weight" in method.parameters and "weight" not in given:
        given["weight"] = weights_for(len(members))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)
        found = method.function(gram_of(members, base), **given)
    if base is None:
        return found @ members
    return base + found @ (members - base)


AVERAGES = ("linear", "multislerp", "karcher", "ema")
AROUND_BASE = ("multislerp", "model_stock", "delta_guided")


def close(left: Any, right: Any, scale: float) -> bool:
    return bool(np.allclose(left, right, rtol=1e-7, atol=1e-7 * max(scale, 1e-9)))


@pytest.mark.parametrize("name", AVERAGES)
@given(members=vectors(1, 1), copies=st.integers(1, 5))
def test_equal_members_give_that_member(name: str, members: np.ndarray, copies: int) -> None:
    many = np.repeat(members, copies, axis=0)
    assert close(merged(name, many), members[0], np.abs(members).max())


@pytest.mark.parametrize("name", AROUND_BASE)
@given(pair=vectors(2, 2), copies=st.integers(1, 5))
def test_equal_deltas_give_that_member(name: str, pair: np.ndarray, copies: int) -> None:
    base, member = pair
    many = np.repeat(member[None], copies, axis=0)
    assert close(merged(name, many, base), member, np.abs(pair).max())


@pytest.mark.parametrize("name", ["linear", "multislerp", "karcher"])
@given(members=vectors(2, 5), factor=st.floats(1e-6, 1e6))
def test_scaling_the_members_scales_the_result(
    name: str, members: np.ndarray, factor: float
) -> None:
    scale = np.abs(members).max() * factor
    lengths = np.linalg.norm(members, axis=1, keepdims=True)
    directions = members / np.maximum(lengths, 1e-300)
    # Directions that all but cancel turn rounding into direction.
    assume(name == "linear" or np.linalg.norm(directions.sum(axis=0)) > 1e-2)
    assert close(merged(name, members * factor), merged(name, members) * factor, scale)


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 2.0])
@given(members=vectors(2, 4))
def test_small_deltas_keep_their_share(gamma: float, members: np.ndarray) -> None:
    """A fine-tune that moved little is merged like one that moved far: nothing is clamped."""
    base = np.zeros(SIZE)
    tiny = members * 1e-12
    result = merged("delta_guided", tiny, base, gamma=gamma)
    assert close(result * 1e12, merged("delta_guided", members, base, gamma=gamma), 1e3)
    stock, tiny_stock = merged("model_stock", members, base), merged("model_stock", tiny, base)
    if np.isfinite(stock).all() and np.abs(stock).max() < 1e5:
        assert close(tiny_stock * 1e12, stock, 1e3)


@given(members=vectors(2, 5), seed=st.integers(0, 100))
def test_the_order_of_members_and_weights_does_not_matter(members: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(members))
    weight = weights_for(len(members))
    for name in ("linear", "multislerp", "karcher"):
        one = merged(name, members, weight=weight)
        other = merged(name, members[order], weight=weight[order])
        if name == "linear" or np.abs(one).max() > 1e-3:
            assert np.allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(members).max() + 1e-12)


@given(members=vectors(2, 2), t=st.floats(0, 1))
def test_slerp_goes_from_one_end_to_the_other(members: np.ndarray, t: float) -> None:
    scale = np.abs(members).max()
    assert close(merged("slerp", members, t=0.0), members[0], scale)
    assert close(merged("slerp", members, t=1.0), members[1], scale)
    turned = merged("slerp", members[::-1], t=1.0 - t)
    assert np.allclose(merged("slerp", members, t=t), turned, rtol=1e-6, atol=1e-6 * scale)


@given(members=vectors(2, 2), t=st.floats(0.01, 0.99))
def test_two_vectors_of_one_length_meet_in_every_spherical_method(
    members: np.ndarray, t: float
) -> None:
    """For two vectors the Karcher mean is a point of the arc, which slerp names by its share."""
    lengths = np.linalg.norm(members, axis=1, keepdims=True)
    assume(lengths.min() > 1e-3)
    units = members / lengths
    assume(abs(units[0] @ units[1]) < 0.99)
    weight = np.array([1.0 - t, t])
    arc = merged("nuslerp", units, weight=weight)
    centre = merged("karcher", units, weight=weight, max_iter=200, tol=1e-13)
    assert np.allclose(arc, centre, atol=1e-8)
    assert np.allclose(np.linalg.norm(merged("multislerp", units, weight=weight)), 1.0)


def test_gram_coordinates_agree_with_tensor_space() -> None:
    generator = np.random.default_rng(0)
    members = generator.standard_normal((4, 4096)) * 0.02
    base = generator.standard_normal(4096) * 0.02
    weight = weights_for(4)
    for name, exact in {
        "multislerp": reference.multislerp(members, weight),
        "karcher": reference.karcher(members, weight),
        "linear": reference.linear(members, weight),
    }.items():
        assert np.abs(merged(name, members) - exact).max() < 1e-15, name
    exact = reference.model_stock(members, base)
    assert np.abs(merged("model_stock", members, base) - exact).max() < 1e-15


def test_a_zero_vector_drops_out() -> None:
    members = np.array([[3.0, 4.0], [0.0, 0.0]])
    for name in ("multislerp", "karcher"):
        result = merged(name, members, weight=np.ones(2))
        assert np.allclose(result, [1.5, 2.0]), name  # the direction of the one, the mean length
    assert np.allclose(merged("multislerp", np.zeros((3, 4))), 0.0)
    assert np.allclose(merged("karcher", np.zeros((3, 4))), 0.0)


def test_directions_that_cancel_are_merged_linearly_with_a_warning() -> None:
    members = np.array([[1.0, 0.0], [-3.0, 0.0]])
    method = available()["multislerp"].function
    with pytest.warns(MergeWarning, match="cancel"):
        coefficients = method(gram_of(members), weight=np.ones(2))
    assert np.allclose(coefficients @ members, [-1.0, 0.0])


@pytest.mark.parametrize("weight", [[0.3, 1.0, 1.9], [0.1, 0.2, 0.3]])
def test_a_karcher_mean_of_opposite_vectors_is_not_one_of_rounding(weight: list[float]) -> None:
    """A scalar has no way round: what is opposite pulls nowhere, and noise is no direction."""
    for members in np.array([[[0.5], [-0.3], [0.2]], [[0.5], [0.3], [-0.2]]]):
        found = merged("karcher", members, weight=np.array(weight))
        assert np.allclose(found, reference.karcher(list(members), weight), rtol=1e-12)


def test_opposite_vectors_are_interpolated_linearly() -> None:
    generator = np.random.default_rng(3)
    one = generator.standard_normal(1000)
    members = np.stack([one, -1.7 * one])
    for t in (0.1, 0.5, 0.9):
        result = merged("nuslerp", members, weight=np.array([1.0 - t, t]))
        assert np.allclose(result, (1.0 - t) * members[0] + t * members[1])


def test_deltas_that_oppose_each_other_leave_the_base() -> None:
    members = np.array([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.warns(MergeWarning, match="oppose"):
        coefficients = available()["model_stock"].function(gram_of(members))
    assert np.array_equal(coefficients, [0.0, 0.0])


@given(members=vectors(1, 5), lam=st.floats(-2, 2))
def test_self_positioning_in_gram_coordinates_is_that_of_vectors(
    members: np.ndarray, lam: float
) -> None:
    lengths = np.linalg.norm(members, axis=1)
    assume(lengths.min() > 1e-3)
    units = members / lengths[:, None]
    assume(np.min(units @ units.T) > -0.99)  # close to opposite, a rounding is an angle
    weight, base = weights_for(len(members)), np.zeros(SIZE)
    found = merged("self_positioning", members, base, lambda_=lam)
    exact = reference.self_positioning(list(members), base, list(weight), lam)
    assert close(found, exact, lengths.max())
    scaled = merged("self_positioning", members, base, weight=4 * weight, lambda_=lam)
    assert np.array_equal(scaled, found)


def test_self_positioning_goes_on_where_members_cancelled() -> None:
    generator = np.random.default_rng(5)
    one, last = generator.standard_normal((2, 1000))
    members = np.stack([one, -1.7 * one, last])
    weight = np.array([1.7, 1.0, 1.35])  # the point 1 / 2.7 of the way, where the first two cancel
    found = merged("self_positioning", members, np.zeros(1000), weight=weight)
    assert np.allclose(found, np.sqrt(0.5) * last, atol=1e-12)


def test_delta_guided_by_hand() -> None:
    base, members = np.zeros(2), np.array([[3.0, 4.0], [0.0, 1.0]])
    assert np.allclose(merged("delta_guided", members, base, weight=np.ones(2)), [2.5, 3.5])
    ignored = merged("delta_guided", members, base, weight=np.ones(2), gamma=0.0)
    assert np.allclose(ignored, [1.5, 2.5])
    with_zero = np.vstack([members, base])
    damped = merged("delta_guided", with_zero, base, weight=np.ones(3), gamma=-1.0)
    assert np.allclose(damped, (members[0] / 5 + members[1]) / (1 / 5 + 1))


@pytest.mark.parametrize("name", ["linear", "multislerp", "karcher", "nuslerp", "ties"])
def test_weights_that_cancel_are_refused(name: str) -> None:
    method = available()[name]
    weight = np.array([1.0, -1.0]) if name in {"linear", "ties"} else np.zeros(2)
    others = {"density": np.ones(2)} if name == "ties" else {}
    arguments = () if method.family == "consensus" else (Gram(np.eye(2)),)
    with pytest.raises(ValueError, match="sum to zero"):
        method.function(*arguments, weight=weight, **others)


def test_coefficients_of_many_vectors_are_those_of_each() -> None:
    generator = np.random.default_rng(1)
    deltas = generator.standard_normal((7, 3, 50))
    deltas[2, 1] = 0.0
    many = Gram(deltas @ deltas.transpose(0, 2, 1))
    for name, method in available().items():
        if method.family != "mixture" or method.exactly is not None:
            continue
        given = {"weight": weights_for(3)} if "weight" in method.parameters else {}
        together = np.broadcast_to(method.function(many, **given), (7, 3))
        for index in range(7):
            alone = method.function(Gram(many.matrix[index]), **given)
            assert np.allclose(together[index], alone, rtol=1e-12), name


def test_another_package_can_add_a_method() -> None:
    @mixture("first_and_last", base="files")
    def first_and_last(gram: Gram, weight: Weights) -> Any:
        """The first and the last member, half and half."""
        found = np.zeros(gram.count)
        found[[0, -1]] = 0.5
        return found

    try:
        method = available()["first_and_last"]
        assert method.summary.startswith("The first and the last")
        assert method.parameters["weight"].per_member
    finally:
        del _METHODS["first_and_last"]


def test_a_method_whose_arguments_are_not_described_is_refused() -> None:
    with pytest.raises(TypeError, match="annotate the argument 'strength'"):

        @mixture("careless", base="files")
        def careless(gram: Gram, strength: float = 1.0) -> Any:
            return np.ones(gram.count)


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="already taken"):

        @mixture("linear", base="files")
        def linear(gram: Gram) -> Any:
            """Not the linear we know."""
            return np.ones(gram.count)
