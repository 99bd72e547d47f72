"""The references of the consensus methods are right themselves: by hand, on a few elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import reference as ref
import reference_consensus as con

SEED, TENSOR = 7, "layer.0.weight"


def array(*values: float | list[float]) -> ref.Array:
    """One float64 array of the values."""
    return np.array(values, dtype=np.float64)


def same(result: ref.Array, *values: float | list[float]) -> None:
    """Assert float64 equality but for a few roundings."""
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, array(*values), rtol=1e-13, atol=1e-15)


def normal(shape: tuple[int, ...], seed: int) -> ref.Array:
    """Random values of a shape."""
    return np.random.default_rng(seed).normal(size=shape)


# --- random numbers -----------------------------------------------------------------------


def test_splitmix64_gives_its_published_outputs() -> None:
    assert con.splitmix64(0, 1) == [0xE220A8397B1DCDAF]
    assert con.splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_draws_from_the_hash_of_seed_member_and_tensor() -> None:
    # printf '7\0001\0layer.0.weight' | b2sum -l 64, its bytes from the last to the first
    key = 0x5BC6D0F474F15479
    numbers = con.uniform(SEED, TENSOR, 1, 5)
    assert numbers.tolist() == [(z // 2**11) / 2**53 for z in con.splitmix64(key, 5)]
    assert numbers.dtype == np.float64
    assert con.uniform(SEED, TENSOR, 1, 0).shape == (0,)


def test_uniform_depends_on_everything_but_the_count() -> None:
    numbers = con.uniform(SEED, TENSOR, 0, 4000)
    assert numbers[:10].tolist() == con.uniform(SEED, TENSOR, 0, 10).tolist()
    others = [
        con.uniform(SEED + 1, TENSOR, 0, 10),
        con.uniform(SEED, "other", 0, 10),
        con.uniform(SEED, TENSOR, 1, 10),
    ]
    assert all(not np.any(other == numbers[:10]) for other in others)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 0.02


# --- combining ----------------------------------------------------------------------------


def test_combine_adds_up_and_divides_by_the_weights_of_those_that_keep() -> None:
    kept = [array(1, 2, 0, 0), array(3, 0, 0, 0)]
    masks = [np.array([True, True, True, False]), np.array([True, False, False, False])]
    same(con.combine(kept, masks, [1, 3], normalize=False, vote=False), 10, 2, 0, 0)
    same(con.combine(kept, masks, [1, 3], normalize=True, vote=False), 2.5, 2, 0, 0)
    # weights that cancel where both keep: not divided
    same(con.combine(kept, masks, [1, -1], normalize=True, vote=False), -2, 2, 0, 0)


def test_combine_by_vote_takes_the_agreeing_only() -> None:
    kept = [array(1, -1, 2, 0, 1), array(-3, 1, 1, 0, -1)]
    masks = [np.ones(5, dtype=bool)] * 2
    # totals with weights 2 and 1: -1, -1, 5, 0, 1; a zero total is +, and nothing agrees there
    same(con.combine(kept, masks, [2, 1], normalize=False, vote=True), -3, -2, 5, 0, 2)
    same(con.combine(kept, masks, [2, 1], normalize=True, vote=True), -3, -1, 5 / 3, 0, 1)
    # a total of zero between 1 and -1 counts as +
    same(con.combine([array(1), array(-1)], [masks[0][:1]] * 2, [1, 1], True, True), 1)
    # the sign is that of w d: with -1 the first member votes for the other side
    same(con.combine([array(1), array(-3)], [masks[0][:1]] * 2, [-1, 1], False, True), -4)
    # a kept zero takes part in a sum, but agrees with no sign
    same(con.combine([array(2), array(0)], [masks[0][:1]] * 2, [1, 1], True, False), 1)
    same(con.combine([array(2), array(0)], [masks[0][:1]] * 2, [1, 1], True, True), 2)
    # and the weights of those that agree may cancel: not divided
    same(con.combine([array(1), array(-3)], [masks[0][:1]] * 2, [-1, 1], True, True), -4)


# --- DARE and DELLA -----------------------------------------------------------------------


def draw(monkeypatch: pytest.MonkeyPatch, *rows: Sequence[float]) -> None:
    """Let the references draw these numbers, a row for each member."""

    def drawn(seed: int, tensor: str, member: int, count: int) -> ref.Array:
        assert (seed, tensor, count) == (SEED, TENSOR, len(rows[member]))
        return array(*rows[member])

    monkeypatch.setattr(con, "uniform", drawn)


DARE_BASE = array([10, 10], [10, 10])
DARE_MEMBERS = [array([11, 12], [7, 14]), array([18, 6], [12, 11])]  # deltas 1 2 -3 4, 8 -4 2 1


def test_dare_keeps_what_draws_below_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, [0.1, 0.6, 0.3, 0.5], [0.9, 0.2, 0.0, 0.25])
    # with densities 1/2 and 1/4: kept are 1 . -3 . and . -4 2 . (0.5 and 0.25 are not below)
    arguments = (DARE_MEMBERS, DARE_BASE, [1, 2], [0.5, 0.25], SEED, TENSOR)
    same(con.dare(*arguments, rescale=False), [11, 2], [11, 10])
    same(con.dare(*arguments, rescale=False, normalize=True), [11, 6], [10 + 1 / 3, 10])
    same(con.dare(*arguments, rescale=False, vote=True), [11, 2], [14, 10])
    same(con.dare(*arguments, rescale=False, vote=True, normalize=True), [11, 6], [12, 10])


def test_dare_rescales_by_norms_or_by_density(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, [0.1, 0.6, 0.3, 0.5], [0.9, 0.2, 0.0, 0.25])
    arguments = (DARE_MEMBERS, DARE_BASE, [1, 2], [0.5, 0.25], SEED, TENSOR)
    # norms: 10 over 4 and 15 over 6, both 2.5; densities: 2 and 4
    same(con.dare(*arguments), [12.5, -10], [12.5, 10])
    same(con.dare(*arguments, rescale="exact"), [12, -22], [20, 10])
    same(con.dare(*arguments, rescale="exact", lam=0.5), [11, -6], [15, 10])


def test_dare_at_its_ends_and_with_a_vote() -> None:
    base, members = normal((3, 4), 0), [normal((3, 4), 1), normal((3, 4), 2)]
    for rescale in (True, False, "exact"):
        none = con.dare(members, base, [1, 1], [0, 0], SEED, TENSOR, rescale=rescale)
        np.testing.assert_array_equal(none, base)
        all_of_it = con.dare(members, base, [1, 2], [1, 1], SEED, TENSOR, rescale=rescale)
        np.testing.assert_allclose(all_of_it, ref.task_arithmetic(members, base, [1, 2]), 1e-12)
    for normalize in (True, False):
        voted = con.dare(members, base, [1, 2], [1, 1], 0, "t", 0.5, normalize, vote=True)
        ties = ref.ties(members, base, [1, 2], [1, 1], lam=0.5, normalize=normalize)
        np.testing.assert_allclose(voted, ties, rtol=1e-13)


def test_della_probability_is_linear_in_the_rank_in_the_row() -> None:
    delta = array([3, -1, 2], [0, 5, -9])
    same(con.della_probabilities(delta, 0.5, 0.2), [0.7, 0.3, 0.5], [0.3, 0.5, 0.7])
    same(con.della_probabilities(delta[0], 0.5, 0.2), 0.7, 0.3, 0.5)
    # ranks 0 and 3 but for two equal magnitudes at ranks 1 and 2, which share 1.5
    same(con.della_probabilities(array(1, -2, 2, 8), 0.5, 0.3), 0.2, 0.5, 0.5, 0.8)
    same(con.della_probabilities(array(4, -4, 4), 0.5, 0.3), 0.5, 0.5, 0.5)


def test_della_clips_the_ends_before_it_interpolates() -> None:
    same(con.della_probabilities(array(1, 2, 3), 0.9, 0.3), 0.6, 0.8, 1.0)
    same(con.della_probabilities(array(1, 2, 3), 0.1, 0.3), 0.0, 0.2, 0.4)
    same(con.della_probabilities(array([1], [2]), 0.9, 0.3), [0.8], [0.8])
    scalar = con.della_probabilities(np.float64(3.0) * np.ones(()), 0.5, 0.1)
    assert scalar.shape == ()
    assert float(scalar) == 0.5
    assert con.della_probabilities(np.zeros((0, 3)), 0.5, 0.1).shape == (0, 3)


def test_della_keeps_by_these_probabilities_and_rescales(monkeypatch: pytest.MonkeyPatch) -> None:
    base, member = np.ones((2, 3)), array([2, -1, 5], [7, 1, 2])  # deltas 1 -2 4 and 6 0 1
    # with 0.5 -/+ 0.3 the probabilities are 0.2 0.5 0.8 and 0.8 0.2 0.5: kept are . -2 4 and 6 . .
    draw(monkeypatch, [0.3, 0.4, 0.7, 0.1, 0.2, 0.6])
    for vote in (True, False):
        arguments = ([member], base, [2], [0.5], [0.3], SEED, TENSOR)
        plain = con.della(*arguments, normalize=False, rescale=False, vote=vote)
        same(plain, [1, -3, 9], [13, 1, 1])
        # the norm of the whole tensor, 14 over 12, not that of a row
        by_norm = con.della(*arguments, normalize=True, vote=vote)
        same(by_norm, [1, 1 - 7 / 3, 1 + 14 / 3], [8, 1, 1])


def test_della_without_epsilon_is_dare() -> None:
    base, members = normal((3, 4), 0), [normal((3, 4), 1), normal((3, 4), 2)]
    for vote in (True, False):
        della = con.della(members, base, [1, 2], [0.5, 0.6], [0, 0], 3, "t", 1.0, True, vote=vote)
        dare = con.dare(members, base, [1, 2], [0.5, 0.6], 3, "t", 1.0, True, vote=vote)
        np.testing.assert_allclose(della, dare, rtol=1e-13)


# --- Breadcrumbs --------------------------------------------------------------------------


def test_breadcrumbs_drops_the_largest_and_keeps_the_next() -> None:
    base, member = array(0, 0, 0, 0, 0), array(5, -4, 3, -2, 1)
    same(con.breadcrumbs([member], base, [1], [0.4], [0.2]), 0, -4, 3, 0, 0)
    same(con.breadcrumbs([member], base, [1], [0.4], [0.2], rescale=True), 0, -60 / 7, 45 / 7, 0, 0)
    same(con.breadcrumbs([member], base, [2], [0.4], [0.0], lam=0.5), 5, -4, 0, 0, 0)
    # density + gamma beyond 1: all that is left
    same(con.breadcrumbs([member], base, [1], [1.0], [0.4]), 0, 0, 3, -2, 1)
    # never everything dropped, never nothing kept
    same(con.breadcrumbs([member], base, [1], [0.0], [1.0]), 0, 0, 0, 0, 1)
    same(con.breadcrumbs([member[:1]], base[:1], [1], [0.1], [0.9]), 5)


def test_breadcrumbs_keeps_what_ties_with_either_end() -> None:
    delta = array(9, 3, -3, 2, -1, 1, 0)  # 2 of 7 dropped, a 3 among them; 3 kept, one 1 among them
    kept = con.keep_between(delta, 3 / 7 + 1e-9, 2 / 7 + 1e-9)
    assert kept.tolist() == [False, True, True, True, True, True, False]
    assert con.keep_between(np.zeros((2, 2)), 0.25, 0.25).all()
    assert con.keep_between(np.zeros((0, 2)), 0.5, 0.1).shape == (0, 2)
    assert con.keep_between(np.ones(()), 0.5, 0.5).item() is True


def test_breadcrumbs_divides_by_the_weights_of_those_that_keep() -> None:
    base, members = array(0, 0), [array(2, 1), array(1, -4)]
    # with a density of 1/2 the first member keeps 2, the second -4; with 1 both keep both
    same(con.breadcrumbs(members, base, [1, 3], [0.5, 0.5], [0, 0], normalize=True), 2, -4)
    same(con.breadcrumbs(members, base, [1, 3], [1, 1], [0, 0], normalize=True), 1.25, -2.75)


def test_breadcrumbs_that_drop_none_and_vote_are_ties() -> None:
    base, members = normal((5, 7), 0), [normal((5, 7), seed) for seed in (1, 2, 3)]
    for normalize in (True, False):
        for rescale in (True, False):
            arguments = (members, base, [1, 2, -0.5], [0.3, 0.6, 1])
            ours = con.breadcrumbs(*arguments, [0, 0, 0], 0.7, normalize, rescale, vote=True)
            ties = ref.ties(*arguments, 0.7, normalize, rescale)
            np.testing.assert_allclose(ours, ties, rtol=1e-12)


# --- SCE ----------------------------------------------------------------------------------


def test_sce_weighs_by_the_squares_of_what_varies() -> None:
    base = array(1, 1, 1, 1)
    members = [array(4, 1, 2, 1), array(0, 1, 2, 3)]  # deltas 3 0 1 0 and -1 0 1 2
    # variances 4 0 0 1: half of four are the first and the last; squares 9 and 5
    w = [9 / 14, 5 / 14]
    same(con.sce(members, base, 0.5), 1 + w[0] * 3, 1, 1, 1 + w[1] * 2)
    same(con.sce(members, base, 0.5, lam=2, normalize=True), 7, 1, 1, 5)
    # one of four: squares 9 and 1
    same(con.sce(members, base, 0.1), 1 + 0.9 * 3, 1, 1, 1)
    # three of four: the zero variances tie, so all four; squares 10 and 6
    w = [10 / 16, 6 / 16]
    same(con.sce(members, base, 0.75), 1 + w[0] * 3, 1, 2, 1 + w[1] * 2)
    np.testing.assert_array_equal(con.sce(members, base), con.sce(members, base, 0.75))


def test_sce_keeps_all_elements_that_vary_alike() -> None:
    # three numbers in all six orders have one variance, so all six places tie for the largest,
    # however float64 would round a sum in another order; equal squares: each member weighs a third
    for a, b in ((1.0, 3.0), (0.1, 0.3)):
        columns = list(permutations((0.0, a, b)))
        members = [array(*(column[k] for column in columns)) for k in range(3)]
        same(con.sce(members, np.zeros(6), 0.01), *[(a + b) / 3] * 6)
    # they tie shifted and negated: 0 1 3, 5 6 8 and 0 -1 -3; squares 25, 38, 82
    members = [array(0, 5, 0), array(1, 6, -1), array(3, 8, -3)]
    mean = (25 * 5 + 38 * 6 + 82 * 8) / 145
    lone = (38 + 3 * 82) / 145
    same(con.sce(members, np.zeros(3), 0.01), lone, mean, -lone)


def test_sce_multiplies_the_shares_by_the_weights() -> None:
    base, members = array(0, 0), [array(3, 0), array(0, -1)]  # shares 9/10 and 1/10
    same(con.sce(members, base, weights=[2, -5]), 5.4, 0.5)
    same(con.sce(members, base, normalize=True, weights=[2, -5]), 3, -1)


def test_sce_is_scale_free_and_defined_without_a_change() -> None:
    base = array(0, 0)
    members = [array(3, 1), array(-1, 2)]
    tiny = [1e-9 * member for member in members]
    np.testing.assert_allclose(con.sce(tiny, base), 1e-9 * con.sce(members, base), rtol=1e-13)
    same(con.sce([base, base], base), 0, 0)
    # one member alone, or equal members, vary nowhere: every element ties
    same(con.sce([array(3, 1)], base, 0.5), 3, 1)
    for count in (3, 5, 7):
        same(con.sce([array(0.1, 0.7)] * count, base, 0.5, normalize=True), 0.1, 0.7)


# --- robust centres -----------------------------------------------------------------------


def test_median_is_the_middle_or_the_mean_of_the_middle_two() -> None:
    members = [array(1, 9), array(5, 0), array(2, 3)]
    same(con.median(members), 2, 3)
    same(con.median([*members, array(3, 100)]), 2.5, 6)
    assert con.median([np.ones(()), np.zeros(())]).shape == ()


def test_trimmed_mean_never_trims_the_middle() -> None:
    members = [array(value) for value in (100, 1, 2, 6, -50)]
    same(con.trimmed_mean(members), 3)
    same(con.trimmed_mean(members, 0.0), 59 / 5)
    same(con.trimmed_mean(members, 0.19), 59 / 5)
    same(con.trimmed_mean(members, 0.5), 2)
    same(con.trimmed_mean(members[:4], 0.5), 4)
    same(con.trimmed_mean(members[:2], 0.5), 50.5)


# --- one member and the base --------------------------------------------------------------


def test_nearswap_goes_a_step_of_t_at_most() -> None:
    base = array(1, 1, 1, 1)
    same(con.nearswap(array(1.5, 3, 0, 1), base, 0.5), 1.5, 1.5, 0.5, 1)
    # below 1e-6 the step is a share of the delta
    same(con.nearswap(array(1e-7), array(0), 5e-7), 5e-8)
    same(con.nearswap(array(2, 3), array(0, 1), 0.0), 0, 1)


def test_arcee_fusion_takes_what_is_outstanding() -> None:
    base = np.zeros((2, 4))
    member = array([0, 0, 0, 0], [0, 0, 0, 3])
    # only one importance is not zero, so all quartiles are: everything is at least 0
    same(con.arcee_fusion(member, base), *member.tolist())
    # one row: the importances are abs(d) times one number, so abs(d) decides
    row = array(1, -2, 3, -4, 20)  # quartiles 2, 3, 4: the threshold is 3 + 1.5 * 2
    same(con.arcee_fusion(row, np.zeros(5)), 0, 0, 0, 0, 20)
    same(con.arcee_fusion(row + 1, np.ones(5)), 1, 1, 1, 1, 21)
    same(con.arcee_fusion(np.arange(4.0), np.zeros(4)), 0, 0, 0, 0)  # 1.5 + 1.5 * 1.5 > 3


def test_arcee_fusion_weighs_a_row_by_its_divergence() -> None:
    # softmax of log values is these values over their sum: p = 3/4, 1/4 and q = 1/2, 1/2
    moved, still = array(math.log(3), 0), array(5, 5)
    member, base = np.stack([moved, still]), np.zeros((2, 2))
    # a row only shifted diverges by nothing, however large its delta: the importances are one
    # number and three zeros, the threshold 3/8 of that number
    same(con.arcee_fusion(member, base), [math.log(3), 0], [0, 0])


def test_divergence_is_the_one_of_the_softmaxes() -> None:
    p, q = [3 / 4 + 1e-8, 1 / 4 + 1e-8], 1 / 2 + 1e-8
    wanted = p[0] * math.log(p[0] / q) + p[1] * math.log(p[1] / q)
    assert con._divergence(array(math.log(3), 0), array(0, 0)) == pytest.approx(wanted, rel=1e-13)
    assert wanted == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-6)
    # to the second order it is q (1 - q) d^2 / 2
    assert con._divergence(array(1e-9, 0), array(0, 0)) == pytest.approx(1e-18 / 8, rel=1e-5)


def test_arcee_fusion_decides_small_changes_like_large_ones() -> None:
    # A pair with the values a, b diverges by (d0 - d1)^2 / (4 + 4 cosh(a - b)), to the first order:
    # times 2e16, 19.94, 0.98, 1.77 and 2.77. The importances, times 2e24, are 59.8 119.6, 2.0 0,
    # 5.3 0 and 24.9 13.8; the quartiles 1.5, 9.6 and 33.6, the threshold 57.8.
    base = array([0, 0.25], [0.5, 0.75], [-0.75, 0.25], [0.75, -0.5])
    member = base + 1e-8 * array([-3, 6], [2, 0], [3, 0], [9, 5])
    expected = base.copy()
    expected[0] = member[0]
    np.testing.assert_allclose(con.arcee_fusion(member, base), expected, rtol=0, atol=1e-15)


def test_arcee_fusion_of_a_scalar_or_of_nothing() -> None:
    scalar = con.arcee_fusion(np.full((), 3.0), np.full((), 2.0))  # importance and threshold are 0
    assert scalar.shape == ()
    assert float(scalar) == 3.0
    assert con.arcee_fusion(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0, 4)
    same(con.arcee_fusion(array(1, 2), array(1, 2)), 1, 2)


# --- RAM ----------------------------------------------------------------------------------

RAM_BASE = array(1, 1, 1, 1, 1)
RAM_DELTAS = [array(4, 2, 0, 1e-6, 0), array(0, 4, -3, 0, 5)]


def test_ram_keeps_unique_changes_and_averages_shared_ones() -> None:
    members = [RAM_BASE + delta for delta in RAM_DELTAS]
    same(con.ram(members, RAM_BASE), 5, 4, -2, 1, 6)
    same(con.ram(members, RAM_BASE, epsilon=2.5), 5, 5, -2, 1, 6)
    same(con.ram([*members, RAM_BASE + 3], RAM_BASE), 4.5, 4, 1, 4, 5)
    same(con.ram([array(3)], array(0), epsilon=3), 0)  # not more than epsilon


def test_ramplus_enlarges_unique_changes_by_what_is_shared() -> None:
    members = [RAM_BASE + delta for delta in RAM_DELTAS]
    # rho is 1 / 1 for the first member, 1 / 2 for the second
    same(con.ramplus_tl(members, RAM_BASE, alpha=10, r=0.2), 5.8, 4, -2.3, 1, 6.5)
    same(con.ramplus_tl(members, RAM_BASE), 5.08, 4, -2.06, 1, 6.1)
    same(con.ramplus_tl(members, RAM_BASE, r=0.0), 5, 4, -2, 1, 6)
    shared_only = [array(1, 2), array(3, 4)]
    same(con.ramplus_tl(shared_only, array(0, 0)), 2, 3)
    same(con.ramplus_tl([array(1, 2)], array(0, 0)), 1, 2)  # nothing is shared: rho is 0


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_every_method_keeps_the_shape(shape: tuple[int, ...]) -> None:
    base, members = normal(shape, 0), [normal(shape, 1), normal(shape, 2)]
    base, members = np.asarray(base), [np.asarray(member) for member in members]
    halves = [0.5, 0.5]
    results = [
        con.dare(members, base, halves, halves, SEED, TENSOR),
        con.della(members, base, halves, halves, [0.1, 0.1], SEED, TENSOR),
        con.breadcrumbs(members, base, halves, halves, [0.1, 0.1]),
        con.sce(members, base, 0.5),
        con.median(members),
        con.trimmed_mean(members),
        con.nearswap(members[0], base, 0.1),
        con.arcee_fusion(members[0], base),
        con.ram(members, base),
        con.ramplus_tl(members, base),
    ]
    assert all(result.shape == shape and result.dtype == np.float64 for result in results)
