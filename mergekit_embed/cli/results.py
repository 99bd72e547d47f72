"""How merges are told of: on a line for people, and as JSON for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .console import duration_of, size_of

if TYPE_CHECKING:
    from ..engine import MergeResult, Plan
    from ..engine.adapter_plan import AdapterPlan


def point_of(planned: Plan | AdapterPlan) -> dict[str, str]:
    """Which point of a sweep it is, if it is one."""
    return {"point": planned.recipe.point} if planned.recipe.point else {}


def summary(result: MergeResult, *, alone: bool) -> str:
    """One line on a merge; on what it took only where that was not shared with others."""
    models = "1 model" if result.members == 1 else f"{result.members} models"
    cost = f", {cost_of(result)}" if alone else ""
    return f"merged {models} into {result.path}   {size_of(result.bytes_written)}{cost}"


def cost_of(result: MergeResult) -> str:
    """What a run took: time, memory, and what was read."""
    times = result.bytes_read / max(result.bytes_in, 1)
    often = "once" if times < 1.01 else f"{times:.1f} times"
    read = f"{size_of(result.bytes_in)} read {often}"
    if times < 0.99:  # of a merge that was continued
        read = f"{size_of(result.bytes_read)} of {size_of(result.bytes_in)} read"
    return f"{duration_of(result.seconds)}, peak {size_of(result.peak_memory)}, {read}"


def as_dict(result: MergeResult) -> dict[str, Any]:
    """A merge for scripts."""
    return {
        "output": str(result.path),
        "members": result.members,
        "seconds": round(result.seconds, 3),
        "bytes_read": result.bytes_read,
        "bytes_in": result.bytes_in,
        "bytes_written": result.bytes_written,
        "peak_memory": result.peak_memory,
        "notes": list(result.notes),
        "resumed": result.resumed,
    }
