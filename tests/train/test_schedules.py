"""Schedules: batches of full size, each row once an epoch, in the order that is promised."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mergekit_embed.errors import UsageError
from mergekit_embed.train.bags import Member, members
from mergekit_embed.train.data import Dataset
from mergekit_embed.train.schedules import ORDERS, Batch, schedule, walk
from mergekit_embed.train.specs import TrainingPlan

from . import reference_schedules as reference
from .plans import close, hollow, plan_of

DATA: dict[str, dict[str, Any]] = {
    "a": {"batch_size": 4},
    "b": {"batch_size": 4, "task": "search"},
    "c": {"batch_size": 3, "kind": "sts"},
    "d": {"batch_size": 7, "kind": "pair", "task": "search"},
}
SIZES = st.fixed_dictionaries(
    {"a": st.integers(4, 60)},
    optional={name: st.integers(1, 60) for name in "bcd"},
)
ORDER = st.sampled_from(sorted(ORDERS))

Drawn = tuple[TrainingPlan, Member, Mapping[str, Dataset]]


def drawn(sizes: Mapping[str, int], order: Any, ratio: float = 100, **more: Any) -> Drawn:
    data = {name: entry for name, entry in DATA.items() if name in sizes}
    if order == "two_stage":
        order = {"name": order, "first": ["a"]}
    plan = plan_of(data, members=[ratio], schedule=order, **more)
    datasets = hollow(plan, sizes)
    return plan, members(plan, datasets)[0], datasets


def rows(batches: Any) -> list[list[tuple[str, int]]]:
    return [batch.rows() for batch in batches]


def reference_bag(found: Drawn, epoch: int) -> reference.Bag:
    plan, member, datasets = found
    return reference.Bag(
        name=member.name,
        rows={name: member.rows[name].tolist() for name in datasets if name in member.rows},
        identities={name: [int(i) for i in d.identities] for name, d in datasets.items()},
        sizes={name: spec.batch_size for name, spec in plan.datasets.items()},
        tasks={name: spec.task for name, spec in plan.datasets.items()},
        seed=plan.seed,
        epoch=epoch,
    )


def by_reference(order: str, found: Drawn, epoch: int) -> list[list[tuple[str, int]]]:
    bag = reference_bag(found, epoch)
    if order == "two_stage":
        return reference.staged(bag, [["a"], [name for name in bag.rows if name != "a"]])
    if order == "row_shuffled":
        alike = [name for name in bag.rows if name in {"a", "b"}]
        others = [[name] for name in bag.rows if name not in {"a", "b"}]
        return reference.row_shuffled(bag, [alike, *others])
    if order == "size_power":
        return reference.size_power(bag, 2)
    return getattr(reference, order)(bag)


# --- all of them ----------------------------------------------------------------------------


@settings(deadline=None)
@given(SIZES, ORDER, st.sampled_from([100, 70]), st.integers(0, 3), st.integers(0, 3))
def test_every_schedule_is_that_of_its_description(
    sizes: dict[str, int], order: str, ratio: float, seed: int, epoch: int
) -> None:
    assume(sizes["a"] * ratio >= 400)
    assume(order != "two_stage" or len(sizes) > 1)
    told = {"name": order, "alpha": 2} if order == "size_power" else order
    found = drawn(sizes, told, ratio, seed=seed)
    assert rows(schedule(*found, epoch)) == by_reference(order, found, epoch)


@settings(deadline=None)
@given(SIZES, ORDER, st.integers(0, 3))
def test_batches_are_full_and_no_row_comes_twice_in_an_epoch(
    sizes: dict[str, int], order: str, epoch: int
) -> None:
    assume(order != "two_stage" or len(sizes) > 1)
    found = drawn(sizes, order)
    batches = rows(schedule(*found, epoch))
    for batch in batches:
        (size,) = {DATA[name]["batch_size"] for name, _ in batch}
        assert len(batch) == size == len(set(batch))
    if order != "size_power":
        seen = [row for batch in batches for row in batch]
        assert len(seen) == len(set(seen))
    if order not in {"row_shuffled", "size_power"}:
        assert all(len({name for name, _ in batch}) == 1 for batch in batches)
        counts = Counter(batch[0][0] for batch in batches)
        wanted = {name: n // DATA[name]["batch_size"] for name, n in sizes.items()}
        assert counts == Counter({name: n for name, n in wanted.items() if n})


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_epochs_differ_and_the_same_epoch_is_the_same(order: str) -> None:
    found = drawn({"a": 50, "b": 41, "c": 32, "d": 60}, order)
    first, second = (rows(schedule(*found, epoch)) for epoch in (0, 1))
    assert first != second
    again = drawn({"a": 50, "b": 41, "c": 32, "d": 60}, order)
    assert rows(schedule(*again, 0)) == first
    other = drawn({"a": 50, "b": 41, "c": 32, "d": 60}, order, seed=1)
    assert rows(schedule(*other, 0)) != first


def test_what_is_left_over_changes_from_epoch_to_epoch() -> None:
    found = drawn({"a": 6}, "batch_shuffled")
    seen = {row for epoch in range(20) for batch in rows(schedule(*found, epoch)) for row in batch}
    assert len(seen) == 6


# --- batch-level shuffling --------------------------------------------------------------------


def test_a_data_set_is_as_frequent_as_it_is_large_at_every_step() -> None:
    found = drawn({"a": 40, "b": 80, "c": 15}, "batch_shuffled")
    epochs = [schedule(*found, epoch) for epoch in range(1500)]
    for step in (0, 17, 34):
        counts = Counter(epoch[step].names[0] for epoch in epochs)
        for name, batches in {"a": 10, "b": 20, "c": 5}.items():
            assert close(counts[name] / 1500, batches / 35, 1500, 0.5), (step, name)


def test_the_order_of_two_batches_does_not_depend_on_other_data_sets() -> None:
    alone = rows(schedule(*drawn({"a": 40, "c": 30}, "batch_shuffled"), 0))
    among = rows(schedule(*drawn({"a": 40, "b": 60, "c": 30, "d": 50}, "batch_shuffled"), 0))
    assert [batch for batch in among if batch[0][0] in "ac"] == alone


# --- the others -------------------------------------------------------------------------------


def runs(found: Drawn) -> list[str]:
    """The data sets of an epoch's batches, without what is repeated in a row."""
    return [name for name, _ in itertools.groupby(b[0][0] for b in rows(schedule(*found, 0)))]


