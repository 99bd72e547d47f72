"""The engine: plan a merge, stream it, commit it."""

from .merge import MergeResult, execute, merge, plan
from .plan import Plan
from .run import Progress

__all__ = ["MergeResult", "Plan", "Progress", "execute", "merge", "plan"]
