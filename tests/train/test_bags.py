"""Members: the rows of each, what they depend on, and what they do not."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mergekit_embed.errors import DataError
from mergekit_embed.train.bags import Member, log_gamma, members, mixture, shared
from mergekit_embed.train.data import open_datasets
from mergekit_embed.train.draws import distinct, draws, key_of, shuffled, uniforms
from mergekit_embed.train.specs import Mixed

from .plans import (
    half_up,
    hollow,
    identities,
    key,
    least,
    plan_of,
    rows_of,
    splitmix,
    write_rows,
)

SIZES = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(2, 300), min_size=1)
RATIOS = st.one_of(st.integers(1, 100), st.decimals("0.5", 100, places=2).map(lambda d: float(d)))


def bags(sizes: dict[str, int], listed: list[Any], **more: Any) -> dict[str, Member]:
    plan = plan_of({name: {} for name in sizes}, members=listed, **more)
    return {member.name: member for member in members(plan, hollow(plan, sizes))}


def rows(member: Member) -> dict[str, list[int]]:
    return {name: numbers.tolist() for name, numbers in member.rows.items()}


# --- draws --------------------------------------------------------------------------------


@given(
    st.lists(st.one_of(st.integers(0, 2**62), st.text()), max_size=4),
    st.lists(st.integers(0, 2**64 - 1), max_size=50),
)
def test_a_draw_is_splitmix_of_key_and_identity(parts: list[Any], ids: list[int]) -> None:
    found = draws(key_of(*parts), np.array(ids, dtype=np.uint64))
    assert found.tolist() == [splitmix(key(*parts), i) for i in ids]
    order = shuffled(key_of(*parts), np.array(ids, dtype=np.uint64))
    assert order.tolist() == sorted(range(len(ids)), key=lambda i: (found[i], i))


def test_draws_of_today_are_those_of_the_first_version() -> None:
    assert key_of("rows", 0, "questions", "bag-20") == 0xCF0521F663F32533
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x6C45D188009454F]
    assert draws(0, np.arange(3, dtype=np.uint64)).tolist() == first


def test_draws_are_even_and_keys_have_nothing_in_common() -> None:
    ids = np.arange(40_000, dtype=np.uint64)
    first, second = draws(key_of("x", 1), ids), draws(key_of("x", 2), ids)
    for drawn in (first, second):
        counts = np.bincount((drawn >> np.uint64(60)).astype(np.int64), minlength=16)
        assert ((counts - 2500) ** 2 / 2500).sum() < 45  # chi-square of 15 degrees, p = 1e-4
    a, b = (drawn / 2.0**64 for drawn in (first, second))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 200


@given(st.lists(st.integers(0, 5), max_size=60))
def test_equal_rows_get_identities_of_their_own(ids: list[int]) -> None:
    given_ids = np.array(ids, dtype=np.uint64)
    found = distinct(given_ids)
    assert len(set(found.tolist())) == len(ids)
    for i, one in enumerate(ids):
        if one not in ids[:i]:
            assert found[i] == one
    shorter = distinct(given_ids[:-1])
    assert shorter.tolist() == found[:-1].tolist()


# --- ratios -------------------------------------------------------------------------------


@given(SIZES, RATIOS, st.integers(0, 5))
def test_a_bag_has_its_ratio_to_the_row(sizes: dict[str, int], ratio: float, seed: int) -> None:
    plan = plan_of({name: {} for name in sizes}, members=[{"name": "m", "ratio": ratio}], seed=seed)
    datasets = hollow(plan, sizes)
    wanted = {name: half_up(Fraction(str(ratio)), n) for name, n in sizes.items()}
    if not any(wanted.values()):
        with pytest.raises(DataError, match="the member m has no rows"):
            members(plan, datasets)
        return
    (member,) = members(plan, datasets)
    for name, count in wanted.items():
        ids = [int(i) for i in datasets[name].identities]
        assert rows(member).get(name, []) == least(ids, count, seed, name, "m")


@given(SIZES, RATIOS)
def test_a_complement_is_exactly_the_rest(sizes: dict[str, int], ratio: float) -> None:
    counts = [half_up(Fraction(str(ratio)), n) for n in sizes.values()]
    assume(0 < sum(counts) < sum(sizes.values()))
    found = bags(sizes, [{"name": "one", "ratio": ratio}, {"complement": "one"}])
    one, rest = rows(found["one"]), rows(found["one-rest"])
    for name, n in sizes.items():
        assert sorted(one.get(name, []) + rest.get(name, [])) == list(range(n))


def test_halves_are_as_large_to_one_row_of_each_data_set() -> None:
    found = bags({"a": 101, "b": 40}, [50, {"complement": "bag-50"}])
    assert {n: len(r) for n, r in found["bag-50"].rows.items()} == {"a": 51, "b": 20}
    assert {n: len(r) for n, r in found["bag-50-rest"].rows.items()} == {"a": 50, "b": 20}


def test_a_bag_depends_on_seed_data_set_and_member_and_on_nothing_else() -> None:
    alone = rows(bags({"a": 200}, [30])["bag-30"])
    more = bags({"b": 70, "a": 200}, [80, 30, {"each": "dataset"}], training={"epochs": 3})
    assert rows(more["bag-30"])["a"] == alone["a"]
    assert rows(bags({"a": 200}, [30], seed=1)["bag-30"]) != alone
    assert rows(bags({"a": 200}, [{"name": "x", "ratio": 30}])["x"]) != alone
    assert rows(bags({"a": 200}, [{"ratio": 30, "seed": 1}])["bag-30"]) != alone
    twice = bags({"a": 200, "b": 200}, [60, 60])
    assert set(twice) == {"bag-60", "bag-60-2"}
    assert len({json.dumps(r) for m in twice.values() for r in rows(m).values()}) == 4


def test_bags_are_independent_of_each_other() -> None:
    found = bags({"a": 20_000}, [50, 50, 20])
    one, two, three = (set(rows(member)["a"]) for member in found.values())
    assert abs(len(one & two) - 5000) < 5 * math.sqrt(20_000 * 0.25 * 0.75)
    assert abs(len(one & three) - 2000) < 5 * math.sqrt(20_000 * 0.1 * 0.9)


@given(st.integers(2, 200), st.integers(1, 99), st.integers(1, 99))
def test_members_that_draw_by_one_name_are_nested(n: int, one: int, two: int) -> None:
    listed = [
        {"name": "all", "ratio": 100},
        {"name": "one", "ratio": {"a": one}, "draw": "core"},
        {"name": "two", "ratio": {"a": two, "b": 100}, "draw": "core"},
    ]
    sizes = {"a": n, "b": 3}
    assume(min(half_up(Fraction(one), n), half_up(Fraction(two), n)) > 0)
    found = bags(sizes, listed)
    small, large = sorted((set(rows(found[m])["a"]) for m in ("one", "two")), key=len)
    assert small <= large
    assert "b" not in found["one"].rows


# --- rows are known by their content --------------------------------------------------------


def content(folder: Path, listed: list[Any], kind: str, ratio: int = 40) -> list[str]:
    """The rows of a bag, by what they say."""
    write_rows(folder / "a.jsonl", listed)
    plan = plan_of({"a": {"path": str(folder / "a.jsonl"), "kind": kind}}, members=[ratio])
    datasets = open_datasets(plan)
    (member,) = members(plan, datasets)
    return [repr(datasets["a"][int(number)]) for number in member.rows["a"]]


@pytest.mark.parametrize("kind", ["retrieval", "classification", "sts"])
def test_the_order_of_a_file_does_not_matter(kind: str, tmp_path: Path) -> None:
    listed = rows_of(kind, 90)
    assert sorted(content(tmp_path, listed, kind)) == sorted(content(tmp_path, listed[::-1], kind))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 60))
def test_rows_that_are_added_shuffle_no_others(added: int, at: int) -> None:
    before = bags({"a": 100}, [40])["bag-40"].rows["a"]
    plan = plan_of({"a": {}}, members=[40])
    (dataset,) = hollow(plan, {"a": 100}).values()
    ids = np.insert(dataset.identities, at, identities("new", added))
    grown = {"a": type(dataset)(**{**dataset.__dict__, "identities": ids})}
    (after,) = members(plan, grown)
    old = {int(i) for i in ids[after.rows["a"]]} & {int(i) for i in dataset.identities}
    kept = {int(i) for i in dataset.identities[before]}
    assert old <= kept or kept <= old
    assert after.total == half_up(Fraction(40), 100 + added)


def test_negatives_that_are_mined_change_no_bag(tmp_path: Path) -> None:
    without = content(tmp_path, rows_of("retrieval", 90), "retrieval")
    mined = content(tmp_path, rows_of("retrieval", 90, negatives=3), "retrieval")
    assert [row.partition(", positives")[0] for row in without] == [
        row.partition(", positives")[0] for row in mined
    ]


def test_rows_that_are_there_twice_are_rows_like_others(tmp_path: Path) -> None:
    listed = [{"text": "again", "label": 1}] * 300 + [{"text": "once", "label": 2}]
    write_rows(tmp_path / "a.jsonl", listed)
    entry = {"path": str(tmp_path / "a.jsonl"), "kind": "classification"}
    plan = plan_of({"a": entry}, members=[100])
    datasets = open_datasets(plan)
    assert datasets["a"].repeated == 299
    assert len(set(datasets["a"].identities.tolist())) == 301
    ids = datasets["a"].identities
    drawn = np.sort(draws(key_of("any"), ids))
    assert np.diff(drawn).max() < 2**64 * 0.06


def test_a_bag_of_today_is_that_of_the_first_version(tmp_path: Path) -> None:
    expected = {
        "retrieval": [0, 2, 9, 11, 13, 18],
        "classification": [0, 1, 5, 6, 15, 18],
        "sts": [1, 3, 4, 12, 13, 15],
    }
    for kind, numbers in expected.items():
        write_rows(tmp_path / "a.jsonl", rows_of(kind, 20))
        plan = plan_of({"a": {"path": str(tmp_path / "a.jsonl"), "kind": kind}}, members=[30])
        (member,) = members(plan, open_datasets(plan))
        assert member.rows["a"].tolist() == numbers, kind


# --- members by task, data set, cluster; mixtures -------------------------------------------


def test_there_is_a_member_for_each() -> None:
    data = {
        "a": {"cluster": "x"},
        "b": {"kind": "sts", "cluster": "y"},
        "c": {"task": "search", "cluster": "x"},
    }
    listed = [{"each": key} for key in ("task", "cluster")] + [
        {"each": "dataset", "ratio": 50, "name": "half", "tasks": ["search", "sts"]}
    ]
    plan = plan_of(data, members=listed)
    found = members(plan, hollow(plan, {"a": 10, "b": 20, "c": 30}))
    assert {m.name: {n: len(r) for n, r in m.rows.items()} for m in found} == {
        "retrieval": {"a": 10},
        "sts": {"b": 20},
        "search": {"c": 30},
        "x": {"a": 10, "c": 30},
        "y": {"b": 20},
        "half-b": {"b": 10},
        "half-c": {"c": 15},
    }


@given(
    st.integers(0, 10_000),
    st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=8),
)
def test_shares_are_whole_and_sum_to_the_total(total: int, weights: list[float]) -> None:
    assume(sum(weights) > 0)
    found = shared(total, dict(enumerate(weights)))
    assert sum(found.values()) == total
    for i, weight in enumerate(weights):
        assert abs(found[i] - total * weight / math.fsum(weights)) < 1 + 1e-6


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=6),
    st.floats(0.001, 100),
    st.integers(1, 100),
    st.integers(0, 1000),
)
def test_a_mixture_takes_what_is_wanted_and_no_more_than_there_is(
    sizes: list[int], alpha: float, percent: int, seed: int
) -> None:
    rule = Mixed(tuple(map(str, range(len(sizes)))), alpha, Fraction(percent), "mixture-1")
    counts = mixture(rule, sizes, seed)
    assert sum(counts) == half_up(Fraction(percent), sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert counts == mixture(rule, sizes, seed)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_shares_have_the_moments_of_a_dirichlet_distribution(alpha: float) -> None:
    draws_of = [
        [math.exp(log_gamma(alpha, key_of(trial, i))) for i in range(3)] for trial in range(3000)
    ]
    shares = np.array([[g / sum(gs) for g in gs] for gs in draws_of])
    variance = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    assert np.allclose(shares.mean(0), 1 / 3, atol=5 * math.sqrt(variance / 3000))
    assert np.allclose(shares.var(0), variance, rtol=0.15)
    gammas = np.array(draws_of).ravel()
    assert abs(gammas.mean() - alpha) < 5 * math.sqrt(alpha / 9000)


def test_uniform_numbers_are_never_zero() -> None:
    numbers = uniforms(3, 10_000)
    assert 0 < min(numbers) < max(numbers) <= 1
    assert abs(sum(numbers) / 10_000 - 0.5) < 5 / math.sqrt(12 * 10_000)


def test_members_of_a_mixture_differ() -> None:
    found = bags({"a": 300, "b": 300}, [{"dirichlet": {"count": 3, "percent": 40}}])
    assert list(found) == ["mixture-1", "mixture-2", "mixture-3"]
    assert {member.total for member in found.values()} == {240}
    assert len({len(member.rows.get("a", ())) for member in found.values()}) == 3


# --- members that cannot be -----------------------------------------------------------------


def test_every_member_without_rows_is_told() -> None:
    with pytest.raises(DataError) as caught:
        bags({"a": 4}, [5, 10, 50])
    assert str(caught.value) == (
        "the member bag-5 has no rows; raise its ratio\n"
        "the member bag-10 has no rows; raise its ratio"
    )


def test_a_member_needs_rows_of_two_classes() -> None:
    plan = plan_of({"a": {"kind": "classification"}}, members=[10])
    with pytest.raises(DataError, match="bag-10 has rows of one class only of a"):
        members(plan, hollow(plan, {"a": 10}))
