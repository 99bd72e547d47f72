"""What training would take: rows, batches, steps and tokens of every member, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bags import Member
from .data import Dataset
from .draws import key_of, shuffled
from .examples import Examples, columns_of, prompts_of
from .schedules import schedule, walk
from .specs import TrainingPlan

SAMPLE = 500
"""Rows of a data set whose tokens are counted; where it has more, its tokens are estimated."""

Count = Callable[[Sequence[str]], list[int]]
"""How many tokens each of some texts is."""


@dataclass(frozen=True)
class Share:
    """What a data set has in a member.

    Attributes:
        rows: of the member.
        batches: of the first epoch.
        left_out: rows that are in no batch of the first epoch.
        texts: of a row.
        tokens: in the whole training of the member; None where nobody counted.
    """

    rows: int
    batches: int
    left_out: int
    texts: int
    tokens: int | None


@dataclass(frozen=True)
class Cost:
    """What a member takes. `examples` are rows in batches, over all epochs."""

    name: str
    shares: Mapping[str, Share]
    epochs: int
    steps: int
    examples: int
    tokens: int | None


@dataclass(frozen=True)
class Budget:
    """What a plan takes; `sampled` names the data sets whose tokens are estimates."""

    costs: tuple[Cost, ...]
    sampled: frozenset[str]
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Of all members."""
        return sum(cost.steps for cost in self.costs)

    @property
    def tokens(self) -> int | None:
        """Of all members; None where nobody counted."""
        counted = [cost.tokens for cost in self.costs if cost.tokens is not None]
        return sum(counted) if len(counted) == len(self.costs) else None


def budget(
    plan: TrainingPlan,
    datasets: Mapping[str, Dataset],
    members: Sequence[Member],
    count: Count | None = None,
) -> Budget:
    """Reckon what a plan takes.

    Args:
        plan: the plan.
        datasets: its data sets by name.
        members: its members.
        count: counts the tokens of texts as training would cut them; None leaves them uncounted.

    Raises:
        UsageError: when a member has no rows enough for one batch.
        DataError: when a row cannot be made an example of.
    """
    lengths = {
        name: tokens_of(dataset, members, count) if count else None
        for name, dataset in datasets.items()
    }
    costs = tuple(_cost(plan, member, datasets, lengths) for member in members)
    sampled = {
        name
        for name, dataset in datasets.items()
        if count and min(len(dataset), _most(name, members)) > SAMPLE
    }
    return Budget(costs, frozenset(sampled), tuple(_notes(datasets, members, costs)))


def tokens_of(dataset: Dataset, members: Sequence[Member], count: Count) -> float:
    """The mean number of tokens of a row's texts, with their prompts.

    Of at most `SAMPLE` rows, drawn among those of the member that has most.
    """
    name = dataset.spec.name
    most = max(members, key=lambda member: len(member.rows.get(name, ())))
    rows = most.rows.get(name)
    if rows is None:
        return 0.0
    key = key_of("tokens", name)
    chosen = rows[shuffled(key, dataset.identities[rows])[:SAMPLE]]
    examples, prompts = Examples(dataset, most, 0), prompts_of(dataset)
    texts = [
        prompts.get(column, "") + str(example[column])
        for example in (examples[int(number)] for number in chosen)
        for column in columns_of(dataset)
    ]
    return sum(count(texts)) / len(chosen)


def _most(name: str, members: Sequence[Member]) -> int:
    return max(len(member.rows.get(name, ())) for member in members)


def _cost(
    plan: TrainingPlan,
    member: Member,
    datasets: Mapping[str, Dataset],
    lengths: Mapping[str, float | None],
) -> Cost:
    trained = dict.fromkeys(member.rows, 0)
    steps = epochs = 0
    for epoch, batch in walk(plan, member, datasets):
        steps, epochs = steps + 1, epoch + 1
        owners, counts = np.unique(batch.owners, return_counts=True)
        for owner, rows in zip(owners, counts, strict=True):
            trained[batch.names[owner]] += int(rows)
    first: dict[str, set[int]] = {name: set() for name in member.rows}
    batches = dict.fromkeys(member.rows, 0)
    for batch in schedule(plan, member, datasets, 0):
        for name in batch.names:
            batches[name] += 1
        for name, number in batch.rows():
            first[name].add(number)
    shares = {}
    for name, numbers in member.rows.items():
        length = lengths[name]
        shares[name] = Share(
            rows=len(numbers),
            batches=batches[name],
            left_out=len(numbers) - len(first[name]),
            texts=len(columns_of(datasets[name])),
            tokens=None if length is None else round(length * trained[name]),
        )
    tokens = [share.tokens for share in shares.values() if share.tokens is not None]
    total = sum(tokens) if len(tokens) == len(shares) else None
    return Cost(member.name, shares, epochs, steps, sum(trained.values()), total)


def _notes(
    datasets: Mapping[str, Dataset], members: Sequence[Member], costs: Sequence[Cost]
) -> list[str]:
    """What a user would want to know before it is too late."""
    notes = []
    for name, dataset in datasets.items():
        if dataset.bad_count:
            notes.append(f"{name}: {dataset.bad_count} bad rows are left out, the first of them:")
            notes += [f"  {problem}" for problem in dataset.bad]
        if dataset.repeated:
            notes.append(f"{name}: {dataset.repeated} rows are there more than once")
        if dataset.spec.negatives and dataset.labels is None and dataset.spec.kind != "sts":
            if not dataset.negatives and dataset.spec.mine is None:
                notes.append(f"{name} has no hard negatives; `mine` finds some")
            elif not dataset.negatives and dataset.mined is not None:
                notes.append(f"{name}: no hard negatives were found; raise `top` or `below`")
            elif dataset.short:
                notes.append(
                    f"{name}: {dataset.short} rows have fewer than {dataset.negatives} hard "
                    "negatives, and are filled up"
                )
        if dataset.spec.mine is not None and dataset.mined is None:
            notes.append(f"{name}: its negatives are mined first, and not counted here")
        if not any(name in member.rows for member in members):
            notes.append(f"{name} is in no member")
    for cost in costs:
        for name, share in cost.shares.items():
            if not share.batches:
                size = datasets[name].spec.batch_size
                notes.append(
                    f"{cost.name} is not trained on {name}: its {share.rows} rows there make no "
                    f"batch of {size}; set a smaller batch_size"
                )
    return notes


def as_dict(found: Budget) -> dict[str, Any]:
    """The budget as JSON has it."""
    return {
        "members": [
            {
                "name": cost.name,
                "rows": {name: share.rows for name, share in cost.shares.items()},
                "batches": {name: share.batches for name, share in cost.shares.items()},
                "left_out": {name: share.left_out for name, share in cost.shares.items()},
                "epochs": cost.epochs,
                "steps": cost.steps,
                "examples": cost.examples,
                "tokens": cost.tokens,
            }
            for cost in found.costs
        ],
        "steps": found.steps,
        "tokens": found.tokens,
        "tokens_estimated": sorted(found.sampled),
        "notes": list(found.notes),
    }
