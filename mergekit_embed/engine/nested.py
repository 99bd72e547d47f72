"""Members that are recipes: a merge whose result is not written but read, range by range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import Checkpoint, Shape, Tensor
from ..checkpoint.shell import retold
from ..dtypes import DType
from .plan import Job, Plan
from .sharing import Share


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """A tensor of a nested recipe's result; nothing of it is computed before it is read.

    Attributes:
        name: as the result's file would spell it.
        dtype: type that the nested recipe would store.
        job: makes the values, rounded once to what they are read as.
        plan: that of the nested recipe.
    """

    name: str
    dtype: DType
    job: Job
    plan: Plan

    @property
    def read_as(self) -> DType:
        """Type of the values: float32 at least, whatever the nested recipe would store."""
        return self.job.dtype

    @property
    def shape(self) -> Shape:
        """That of the result."""
        return self.job.result_shape

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return self.job.result_count

    @property
    def nbytes(self) -> int:
        """Stored bytes that are read for the whole tensor."""
        return self.job.bytes_in

    @property
    def file(self) -> Path:
        """The file of the first source."""
        return self.job.sources[0].file

    @property
    def offset(self) -> int:
        """Of the first source's first byte, from the start of the file."""
        return self.job.sources[0].offset

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that this one is made of."""
        return self.job.tensors

    def renamed(self, name: str) -> MergedTensor:
        """The same tensor under another name."""
        return replace(self, name=name)


def as_member(plan: Plan) -> Checkpoint:
    """The result of a nested recipe as a model that can be merged: its tensors are merged ones."""
    components = {}
    for role, component in plan.shell.components.items():
        tensors = {
            job.tensor: MergedTensor(job.tensor, job.dtype, _precise(job), plan)
            for job in plan.jobs
            if job.role == role
        }
        components[role] = replace(component, tensors=tensors)
    return replace(
        plan.shell,
        components=components,
        facts=retold(plan.shell.facts, plan.told),
        told=plan.told,
        recipe=plan.recipe.source.shown,
    )


def _precise(job: Job) -> Job:
    """The job with its result in float32, or in float64 where that is what is stored."""
    wide = job.dtype if not job.dtype.is_float or job.dtype is DType.F64 else DType.F32
    return replace(job, dtype=wide)


def merged_within(share: Share) -> list[MergedTensor]:
    """Every tensor of a nested recipe that the jobs need, directly or deep inside another."""
    found: dict[MergedTensor, None] = {}

    def walk(tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, MergedTensor):
                if tensor in found:
                    continue
                found[tensor] = None
            walk(tensor.parts)

    for _, job in share:
        walk(job.tensors)
    return list(found)


def nested_plans(models: Iterable[Checkpoint]) -> tuple[Plan, ...]:
    """The plans of those models that are recipes, but not those within these."""
    found: dict[int, Plan] = {}

    def walk(some: Iterable[Tensor]) -> None:
        for tensor in some:
            if isinstance(tensor, MergedTensor):
                found.setdefault(id(tensor.plan), tensor.plan)
            else:
                walk(tensor.parts)

    for model in models:
        for component in model.components.values():
            walk(component.tensors.values())
    return tuple(found.values())


def plans_within(plan: Plan) -> list[Plan]:
    """The plan and those of all its nested recipes, each once, the innermost last."""
    found: dict[int, Plan] = {}

    def walk(one: Plan) -> None:
        if id(one) not in found:
            found[id(one)] = one
            for inner in one.nested:
                walk(inner)

    walk(plan)
    return list(found.values())


def by_depth(plans: Sequence[Plan]) -> list[list[Plan]]:
    """The plans and all nested ones, each once: those without nested recipes first."""
    every = {id(one): one for plan in plans for one in plans_within(plan)}
    deepest = max((plan.depth for plan in every.values()), default=0)
    return [[p for p in every.values() if p.depth == depth] for depth in range(deepest + 1)]
