"""What is looked at: models, or a recipe with them; planned as a merge is, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..engine.plan import Plan
from ..engine.planner import Planner
from ..errors import RecipeError, UsageError
from ..methods import available
from ..recipe import Recipe, load

NOWHERE = Path("nowhere")
"""The output of plans that nobody runs."""


@dataclass(frozen=True)
class Subject:
    """The members as vectors, and the merge that they are meant for.

    Attributes:
        plan: of a merge of whole tensors, from the base where deltas can be taken from one; its
            jobs say which tensors are looked at, and what they are measured from.
        merge: the plan of the recipe; None where models were given.
    """

    plan: Plan
    merge: Plan | None

    @property
    def labels(self) -> tuple[str, ...]:
        """What the members are called."""
        return tuple(model.label for model in self.plan.members)

    @property
    def base(self) -> str | None:
        """What the base is called; None where the members are measured from zero."""
        return self.plan.base.label if self.plan.base and self.has_origin else None

    @property
    def has_origin(self) -> bool:
        """Whether the vectors are task vectors."""
        return any(job.origin is not None for job in self.plan.jobs)


def models(references: Sequence[str], base: str | None) -> Subject:
    """Models by their names.

    Raises:
        UsageError: when there is none.
        RecipeError, PlanError, CheckpointError: as a merge of them would.
    """
    if not references:
        raise UsageError("name a recipe, or one model or more")
    origin = {} if base is None else {"base_model": base}
    method = "linear" if base is None else "task_arithmetic"
    listed = [{"model": reference} for reference in references]
    loaded = load({"merge_method": method, "models": listed, **origin})
    return Subject(Planner().plan(loaded, NOWHERE), None)


def recipe(path: str | Path | Recipe) -> Subject:
    """The members of a recipe.

    Raises:
        RecipeError, PlanError, CheckpointError: as the merge would.
    """
    loaded = load(path)
    if loaded.adapter_output is not None:
        told = "inspects models; look at the adapters' models, `BASE+ADAPTER`, by their names"
        raise RecipeError([loaded.source.problem(("adapter_output",), f"boom-inspect {told}")])
    planner = Planner()
    return planned(planner.plan(replace(loaded, search=None), NOWHERE), planner)


def planned(merge: Plan, planner: Planner | None = None) -> Subject:
    """The members of a merge that has been planned; `planner` is the one that did."""
    plain = _plain(merge.recipe)
    return Subject((planner or Planner()).plan(plain, NOWHERE), merge)


def _plain(recipe: Recipe) -> Recipe:
    """The members of a recipe, each as one vector a tensor, without what is done to them."""
    from_base = recipe.base is not None and recipe.method.base != "first member"
    slices = tuple(
        tuple(replace(member, parameters={}, group=None, statistics=None) for member in one)
        for one in recipe.slices
    )
    return replace(
        recipe,
        method=available()["task_arithmetic" if from_base else "linear"],
        granularity="tensor",
        parameters={},
        slices=slices,
        edits=(),
        search=None,
        allow_non_finite=True,
    )
