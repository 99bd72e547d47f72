"""All that a search works with: the plan, the model in its place, the probe set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.plan import Job, Plan
from ..engine.planner import Planner
from ..engine.reader import Reader
from ..errors import Problem, RecipeError
from ..statistics.embedder import Embedder
from ..train.data import Dataset, open_datasets
from ..train.mining import mine_all
from ..train.specs import TrainingPlan
from .elements import opened
from .geometry import Cells, cells_of, measured, merged_jobs
from .groups import Grouping, grouped
from .position import Position
from .probe import ProbeSet, draw_probe
from .specs import Doubles, SearchSpec

UNRELATED = 0.5
"""A member whose matrices have a lower cosine with those of the base did not start from it: models
that were fine-tuned have 0.9 and more, others about 0."""


@dataclass(frozen=True)
class Probe:
    """The probe set and the data sets that it is of."""

    datasets: Mapping[str, Dataset]
    rows: ProbeSet


@dataclass(frozen=True)
class Scene:
    """A model that stands among its members.

    Attributes:
        plan: of the merge that is searched for.
        jobs: of the tensors that are merged, in the order of their names.
        gram: float64 (K, K), of whole models; `grams`: float64 (T, K, K), of the tensors.
        labels: of the members, as the recipe calls them.
        position: moves `embedder.model`, which is on `device`.
    """

    plan: Plan
    jobs: tuple[Job, ...]
    grouping: Grouping
    cells: Cells
    gram: Doubles
    grams: Doubles
    labels: list[str]
    embedder: Embedder
    position: Position
    device: str


def planned(spec: SearchSpec, output: Path) -> Plan:
    """The plan of the merge; errors as those of `Planner.plan`."""
    return Planner().plan(spec.recipe, output)


def open_probe(spec: SearchSpec) -> Probe | None:
    """Read the data, mine negatives where it asks for some, and draw the probe set.

    None where dev tasks are judged by.

    Raises:
        DataError: with bad rows, data sets too small for a batch, and texts of dev tasks.
    """
    if spec.probe is None:
        return None
    datasets = mine_all(open_datasets(spec.probe), spec.probe)
    return Probe(datasets, probe_of(spec, spec.probe, datasets))


def probe_of(spec: SearchSpec, plan: TrainingPlan, datasets: Mapping[str, Dataset]) -> ProbeSet:
    """Draw the probe set of a search; errors as those of `draw_probe`."""
    own = (spec.rows, spec.held_out, spec.dev)
    return draw_probe(plan, datasets, *own, drop=spec.drops_overlap)


def open_scene(
    spec: SearchSpec, plan: Plan, reader: Reader, device: str, cache: str | int
) -> Scene:
    """Measure the members, and load the model that will move among them.

    Args:
        spec: what is searched.
        plan: of the merge.
        reader: of the members' files; has to stay open.
        device: where the model is to be.
        cache: see `elements.opened`.

    Raises:
        RecipeError: when a member did not start from the base.
        NonFiniteError, CheckpointError: when a model is broken.
    """
    jobs = merged_jobs(plan)
    grouping = grouped([job.name for job in jobs], spec.groups, spec.blocks)
    grams = measured(plan, device)
    embedder = Embedder(str(plan.shell.root), device, spec.max_length)
    parameters = dict(embedder.parameters())
    elements = opened(reader, embedder.model.device, jobs, cache)
    position = Position(parameters, jobs, elements)
    if plan.base is not None and jobs[0].origin is not None:
        refuse_unrelated(spec, jobs, grams, position)
    return Scene(
        plan=plan,
        jobs=jobs,
        grouping=grouping,
        cells=cells_of(plan, grouping, grams),
        gram=grams.sum(axis=0),
        grams=grams,
        labels=[member.reference for member in spec.recipe.members],
        embedder=embedder,
        position=position,
        device=str(embedder.model.device),
    )


def refuse_unrelated(
    spec: SearchSpec, jobs: tuple[Job, ...], grams: Doubles, position: Position
) -> None:
    """Refuse members that are no fine-tunes of the base, by the cosines of their matrices.

    Raises:
        RecipeError: naming each of them.
    """
    position.put(np.zeros(grams.shape[:2]))  # the base
    base = position.flat()
    matrices = np.array([len(job.shape) > 1 and job.name in base for job in jobs])
    if not matrices.any():
        return
    inner = position.against(dict(base))[matrices].sum(axis=0)
    square = sum(
        float(base[job.name].double().square().sum())
        for job, chosen in zip(jobs, matrices, strict=True)
        if chosen
    )
    lengths = np.diagonal(grams, axis1=1, axis2=2)[matrices].sum(axis=0) + 2 * inner + square
    cosines = (inner + square) / np.sqrt(np.maximum(lengths * square, np.finfo(np.float64).tiny))
    recipe = spec.recipe
    found: list[Problem] = []
    for member, cosine in zip(recipe.members, cosines, strict=True):
        if cosine < UNRELATED:
            told = (
                f"has weights that look nothing like those of {recipe.base} (cosine {cosine:.2f})"
            )
            message = f"{told}; is it a fine-tune of another base?"
            found.append(recipe.source.problem((*member.place, "model"), message))
    if found:
        raise RecipeError(found)
