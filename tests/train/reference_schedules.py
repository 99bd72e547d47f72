"""Every order of batches, written again from its description, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from .plans import key, splitmix

Row = tuple[str, int]
Drawn = tuple[tuple[int, int], list[Row]]
"""A batch with what it draws, and its place among batches that draw the same."""


@dataclass(frozen=True)
class Bag:
    """A member: of each data set its rows, with the identities of all rows of the data set."""

    name: str
    rows: dict[str, list[int]]
    identities: dict[str, list[int]]
    sizes: dict[str, int]
    tasks: dict[str, str]
    seed: int
    epoch: int

    def cut(self, dataset: str, again: int = 0) -> list[list[Row]]:
        """Shuffle a data set's rows, cut them, and drop what is short."""
        more = [again] if again else []
        k = key("shuffle", self.seed, dataset, *more, self.name, self.epoch)
        drawn = [(splitmix(k, self.identities[dataset][n]), n) for n in self.rows[dataset]]
        numbers = [n for _, n in sorted(drawn)]
        size = self.sizes[dataset]
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return [[(dataset, n) for n in batch] for batch in batches if len(batch) == size]

    def pool(self, groups: dict[str, list[list[Row]]]) -> list[list[Row]]:
        """Shuffle batches of several data sets."""
        drawn: list[Drawn] = []
        for dataset, batches in groups.items():
            k = key("pool", self.seed, dataset, self.name, self.epoch)
            drawn += [((splitmix(k, i), len(drawn) + i), b) for i, b in enumerate(batches)]
        return [batch for _, batch in sorted(drawn)]


def batch_shuffled(bag: Bag) -> list[list[Row]]:
    return bag.pool({name: bag.cut(name) for name in bag.rows})


def dataset_sequential(bag: Bag) -> list[list[Row]]:
    return [batch for name in bag.rows for batch in bag.cut(name)]


def staged(bag: Bag, stages: list[list[str]]) -> list[list[Row]]:
    return [b for stage in stages for b in bag.pool({n: bag.cut(n) for n in stage})]


def task_sequential(bag: Bag) -> list[list[Row]]:
    tasks = list(dict.fromkeys(bag.tasks[name] for name in bag.rows))
    return staged(bag, [[n for n in bag.rows if bag.tasks[n] == task] for task in tasks])


def row_shuffled(bag: Bag, pools: list[list[str]]) -> list[list[Row]]:
    return bag.pool({pool[0]: list(_rows_cut(bag, pool)) for pool in pools})


def _rows_cut(bag: Bag, pool: list[str]) -> Iterator[list[Row]]:
    drawn = []
    for name in pool:
        k = key("shuffle", bag.seed, name, bag.name, bag.epoch)
        drawn += [
            (splitmix(k, bag.identities[name][n]), len(drawn), (name, n)) for n in bag.rows[name]
        ]
    rows = [row for _, _, row in sorted(drawn)]
    size = bag.sizes[pool[0]]
    while len(rows) >= size:
        yield rows[:size]
        rows = rows[size:]


def size_power(bag: Bag, alpha: int) -> list[list[Row]]:
    """For a whole alpha, so that shares are exact fractions."""
    once = {name: batches for name in bag.rows if (batches := bag.cut(name))}
    total = sum(map(len, once.values()))
    powers = {name: len(bag.rows[name]) ** alpha for name in once}
    exact = {name: Fraction(total * power, sum(powers.values())) for name, power in powers.items()}
    counts = {name: int(share) for name, share in exact.items()}
    order = list(once)
    by_rest = sorted(order, key=lambda name: (counts[name] - exact[name], order.index(name)))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    groups = {}
    for name, count in counts.items():
        batches, again = list(once[name]), 0
        while len(batches) < count:
            again += 1
            batches += bag.cut(name, again)
        groups[name] = batches[:count]
    return bag.pool(groups)
