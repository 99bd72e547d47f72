"""The order in which a member's rows are trained on: a sequence of batches for every epoch.

A batch is a global one, over all devices. Whatever the order, a row is in one batch of an epoch at
most (but for `size_power`), batches have the full size, and everything depends on the seed, the
names of member and data sets, the epoch and the rows' contents alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .bags import Member, RowNumbers, shared
from .data import Dataset
from .draws import draws, key_of, shuffled
from .specs import Order, TrainingPlan


@dataclass(frozen=True)
class Batch:
    """Rows that are compared with each other in one step of training.

    `names` are its data sets: one, unless rows are shuffled one by one. `owners` tells of every row
    which of them it belongs to, `numbers` which row of it; both int64, in the batch's order.
    """

    names: tuple[str, ...]
    owners: RowNumbers
    numbers: RowNumbers

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self) -> list[tuple[str, int]]:
        """Every row in the batch's order, by its data set and its number."""
        pairs = zip(self.owners, self.numbers, strict=True)
        return [(self.names[owner], int(number)) for owner, number in pairs]

    def pieces(self, devices: int) -> list[list[tuple[str, int]]]:
        """The batch cut into as many equal pieces of consecutive rows: one for every device.

        Raises:
            UsageError: when it cannot be cut so.
        """
        size, rest = divmod(len(self), devices)
        if rest or not size:
            message = f"a batch of {len(self)} rows cannot be cut for {devices} devices"
            raise UsageError(f"{message}; choose a batch_size that is a multiple")
        rows = self.rows()
        return [rows[start : start + size] for start in range(0, len(self), size)]


Epoch = tuple[Batch, ...]


@dataclass(frozen=True)
class _Bag:
    """A member in one epoch, for those who bring its batches into an order."""

    member: Member
    datasets: Mapping[str, Dataset]
    order: Order
    epoch: int

    @property
    def names(self) -> list[str]:
        """Its data sets, in the order of the plan."""
        return [name for name in self.datasets if name in self.member.rows]

    def key(self, purpose: str, *parts: str | int) -> int:
        """The key of draws for a purpose, in this epoch of this member."""
        return key_of(purpose, self.member.spec.seed, *parts, self.member.name, self.epoch)

    def batches(self, name: str, again: int = 0) -> list[Batch]:
        """Batches of a data set: its rows shuffled and cut, without the short last one.

        `again` counts the times that the epoch has been through the data set before.
        """
        rows, dataset = self.member.rows[name], self.datasets[name]
        key = self.key("shuffle", name, *([again] if again else []))
        mixed = rows[shuffled(key, dataset.identities[rows])]
        size = dataset.spec.batch_size
        starts = range(0, len(mixed) - size + 1, size)
        owners = np.zeros(size, dtype=np.int64)
        return [Batch((name,), owners, mixed[start : start + size]) for start in starts]

    def pooled(self, groups: Mapping[str, Sequence[Batch]]) -> Epoch:
        """All batches in one random order; that of two does not depend on what others there are."""
        batches = [batch for group in groups.values() for batch in group]
        if not batches:
            return ()
        drawn = [
            draws(self.key("pool", name), np.arange(len(group), dtype=np.uint64))
            for name, group in groups.items()
        ]
        order = np.argsort(np.concatenate(drawn), kind="stable")
        return tuple(batches[index] for index in order)

    def shuffled_batches(self, names: Sequence[str]) -> Epoch:
        """Batch-level shuffling of some data sets."""
        return self.pooled({name: self.batches(name) for name in names})


def _batch_shuffled(bag: _Bag) -> Epoch:
    """Cut every data set into batches, pool them, shuffle the pool."""
    return bag.shuffled_batches(bag.names)


def _dataset_sequential(bag: _Bag) -> Epoch:
    """One data set after the other, as the plan lists them."""
    return tuple(batch for name in bag.names for batch in bag.batches(name))


def _task_sequential(bag: _Bag) -> Epoch:
    """One task after the other, as the plan first lists them; shuffled batches within each."""
    tasks = dict.fromkeys(bag.datasets[name].spec.task for name in bag.names)
    stages = [[name for name in bag.names if bag.datasets[name].spec.task == t] for t in tasks]
    return tuple(itertools.chain(*map(bag.shuffled_batches, stages)))


