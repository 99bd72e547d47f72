"""Recipes of `boom-merge` that are lineages: merges made again, and held against what they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..engine import Plan
    from ..engine.adapter_plan import AdapterPlan
    from ..publish.lineage_repeat import Repeat


def name_of(recipe: Path) -> str:
    """What a recipe's model is called: as the file, or as the folder that a lineage is in."""
    from ..engine.lineage.file import is_lineage

    return recipe.absolute().parent.name if is_lineage(recipe) else recipe.stem


def wanted(recipes: Sequence[Path], members: Sequence[Path]) -> dict[Path, Repeat]:
    """Those of the recipes that are lineages, with their members found.

    Raises:
        UsageError: when members are to be looked for, and there is none.
        MergekitEmbedError: as `repeat` does.
    """
    from ..engine.lineage.file import is_lineage

    chosen = [one for one in recipes if is_lineage(one)]
    if members and not chosen:
        raise UsageError("--members is for a merge_lineage.json; a recipe names its members itself")
    if not chosen:
        return {}
    from ..publish.lineage_repeat import repeat

    return {one: repeat(one, members) for one in chosen}


def compare(again: Iterable[Repeat], planned: Sequence[Plan | AdapterPlan], *, quiet: bool) -> None:
    """Hold what was merged against the merges that it repeats.

    Raises:
        CheckpointError: when bytes differ.
    """
    for one in again:
        from ..publish.lineage_repeat import refuse_different

        output = next(p.output for p in planned if p.recipe.source is one.recipe.source)
        refuse_different(one.lineage, output)
        if not quiet:
            count = len(one.lineage.outputs)
            click.echo(f"{output} has the bytes that {one.lineage.path} tells of: {count} files")
