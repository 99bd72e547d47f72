"""How often a merge goes through the elements of a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kernels import BLOCK
from ..methods import Consensus, Elementwise, Largest, MostVaried, Outlying, Selection
from ..methods.notes import collected_notes

if TYPE_CHECKING:
    from .plan import Job, Plan


def passes(plan: Plan, job: Job) -> int:
    """Of all inputs of a job, from the first measurement to the bytes of the result."""
    if job.parameters is None or job.count == 0:
        return 1
    method = plan.recipe.method
    if method.family == "consensus":
        wanted, _ = wanted_of(plan, job)
        return 1 + _measurements(wanted, job.count)
    return 2 if method.geometry and not _fits_a_block(job) else 1


def _fits_a_block(job: Job) -> bool:
    """Whether each vector is measured and mixed with its elements at hand."""
    row = job.shape[-1] if job.shape else 1
    return job.unit == "element" or (job.unit == "row" and row <= BLOCK)


def goes_again(plan: Plan, job: Job) -> bool:
    """Whether elements that were read are wanted again before the job is done.

    Layers and models are measured whole before the first of their tensors is merged.
    """
    return passes(plan, job) - (1 if measured_apart(plan, job) else 0) > 1


def measured_apart(plan: Plan, job: Job) -> bool:
    """Whether the job is measured together with others of its layer or model."""
    method = plan.recipe.method
    return (
        job.parameters is not None
        and method.family == "mixture"
        and method.geometry
        and group_of(job) is not None
    )


def group_of(job: Job) -> str | None:
    """The layer or the model that a job is measured with; None where it is a tensor or less."""
    return job.group if job.unit in {"layer", "model"} else None


def wanted_of(plan: Plan, job: Job) -> tuple[Elementwise, list[str]]:
    """What an elementwise method wants done with a tensor, and what it has to say of it."""
    method = plan.recipe.method
    assert job.parameters is not None
    with collected_notes() as said:
        wanted: Elementwise = method.function(**method.arguments(job.parameters, len(job.sources)))
    return wanted, said


def _measurements(wanted: Elementwise, count: int) -> int:
    """Passes over a tensor's elements before the one that combines them."""
    if not isinstance(wanted, Consensus):
        return 0
    sums = wanted.rescale == "by norm" or wanted.by_squares
    return _has_threshold(wanted.keep, count) + sums + (wanted.lone is not None)


def _has_threshold(keep: Selection, count: int) -> bool:
    """Whether elements are chosen by where they are among all."""
    if isinstance(keep, Largest):
        return any(dropped or last < count for dropped, last in keep.ranks(count))
    if isinstance(keep, MostVaried):
        return keep.rank(count) < count
    return isinstance(keep, Outlying)
