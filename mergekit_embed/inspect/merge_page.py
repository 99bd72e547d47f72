"""The page of a merge: what was merged, how, and what the members are like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..engine import MergeResult, Plan
from ..engine.adapter_plan import AdapterPlan
from ..errors import UsageError
from ..recipe.source import plain
from ..report import Section, bullets, code, page, paragraph, require, table, write
from .facts import Facts
from .look import inspect
from .page import sections
from .subject import planned

Write = Callable[[Sequence[MergeResult]], list[Path]]
"""Writes the pages of merges that are done; their files."""


@contextmanager
def reported(path: Path, plans: Sequence[Plan | AdapterPlan], device: str) -> Iterator[Write]:
    """Inspect the members of merges, and be ready to write their pages once they are done.

    The members are measured before they are merged: Gram matrices that are known then are not
    measured again. Of several models each has a page of its own, `report-NAME.html` for
    `report.html`.

    Raises:
        UsageError: when a page cannot be had: there is no matplotlib, or a result is an adapter.
        MergekitEmbedError: as `inspect` does.
    """
    require()
    models = [plan for plan in plans if isinstance(plan, Plan)]
    if len(models) < len(plans):
        raise UsageError("--report tells of models, and one of these recipes makes an adapter")
    facts = [inspect(planned(plan), device=device) for plan in models]
    alone = len(models) == 1
    pages = [path if alone else _page_of(path, plan) for plan in models]

    def write_all(results: Sequence[MergeResult]) -> list[Path]:
        for one, plan, found, result in zip(pages, models, facts, results, strict=True):
            write(one, merge_page(plan, found, result))
        return pages

    yield write_all


def _page_of(path: Path, plan: Plan) -> Path:
    return path.with_name(f"{path.stem}-{plan.output.name}{path.suffix}")


def merge_page(plan: Plan, facts: Facts, result: MergeResult) -> str:
    """The whole page of one merge."""
    merged = sum(job.parameters is not None for job in plan.jobs)
    told = (
        f"{result.members} members by {plan.recipe.method.name} into {result.path}: {merged} "
        f"tensors merged, {len(plan.jobs) - merged} copied, in {result.seconds:.1f} seconds."
    )
    begin = Section("Merge", paragraph(told) + bullets(result.notes) + _plan(plan))
    return page(
        f"Merge of {plan.recipe.name}", plan.recipe.method.summary, [begin, *sections(facts)]
    )


def _plan(plan: Plan) -> str:
    rows = [["method", plan.recipe.method.name], ["granularity", plan.recipe.granularity]]
    rows += [["member", model.label] for model in plan.members]
    rows += [["base", plan.base.label]] if plan.base else []
    rows += [["other files from", plan.shell.label], ["seed", str(plan.recipe.seed)]]
    rows += [["edit", edit] for edit in plan.edits]
    rows += [["file", f"{file.path}, {file.size:,} bytes"] for file in plan.files]
    return table(["plan", ""], rows) + _recipe(plan)


def _recipe(plan: Plan) -> str:
    """What the recipe says, with the values of its point where it is one of a sweep."""
    return code(json.dumps(plain(plan.recipe.source.data), indent=2, default=str))
