"""What a search would do, from recipe, data and the headers of models; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..train.data import open_datasets
from ..train.dev import evaluator
from .geometry import merged_jobs
from .groups import grouped
from .load import load_search
from .prepare import planned, probe_of
from .probe import ProbeSet
from .soups import ForwardSelection
from .specs import SearchSpec

FLOAT32 = 4
"""Bytes of an element of the model that is searched with, and of its gradient."""


@dataclass(frozen=True)
class SearchPreview:
    """What a search comes to.

    Attributes:
        recipe: the file; `output`: the folder that would be written.
        members: bytes that each takes as it is stored.
        tensors: that are merged; `groups`: names of those that share coefficients.
        judgements: at most; `steps`: of a descent, else 0.
        rows: of the probe set, by data set; `taught`, `judged`: its batches; `dropped`: rows
            that are left out as dev tasks have them.
        mined: data sets that negatives would be looked for first.
        dev: names of dev tasks.
        model_bytes: of the model in float32; `gradient_bytes`: of its gradients, if there are any.
    """

    recipe: str
    method: str
    strategy: str
    objective: str
    output: Path
    members: Mapping[str, int]
    tensors: int
    groups: tuple[str, ...]
    judgements: int
    steps: int
    rows: Mapping[str, int]
    taught: int
    judged: int
    dropped: int
    mined: tuple[str, ...]
    dev: tuple[str, ...]
    model_bytes: int
    gradient_bytes: int


def preview_search(
    recipe: str | Path | Mapping[str, Any] | Recipe, output: str | Path | None = None
) -> SearchPreview:
    """Check a search and tell what it would do; nothing is written, and no model loaded.

    Args:
        recipe: as for `search`.
        output: as for `search`.

    Raises:
        RecipeError, PlanError, CheckpointError: when recipe or models are wrong.
        DataError: when the probe set or a dev task is.
    """
    spec = load_search(recipe)
    folder = target_of(spec, output)
    plan = planned(spec, folder)
    jobs = merged_jobs(plan)
    grouping = grouped([job.name for job in jobs], spec.groups, spec.blocks)
    for task in spec.dev:
        evaluator(task)
    rows, drawn = _probe(spec)
    elements = sum(job.count for job in jobs)
    descends = spec.strategy == "gradient"
    sizes = {
        member.reference: sum(job.sources[index].nbytes for job in jobs)
        for index, member in enumerate(spec.recipe.members)
    }
    return SearchPreview(
        recipe=spec.recipe.source.shown,
        method=spec.recipe.method.name,
        strategy=spec.strategy,
        objective=spec.objective,
        output=folder,
        members=sizes,
        tensors=len(jobs),
        groups=tuple(group.name for group in grouping.groups),
        judgements=_judgements(spec, len(sizes)),
        steps=spec.descent.steps if descends else 0,
        rows=rows,
        taught=len(drawn.taught) if drawn else 0,
        judged=len(drawn.judged) if drawn else 0,
        dropped=drawn.dropped if drawn else 0,
        mined=tuple(name for name, one in _datasets(spec).items() if one.mine is not None),
        dev=tuple(task.name for task in spec.dev),
        model_bytes=elements * FLOAT32,
        gradient_bytes=elements * FLOAT32 if descends else 0,
    )


def target_of(spec: SearchSpec, output: str | Path | None) -> Path:
    """The folder that a search writes."""
    return Path(output or Path("searched") / spec.recipe.name).expanduser()


def _datasets(spec: SearchSpec) -> Mapping[str, Any]:
    return {} if spec.probe is None else spec.probe.datasets


def _probe(spec: SearchSpec) -> tuple[dict[str, int], ProbeSet | None]:
    """Rows by data set, and the batches; nothing where dev tasks are judged by."""
    if spec.probe is None:
        return {}, None
    drawn = probe_of(spec, spec.probe, open_datasets(spec.probe))
    return {name: len(numbers) for name, numbers in drawn.rows.rows.items()}, drawn


def _judgements(spec: SearchSpec, members: int) -> int:
    """How often a point is judged, at most."""
    if spec.strategy == "gradient":
        return 1 + -(-spec.descent.steps // spec.descent.evaluate_every)
    if spec.strategy == "few_shot":
        return members + 1
    if spec.strategy == "greedy_soup":
        return 2 * members - 1
    if spec.strategy == "forward_selection":
        return members * ForwardSelection.MOST
    return spec.evaluations