def test_data_sets_come_one_after_the_other() -> None:
    assert runs(drawn({"a": 40, "b": 40, "c": 40, "d": 40}, "dataset_sequential")) == list("abcd")


def test_tasks_come_one_after_the_other() -> None:
    found = drawn({"a": 40, "b": 80, "c": 40, "d": 80}, "task_sequential")
    order = runs(found)
    assert order[0] == "a"
    assert set(order[1:-1]) == {"b", "d"} and len(order) > 4
    assert order[-1] == "c"


def test_two_stages_begin_with_retrieval_unless_told_otherwise() -> None:
    data = {"s": {"kind": "sts"}, "p": {"kind": "pair"}, "r": {}, "k": {"kind": "classification"}}
    plan = plan_of(data, schedule="two_stage")
    assert plan.order.stages == (("p", "r"), ("s", "k"))
    plan = plan_of(data, schedule={"name": "two_stage", "first": ["sts", "r"]})
    assert plan.order.stages == (("s", "r"), ("p", "k"))


def test_shuffled_rows_are_mixed_where_one_loss_takes_them() -> None:
    data = {"a": {}, "b": {}, "c": {"loss": {"name": "info_nce", "parameters": {"focal": 0.5}}}}
    plan = plan_of(data, members=[100], schedule="row_shuffled", training={"batch_size": 10})
    datasets = hollow(plan, {"a": 300, "b": 100, "c": 100})
    epoch = schedule(plan, members(plan, datasets)[0], datasets, 0)
    shares = Counter(name for batch in epoch for name, _ in batch.rows() if "c" not in batch.names)
    assert shares == {"a": 300, "b": 100}
    assert all(batch.names in {("a", "b"), ("a",), ("b",), ("c",)} for batch in epoch)
    assert sum(batch.names == ("a", "b") for batch in epoch) > 30


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [(0.0, {"a": 20, "b": 20}), (0.5, {"a": 10, "b": 30}), (1.0, {"a": 4, "b": 36})],
)
def test_data_sets_are_drawn_by_a_power_of_their_size(alpha: float, wanted: dict[str, int]) -> None:
    data = {"a": {"batch_size": 4}, "b": {"batch_size": 4}}
    order = {"name": "size_power", "alpha": alpha}
    plan = plan_of(data, members=[100], schedule=order)
    datasets = hollow(plan, {"a": 16, "b": 144})
    (member,) = members(plan, datasets)
    epoch = schedule(plan, member, datasets, 0)
    assert Counter(batch.names[0] for batch in epoch) == wanted
    small = [row for batch in epoch for row in batch.rows() if row[0] == "a"]
    often = Counter(small).values()
    assert max(often) - min(often) <= 1


# --- devices, steps, too few rows -------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8))
def test_devices_take_equal_pieces_of_a_batch(devices: int, each: int) -> None:
    count = devices * each
    whole = Batch(("a", "b"), np.arange(count) % 2, np.arange(count)[::-1])
    pieces = whole.pieces(devices)
    assert [row for piece in pieces for row in piece] == whole.rows()
    assert {len(piece) for piece in pieces} == {each}


def test_a_batch_that_devices_cannot_share_is_an_error() -> None:
    plan, member, datasets = drawn({"a": 100}, "batch_shuffled")
    with pytest.raises(UsageError, match="a batch of 4 rows cannot be cut for 3 devices"):
        schedule(plan, member, datasets, 0)[0].pieces(3)


def test_steps_count_instead_of_epochs() -> None:
    found = drawn({"a": 40}, "batch_shuffled", training={"steps": 23})
    walked = list(walk(*found))
    assert [epoch for epoch, _ in walked] == [0] * 10 + [1] * 10 + [2] * 3
    whole = [batch for epoch in range(3) for batch in rows(schedule(*found, epoch))]
    assert rows(batch for _, batch in walked) == whole[:23]
    twice = drawn({"a": 40}, "batch_shuffled", training={"epochs": 2})
    assert rows(batch for _, batch in walk(*twice)) == whole[:20]


@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"two_stage"}))
def test_a_member_without_a_full_batch_is_an_error(order: str) -> None:
    found = drawn({"a": 3}, order)
    with pytest.raises(UsageError) as caught:
        schedule(*found, 0)
    assert str(caught.value) == (
        "no rows of the member bag-100 make a full batch: a 3 (batches of 4); set a smaller "
        "batch_size"
    )
