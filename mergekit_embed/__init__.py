"""mergekit_embed: the toolkit for merging text-embedding checkpoints.

    import mergekit_embed
    mergekit_embed.merge("recipe.yaml", "out/merged")
    model = mergekit_embed.load("recipe.yaml")  # merged straight into a SentenceTransformer

Everything public is importable from here; what needs time to import is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, open_checkpoint
    from .engine import MergeResult, Plan, merge, merge_many, plan, plan_many
    from .engine.adapter_plan import AdapterPlan, plan_adapter
    from .engine.adapters import AdapterResult, merge_adapters
    from .engine.extract import Extracted, extract_lora
    from .engine.verify import Verified, verify
    from .errors import (
        ChangedError,
        CheckpointError,
        DataError,
        MergekitEmbedError,
        NonFiniteError,
        OutputError,
        OutputExistsError,
        PlanError,
        Problem,
        RecipeError,
        UsageError,
        WorkerError,
    )
    from .loading import load
    from .publish.card import check_card, update_card, write_card
    from .publish.lineage import Lineage, read_lineage
    from .publish.lineage_repeat import Repeat, repeat
    from .recipe import Recipe
    from .recipe import load as load_recipe
    from .recipe import load_all as load_recipes
    from .statistics import Collected, collect_statistics

_HOMES = {
    "Checkpoint": "checkpoint",
    "open_checkpoint": "checkpoint",
    "AdapterPlan": "engine.adapter_plan",
    "AdapterResult": "engine.adapters",
    "merge_adapters": "engine.adapters",
    "Verified": "engine.verify",
    "verify": "engine.verify",
    "plan_adapter": "engine.adapter_plan",
    "Extracted": "engine.extract",
    "extract_lora": "engine.extract",
    "MergeResult": "engine",
    "Plan": "engine",
    "merge": "engine",
    "merge_many": "engine",
    "plan": "engine",
    "plan_many": "engine",
    "ChangedError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "MergekitEmbedError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "OutputExistsError": "errors",
    "PlanError": "errors",
    "Problem": "errors",
    "RecipeError": "errors",
    "UsageError": "errors",
    "WorkerError": "errors",
    "check_card": "publish.card",
    "update_card": "publish.card",
    "write_card": "publish.card",
    "Lineage": "publish.lineage",
    "read_lineage": "publish.lineage",
    "Repeat": "publish.lineage_repeat",
    "repeat": "publish.lineage_repeat",
    "Recipe": "recipe",
    "load": "loading",
    "load_recipe": "recipe:load",
    "load_recipes": "recipe:load_all",
    "Collected": "statistics",
    "collect_statistics": "statistics",
}

__all__ = [
    "AdapterPlan",
    "AdapterResult",
    "ChangedError",
    "Checkpoint",
    "CheckpointError",
    "Collected",
    "DataError",
    "Extracted",
    "Lineage",
    "MergeResult",
    "MergekitEmbedError",
    "NonFiniteError",
    "OutputError",
    "OutputExistsError",
    "Plan",
    "PlanError",
    "Problem",
    "Recipe",
    "RecipeError",
    "Repeat",
    "UsageError",
    "Verified",
    "WorkerError",
    "__version__",
    "check_card",
    "collect_statistics",
    "extract_lora",
    "load",
    "load_recipe",
    "load_recipes",
    "merge",
    "merge_adapters",
    "merge_many",
    "open_checkpoint",
    "plan",
    "plan_adapter",
    "plan_many",
    "read_lineage",
    "repeat",
    "update_card",
    "verify",
    "write_card",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, called = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), called or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
