"""One pass over the members: the engine's Gram matrices, and a sample of the elements."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..engine.agenda import Agenda, pass_size
from ..engine.mixtures import GramLook, coefficients, measure
from ..engine.passes import group_of
from ..engine.plan import Job, Plan
from ..engine.reader import Reader
from ..engine.remembered import keeper
from ..engine.run import Progress, Running, Silent
from ..engine.stream import Chunk, Look, Pass, Steps, Work
from ..errors import UsageError
from ..kernels import open_kernels
from ..methods import Gram
from .facts import Facts, TensorFacts
from .rank import Products
from .sample import Sampled, signs_of
from .subject import Subject

Doubles = NDArray[np.float64]

SAMPLE = 32768
"""Elements of a tensor that signs and largest elements are counted on."""

SMALL = 10**9
"""Bytes of inputs below which compiling the kernels takes longer than looking."""


def inspect(
    subject: Subject,
    *,
    device: str = "auto",
    sample: int = SAMPLE,
    rank: bool = False,
    progress: Progress | None = None,
) -> Facts:
    """Measure members before they are merged; their Gram matrices are kept for merges of them.

    Args:
        subject: what to look at.
        device: where to compute: "auto" (a CUDA device when there is one), "cpu", "cuda", "cuda:1".
        sample: elements of a tensor that signs and largest elements are counted on.
        rank: also measure effective ranks, which takes a matrix product of every matrix.
        progress: told of bytes and tensors as they are done.

    Raises:
        CheckpointError, ChangedError: when a file is broken or changes meanwhile.
        UsageError: when there is no such device, or the sample is too small.
    """
    if sample < 64:
        raise UsageError(f"a sample of {sample} elements tells nothing; take 64 or more")
    plan, merge = subject.plan, subject.merge
    plans = (plan, merge) if merge is not None and _has_own_grams(merge) else (plan,)
    kernels = open_kernels(device, small=plan.bytes_in < SMALL)
    keepers = [keeper(one) for one in plans]
    grams: dict[int, dict[str, Gram]] = {id(one): {} for one in plans}
    tensors: dict[str, TensorFacts] = {}
    inputs = {path: stamp for one in plans for path, stamp in one.inputs.items()}
    with Reader(inputs) as reader, kernels.session():
        agenda = Agenda(plans, lambda one, job: False)
        running = Running(agenda, kernels, reader, progress or Silent())
        for (one, job), (gram, facts) in _looked(running, subject, sample, rank=rank):
            grams[id(one)][job.name] = gram
            if facts is not None:
                tensors[job.name] = facts
    kept = [one.keep(grams[id(one.plan)]) for one in keepers]
    remarks = dict.fromkeys([*running.remembered.remarks, *(remark for remark in kept if remark)])
    mixed = _coefficients(merge, grams[id(plans[-1])], len(subject.labels)) if merge else {}
    return Facts(
        labels=subject.labels,
        base=subject.base,
        tensors=tuple(
            replace(tensors[name], coefficients=mixed.get(name)) for name in sorted(tensors)
        ),
        sample=sample,
        recipe=(merge.recipe.source.shown, merge.recipe.method.name) if merge else None,
        notes=(*remarks, *plan.notes),
    )


def _has_own_grams(merge: Plan) -> bool:
    """Whether a merge's coefficients follow from Gram matrices."""
    return merge.recipe.method.family == "mixture" and merge.recipe.method.geometry


def _looked(
    running: Running, subject: Subject, sample: int, *, rank: bool
) -> Iterator[tuple[tuple[Plan, Job], tuple[Gram, TensorFacts | None]]]:
    """The Gram matrix of every job, with all else of those of the subject's own plan."""
    progress = running.progress
    wanted = [(one, job) for one in running.agenda.plans for job in one.jobs if _is_measured(job)]

    def steps(work: Work) -> Steps[tuple[Gram, TensorFacts | None]]:
        found: tuple[Gram, TensorFacts | None]
        if work.plan is subject.plan:
            found = yield from _examined(work, len(subject.labels), sample, rank=rank)
        else:
            found = (yield from measure(work)), None
        progress.finish_tensor(work.job.name)
        return found

    progress.start(sum(pass_size(job) for _, job in wanted), len(wanted))
    yield from running.results(wanted, steps)


def _is_measured(job: Job) -> bool:
    """Whether a job's tensor is merged as one vector, or as a part of one."""
    return job.parameters is not None and job.count > 0 and job.unit in {"tensor", "layer", "model"}


class _Length:
    """The squared length of the origin: a `Look`."""

    def __init__(self) -> None:
        self.squared = 0.0

    def see(self, chunk: Chunk) -> None:
        """Add the blocks of the chunk."""
        origin = chunk.origin()
        if origin is not None:
            found = chunk.work.kernels.block_moments([origin], None, False)
            for squared in found.products[:, 0, 0]:  # block by block, whatever the chunks
                self.squared += float(squared)


def _examined(
    work: Work, members: int, sample: int, *, rank: bool
) -> Steps[tuple[Gram, TensorFacts]]:
    """Everything about one tensor, in one pass."""
    job = work.job
    sampled, length, products = Sampled(job.count, sample), _Length(), _products(job, rank)
    # The name that `measure` gives the same look, so that a merge's own is the same one.
    same = work.key((("moments", False), 0, job.count))
    known = work.known(False)
    looks: dict[Hashable, Look] = {object(): sampled}
    if known is None:
        looks[same] = GramLook(len(job.sources), False)
    if job.origin is not None:
        looks[object()] = length
    if products is not None:
        looks[object()] = products
    seen = yield Pass(looks, 0, job.count, work.chunk_elements)
    look = seen.get(same)
    gram = Gram(look.products, None) if isinstance(look, GramLook) else known
    assert gram is not None  # measured now, or before
    places = np.array(job.members, dtype=np.int64)
    whole = np.zeros((members, members))
    whole[np.ix_(places, places)] = gram.matrix
    ranks = None
    if products is not None:
        ranks = np.zeros(members)
        ranks[places] = products.ranks()
    return gram, TensorFacts(
        name=job.name,
        shape=job.shape,
        members=places,
        gram=whole,
        base_squared=None if job.origin is None else length.squared,
        signs=signs_of(sampled.vectors()),
        rank=ranks,
        coefficients=None,
    )


def _products(job: Job, rank: bool) -> Products | None:
    """What the rank of a matrix is told from; None where none is wanted, or there is no matrix."""
    if not rank or len(job.shape) != 2 or min(job.shape) < 2:
        return None
    return Products(len(job.sources), job.shape[1])


def _coefficients(merge: Plan, grams: Mapping[str, Gram], members: int) -> dict[str, Doubles]:
    """The coefficients of every tensor that has one vector of them: float64 (K,)."""
    method = merge.recipe.method
    if method.family != "mixture":
        return {}
    jobs = sorted((job for job in merge.jobs if _is_measured(job)), key=lambda job: job.name)
    known = {
        job.name: grams[job.name] if method.geometry else Gram(np.eye(len(job.sources)))
        for job in jobs
    }
    groups: dict[str, Gram] = {}
    for job in jobs:  # in the order of names, as a merge adds them
        group = group_of(job)
        if group is not None:
            groups[group] = groups[group] + known[job.name] if group in groups else known[job.name]
    found = {}
    for job in jobs:
        mixed, _ = coefficients(merge, job, groups.get(group_of(job) or "", known[job.name]))
        found[job.name] = np.zeros(members)
        np.add.at(found[job.name], np.array(job.members, dtype=np.int64), mixed)
    return found