def _two_stage(bag: _Bag) -> Epoch:
    """The data sets of the first stage, then the others; shuffled batches within each."""
    stages = [[name for name in bag.names if name in stage] for stage in bag.order.stages]
    return tuple(itertools.chain(*map(bag.shuffled_batches, stages)))


def _row_shuffled(bag: _Bag) -> Epoch:
    """Rows of all data sets shuffled together, and cut into batches of several data sets.

    Only rows that one loss can take are in a batch: data sets of other losses, batch sizes or
    numbers of texts have batches of their own, and the batches are pooled and shuffled.
    """
    pools: dict[str, list[str]] = {}
    for name in bag.names:
        pools.setdefault(repr(_company(bag.datasets[name])), []).append(name)
    cut = {pool: list(_mixed(bag, names)) for pool, names in pools.items()}
    return bag.pooled({pools[pool][0]: batches for pool, batches in cut.items()})


def _company(dataset: Dataset) -> tuple[object, ...]:
    """What data sets have in common whose rows may be in one batch."""
    spec = dataset.spec
    texts = (spec.positives, dataset.negatives, dataset.labels is None, spec.kind == "sts")
    return (spec.loss, spec.batch_size, texts)


def _mixed(bag: _Bag, names: Sequence[str]) -> Iterator[Batch]:
    rows = [bag.member.rows[name] for name in names]
    drawn = [
        draws(bag.key("shuffle", name), bag.datasets[name].identities[numbers])
        for name, numbers in zip(names, rows, strict=True)
    ]
    owners = np.repeat(np.arange(len(names)), [len(numbers) for numbers in rows])
    order = np.argsort(np.concatenate(drawn), kind="stable")
    owners, numbers = owners[order], np.concatenate(rows)[order]
    size = bag.datasets[names[0]].spec.batch_size
    for start in range(0, len(numbers) - size + 1, size):
        here = slice(start, start + size)
        present, inside = np.unique(owners[here], return_inverse=True)
        yield Batch(tuple(names[i] for i in present), inside, numbers[here])


def _size_power(bag: _Bag) -> Epoch:
    """As many batches as batch-level shuffling has, of data sets in proportion to n^alpha.

    A data set that is drawn more often than it has batches is gone through again, shuffled anew;
    of one that is drawn less often, some rows wait for another epoch.
    """
    once = {name: bag.batches(name) for name in bag.names}
    able = {i: name for i, name in enumerate(bag.names) if once[name]}
    if not able:
        return ()
    weights = {i: len(bag.member.rows[name]) ** bag.order.alpha for i, name in able.items()}
    total = sum(len(batches) for batches in once.values())
    groups: dict[str, list[Batch]] = {}
    for i, count in shared(total, weights).items():
        name, batches = able[i], list(once[able[i]])
        while len(batches) < count:
            batches += bag.batches(name, again=len(batches) // len(once[name]))
        groups[name] = batches[:count]
    return bag.pooled(groups)


ORDERS: dict[str, Callable[[_Bag], Epoch]] = {
    "batch_shuffled": _batch_shuffled,
    "dataset_sequential": _dataset_sequential,
    "task_sequential": _task_sequential,
    "two_stage": _two_stage,
    "row_shuffled": _row_shuffled,
    "size_power": _size_power,
}
"""What a plan's `schedule` may name."""


def schedule(
    plan: TrainingPlan, member: Member, datasets: Mapping[str, Dataset], epoch: int
) -> Epoch:
    """The batches of one epoch (counted from 0) of a member, in their order.

    Raises:
        UsageError: when no data set of the member has rows enough for one batch.
    """
    found = ORDERS[plan.order.name](_Bag(member, datasets, plan.order, epoch))
    if not found:
        sizes = ", ".join(
            f"{name} {len(numbers)} (batches of {datasets[name].spec.batch_size})"
            for name, numbers in member.rows.items()
        )
        message = f"no rows of the member {member.name} make a full batch: {sizes}"
        raise UsageError(f"{message}; set a smaller batch_size")
    return found


def walk(
    plan: TrainingPlan, member: Member, datasets: Mapping[str, Dataset]
) -> Iterator[tuple[int, Batch]]:
    """Every batch of a member's training with its epoch: all epochs, or as many steps as wanted."""
    steps = plan.training.steps
    epochs = itertools.count() if steps is not None else range(member.spec.epochs)
    every = (
        (epoch, batch) for epoch in epochs for batch in schedule(plan, member, datasets, epoch)
    )
    return itertools.islice(every, steps)
