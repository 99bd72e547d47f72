"""From the entries of `members` to every member by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..errors import Problem
from ..recipe.shape import unknown
from ..recipe.source import Source
from ..recipe.values import Path
from .schema import RULES, MemberEntry
from .specs import Complement, DatasetSpec, MemberSpec, Mixed, Sampled


def exactly(percent: float) -> Fraction:
    """The fraction that the decimal number stands for, and not the float that is nearest to it."""
    return Fraction(repr(float(percent)))


@dataclass
class Expansion:
    """Members as they are made of entries; problems are collected beside them.

    `fixed` are the names that entries give themselves, which automatic names avoid.
    """

    origin: Source
    datasets: Mapping[str, DatasetSpec]
    seed: int
    epochs: int
    problems: list[Problem]
    fixed: frozenset[str]
    found: dict[str, MemberSpec]

    def problem(self, path: Path, message: str, *, key: bool = False) -> None:
        """Remember a problem at a path of the plan."""
        self.problems.append(self.origin.problem(path, message, key=key))

    def add(self, entry: MemberEntry, place: Path) -> None:
        """The members of one entry."""
        given = entry.model_fields_set
        rules = [rule for rule in RULES if rule in given]
        if len(rules) != 1 and rules != ["ratio", "each"]:
            listed = ", ".join(f"`{rule}`" for rule in RULES)
            self.problem(place, f"must have one of {listed} (or `ratio` beside `each`)")
            return
        if entry.complement is not None and entry.draw is not None:
            self.problem((*place, "draw"), "a complement draws nothing; leave it out", key=True)
        chosen = self._chosen(entry, place)
        if entry.checkpoints is not None:
            self._check_checkpoints(entry, place)
        for name, rule in self._rules(entry, chosen, place):
            self._keep(entry, place, name, rule)

    def _chosen(self, entry: MemberEntry, place: Path) -> list[str]:
        """The names of the data sets that the entry speaks of."""
        names = list(self.datasets)
        tasks = {spec.task for spec in self.datasets.values()}
        for key, known in (("datasets", set(names)), ("tasks", tasks)):
            for index, name in enumerate(getattr(entry, key) or ()):
                if name not in known:
                    message = f'"{name}": {unknown(key[:-1], name, known)}'
                    self.problem((*place, key, index), message)
        if entry.datasets is not None:
            names = [name for name in names if name in entry.datasets]
        if entry.tasks is not None:
            names = [name for name in names if self.datasets[name].task in entry.tasks]
            if not names and tasks.issuperset(entry.tasks):
                self.problem((*place, "tasks"), "none of the data sets is of these tasks")
        return names

    def _check_checkpoints(self, entry: MemberEntry, place: Path) -> None:
        points = entry.checkpoints or []
        if points != sorted(set(points)):
            self.problem((*place, "checkpoints"), "must ascend, such as [60, 80, 100]")
        if entry.ema is not None:
            self.problem((*place, "ema"), "and `checkpoints` exclude each other", key=True)

    def _rules(
        self, entry: MemberEntry, chosen: list[str], place: Path
    ) -> Iterator[tuple[str, Sampled | Complement | Mixed]]:
        if entry.each is not None:
            yield from self._of_each(entry, chosen, place)
        elif isinstance(entry.ratio, dict):
            for name in [name for name in entry.ratio if name not in self.datasets]:
                message = unknown("data set", name, self.datasets)
                self.problem((*place, "ratio", name), message, key=True)
            if entry.name is None:
                self.problem(place, "needs a `name`, as it has several ratios")
            elif entry.datasets is not None or entry.tasks is not None:
                key = "tasks" if entry.datasets is None else "datasets"
                self.problem((*place, key), "the ratios name the data sets already", key=True)
            else:
                ratios = {name: exactly(r) for name, r in entry.ratio.items()}
                yield entry.name, Sampled(ratios, entry.draw or entry.name)
        elif entry.ratio is not None:
            name = self._free(entry.name, f"bag-{entry.ratio:g}")
            ratios = dict.fromkeys(chosen, exactly(entry.ratio))
            yield name, Sampled(ratios, entry.draw or name)
        elif entry.complement is not None:
            name = self._free(entry.name, f"{entry.complement}-rest")
            if entry.complement not in self.found:
                known = unknown("member", entry.complement, self.found)
                message = f"{known}; list it before" if self.found else "list that member before"
                self.problem((*place, "complement"), f'"{entry.complement}": {message}')
            yield name, Complement(entry.complement, tuple(chosen))
        elif entry.dirichlet is not None:
            percent = exactly(entry.dirichlet.percent)
            for number in range(1, entry.dirichlet.count + 1):
                name = self._free(None, f"{entry.name or 'mixture'}-{number}")
                alpha, draw = entry.dirichlet.alpha, entry.draw or entry.name or "mixture"
                yield name, Mixed(tuple(chosen), alpha, percent, f"{draw}-{number}")

    def _of_each(
        self, entry: MemberEntry, chosen: list[str], place: Path
    ) -> Iterator[tuple[str, Sampled]]:
        if isinstance(entry.ratio, dict):
            self.problem((*place, "ratio"), "must be one number where there is a member for each")
            return
        groups: dict[str, list[str]] = {}
        for name in chosen:
            spec = self.datasets[name]
            group = {"dataset": name, "task": spec.task, "cluster": spec.cluster}[str(entry.each)]
            if group is None:
                message = f"needs a `cluster` of every data set, and {name} has none"
                self.problem((*place, "each"), message)
            else:
                groups.setdefault(group, []).append(name)
        ratio = exactly(100 if entry.ratio is None else entry.ratio)
        for group, names in groups.items():
            member = self._free(None, f"{entry.name}-{group}" if entry.name else group)
            yield member, Sampled(dict.fromkeys(names, ratio), entry.draw or member)

    def _free(self, given: str | None, automatic: str) -> str:
        """The given name, or else the automatic one, with a number where it is taken."""
        if given is not None:
            return given
        name, number = automatic, 1
        while name in self.found or name in self.fixed:
            number += 1
            name = f"{automatic}-{number}"
        return name

    def _keep(
        self, entry: MemberEntry, place: Path, name: str, rule: Sampled | Complement | Mixed
    ) -> None:
        if name in self.found:
            self.problem((*place, "name"), f"a member called {name} is there already")
            return
        self.found[name] = MemberSpec(
            name=name,
            rule=rule,
            seed=self.seed if entry.seed is None else entry.seed,
            epochs=entry.epochs or self.epochs,
            merged=entry.merge,
            weight=entry.weight,
            group=entry.group,
            checkpoints=tuple(entry.checkpoints or ()),
            ema=entry.ema,
        )


def expand(
    origin: Source,
    entries: Sequence[MemberEntry],
    datasets: Mapping[str, DatasetSpec],
    *,
    seed: int,
    epochs: int,
    problems: list[Problem],
) -> tuple[MemberSpec, ...]:
    """Every member, in the order of the plan; what is wrong with the entries is added to problems.

    Args:
        origin: the plan, for places.
        entries: what it says of members.
        datasets: its data sets by name.
        seed: of members that say none.
        epochs: of members that say none.
        problems: is added to.
    """
    fixed = frozenset(entry.name for entry in entries if entry.name is not None)
    expansion = Expansion(origin, datasets, seed, epochs, problems, fixed, {})
    for index, entry in enumerate(entries):
        expansion.add(entry, ("members", index))
    models = [model for member in expansion.found.values() for model in member.models]
    for model in {model for model in models if models.count(model) > 1}:
        expansion.problem(("members",), f"two models would be called {model}; rename a member")
    return tuple(expansion.found.values())
