"""The engine: plan a merge, stream it, commit it."""

from .destination import check_disk
from .merge import (
    MergeResult,
    execute,
    merge,
    merge_many,
    plan,
    plan_many,
    refuse_shared_outputs,
)
from .plan import Plan
from .planner import Planner
from .run import Progress

__all__ = [
    "MergeResult",
    "Plan",
    "Planner",
    "Progress",
    "check_disk",
    "execute",
    "merge",
    "merge_many",
    "plan",
    "plan_many",
    "refuse_shared_outputs",
]
