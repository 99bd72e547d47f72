"""What a run has to do: the jobs that are wanted, and what has to be measured before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..methods import Gram
from .nested import by_depth, merged_within
from .passes import group_of, measured_apart, passes
from .plan import Job, Plan
from .sharing import Share

Grams = dict[tuple[int, str], Gram]
"""Gram matrices of layers and models, by the number of the plan on the agenda and the group."""


class Agenda:
    """The jobs of some plans that are to be run.

    The same for equal plans, also in another process: plans are known there by their number.

    Attributes:
        plans: those that are run.
        every: these and all nested ones, each once.
        wanted: the jobs that are merged.
        measured: jobs that layers and models are measured by, which has to be done before anything
            is merged: one share after the other, those of inner recipes first.
    """

    def __init__(self, plans: Sequence[Plan], wants: Callable[[Plan, Job], bool]):
        self.plans = tuple(plans)
        self.wanted: Share = [
            (plan, job) for plan in plans for job in plan.jobs if wants(plan, job)
        ]
        levels = by_depth(plans)
        self.every = tuple(plan for level in levels for plan in level)
        self._numbers = {id(plan): number for number, plan in enumerate(self.every)}
        grouped = [_grouped_in(level) for level in levels]
        needed = self._groups_needed(grouped)
        chosen = [[one for one in level if _key(*one) in needed] for level in grouped]
        self.measured: list[Share] = [level for level in chosen if level]

    def number(self, plan: Plan) -> int:
        """The number of a plan in `every`."""
        return self._numbers[id(plan)]

    @property
    def size(self) -> int:
        """Bytes of all passes over the jobs' elements, as progress counts them.

        Layers and models that are in part there already are measured whole.
        """
        merged = sum(pass_size(job) * passes(plan, job) for plan, job in self.wanted)
        return merged + sum(pass_size(job) for job in self._measured_for_others())

    def merge_size(self, plan: Plan, job: Job) -> int:
        """Bytes of the passes over a job's elements, but for that which `measured` is for."""
        return pass_size(job) * (passes(plan, job) - (1 if measured_apart(plan, job) else 0))

    def gram_of(self, grams: Grams, plan: Plan, job: Job) -> Gram | None:
        """The Gram matrix of the layer or the model that a job belongs to; None: not measured."""
        group = group_of(job)
        return grams.get((self.number(plan), group)) if group else None

    def summed(self, found: Iterable[tuple[tuple[Plan, Job], Gram]]) -> Grams:
        """Sums over the tensors of each layer or model, in the order of names.

        The order in which files hold them would show in float64 results.
        """
        sums: Grams = {}
        for (plan, job), gram in sorted(found, key=lambda one: one[0][1].name):
            key = (self.number(plan), job.group)
            sums[key] = sums[key] + gram if key in sums else gram
        return sums

    def _measured_for_others(self) -> list[Job]:
        """Jobs of the plans themselves that are measured but not merged."""
        own = {id(plan) for plan in self.plans}
        wanted = {(id(plan), job.name) for plan, job in self.wanted}
        return [
            job
            for level in self.measured
            for plan, job in level
            if id(plan) in own and (id(plan), job.name) not in wanted
        ]

    def _groups_needed(self, grouped: Sequence[Share]) -> set[tuple[int, str | None]]:
        """The layers and models of plans, nested ones too, that wanted jobs depend on."""
        found = {_key(plan, job) for plan, job in self.wanted}
        merged = merged_within(self.wanted)
        for level in reversed(grouped):  # what a level measures may need deeper ones
            found |= {_key(one.plan, one.job) for one in merged}
            merged += merged_within([one for one in level if _key(*one) in found])
        return found


def pass_size(job: Job) -> int:
    """Bytes of one pass over a job's elements."""
    return job.count * job.width


def _key(plan: Plan, job: Job) -> tuple[int, str | None]:
    return id(plan), group_of(job)


def _grouped_in(level: Sequence[Plan]) -> Share:
    """The jobs that layers and models are measured by."""
    return [(plan, job) for plan in level for job in plan.jobs if measured_apart(plan, job)]
