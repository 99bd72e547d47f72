"""Members: which rows of which data sets each is trained on.

A row's draw depends on the seed, the name of the data set, the name of the member and the row's
content, and on nothing else: not on its place in the file, on other rows, on other data sets or on
other members. Of n rows, k percent are the round(k n / 100) that draw the least (a half is rounded
up). So a bag is the same on every machine; rows that are added or taken away change it only where
they are in it themselves, or push a row over its edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, Problem
from .data import Dataset
from .draws import key_of, shuffled, uniforms
from .specs import Complement, MemberSpec, Mixed, Sampled, TrainingPlan

RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A member and its rows: ascending numbers of each data set that it has rows of, int64."""

    spec: MemberSpec
    rows: Mapping[str, RowNumbers]

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def total(self) -> int:
        """How many rows it has."""
        return sum(len(numbers) for numbers in self.rows.values())


def members(plan: TrainingPlan, datasets: Mapping[str, Dataset]) -> tuple[Member, ...]:
    """Every member of a plan with its rows, in the order of the plan.

    Args:
        plan: says what members there are.
        datasets: the data sets of the plan by name.

    Raises:
        DataError: when a member has no rows, or rows of one class only.
    """
    found: dict[str, Member] = {}
    problems: list[Problem] = []
    for spec in plan.members:
        rows = _rows(spec, datasets, found)
        member = Member(spec, {name: numbers for name, numbers in rows.items() if len(numbers)})
        found[spec.name] = member
        problems += _problems(member, datasets)
    if problems:
        raise DataError(problems)
    return tuple(found.values())


def _rows(
    spec: MemberSpec, datasets: Mapping[str, Dataset], earlier: Mapping[str, Member]
) -> dict[str, RowNumbers]:
    rule = spec.rule
    if isinstance(rule, Sampled):
        return {
            name: drawn(datasets[name], part(ratio, len(datasets[name])), spec.seed, rule.draw)
            for name, ratio in rule.ratios.items()
        }
    if isinstance(rule, Complement):
        return {
            name: _others(len(datasets[name]), earlier[rule.of].rows.get(name))
            for name in rule.datasets
        }
    counts = mixture(rule, [len(datasets[name]) for name in rule.datasets], spec.seed)
    return {
        name: drawn(datasets[name], count, spec.seed, rule.draw)
        for name, count in zip(rule.datasets, counts, strict=True)
    }


def part(percent: Fraction, rows: int) -> int:
    """How many rows so many percent are; a half is rounded up."""
    return math.floor(percent * rows / 100 + Fraction(1, 2))


def drawn(dataset: Dataset, count: int, seed: int, member: str) -> RowNumbers:
    """The rows that a member draws of a data set: ascending numbers, int64 (count,)."""
    key = key_of("rows", seed, dataset.spec.name, member)
    return np.sort(shuffled(key, dataset.identities)[:count])


def _others(rows: int, taken: RowNumbers | None) -> RowNumbers:
    every = np.arange(rows, dtype=np.int64)
    return every if taken is None else np.setdiff1d(every, taken, assume_unique=True)


def mixture(rule: Mixed, sizes: Sequence[int], seed: int) -> list[int]:
    """How many rows of each data set a random mixture has.

    The shares are p ~ Dirichlet(alpha, ..., alpha). A data set gives p of the rows that are wanted,
    or all that it has; what is missing then is shared out among the others, in proportion to p.

    Args:
        rule: says how many rows there are in all, and alpha.
        sizes: the rows of its data sets.
        seed: of the plan or the member.
    """
    logs = [log_gamma(rule.alpha, key_of("mixture", seed, n, rule.draw)) for n in rule.datasets]
    counts = [0] * len(sizes)
    wanted = part(rule.percent, sum(sizes))
    open_ones = set(range(len(sizes)))
    while open_ones:
        left = wanted - sum(count for i, count in enumerate(counts) if i not in open_ones)
        most = max(logs[i] for i in open_ones)
        shares = shared(left, {i: math.exp(logs[i] - most) for i in open_ones})
        full = {i for i, share in shares.items() if share >= sizes[i]}
        for i, share in shares.items():
            counts[i] = min(share, sizes[i])
        if not full:
            break
        open_ones -= full
    return counts


def shared(total: int, weights: Mapping[int, float]) -> dict[int, int]:
    """Whole numbers that sum to the total, in proportion to the weights (largest remainders)."""
    scale = math.fsum(weights.values())
    exact = {i: total * weight / scale for i, weight in weights.items()}
    found = {i: math.floor(share) for i, share in exact.items()}
    most = sorted(exact, key=lambda i: (found[i] - exact[i], i))
    for i in most[: total - sum(found.values())]:
        found[i] += 1
    return found


def log_gamma(alpha: float, key: int) -> float:
    """The logarithm of a number drawn from the gamma distribution of this shape.

    Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables"; a shape
    below 1 as that of alpha + 1 times u^(1/alpha); normal variables after Box and Muller.
    """
    boost, *numbers = uniforms(key, 1 + 3 * TRIES)
    d = (alpha + 1 if alpha < 1 else alpha) - 1 / 3
    c = 1 / math.sqrt(9 * d)
    log_v = 0.0
    for first, second, third in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        normal = math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)
        v = (1 + c * normal) ** 3
        if v > 0 and math.log(third) < normal**2 / 2 + d - d * v + d * math.log(v):
            log_v = math.log(v)
            break
    return math.log(d) + log_v + (math.log(boost) / alpha if alpha < 1 else 0.0)


TRIES = 64
"""A try fails once in twenty times, at worst; that all fail never happens."""


def _problems(member: Member, datasets: Mapping[str, Dataset]) -> list[Problem]:
    if not member.rows:
        return [Problem("", f"the member {member.name} has no rows; raise its ratio")]
    found = []
    for name, numbers in member.rows.items():
        labels = datasets[name].labels
        if labels is not None and len(np.unique(labels[numbers])) == 1:
            message = f"the member {member.name} has rows of one class only of {name}"
            found.append(Problem("", f"{message}; raise its ratio"))
    return found
