"""What a search has to say at its end: search.json, and the comment in found.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .baselines import FOUND, alone, plain_merges
from .dev import DevTasks, compared
from .geometry import told
from .loop import Searching, Trail
from .prepare import Probe, Scene
from .sampling import along, front
from .specs import SearchSpec

REPORT = "search.json"


def report_of(
    spec: SearchSpec, scene: Scene, probe: Probe | None, trail: Trail, searching: Searching
) -> dict[str, Any]:
    """What search.json says."""
    report: dict[str, Any] = {
        "recipe": spec.recipe.source.shown,
        "method": spec.recipe.method.name,
        "strategy": spec.strategy,
        "objective": spec.objective,
        "groups": [group.name for group in scene.grouping.groups],
        "members": scene.labels,
        "vectors": told(scene.gram, scene.labels),
        "found": trail.judged[trail.best or 0],
        "judged": trail.judged,
        "losses": [loss if math.isfinite(loss) else None for loss in trail.steps],
        "stopped": trail.stopped,
        "seconds": round(trail.seconds, 3),
    }
    if probe is not None:
        report["probe"] = {
            "rows": {name: len(numbers) for name, numbers in probe.rows.rows.rows.items()},
            "digests": {name: one.digest for name, one in probe.datasets.items()},
            "batches": len(probe.rows.taught),
            "judged_on": len(probe.rows.judged),
            "dropped": probe.rows.dropped,
        }
    if spec.axes:
        report["front"] = front_of(spec, trail)
    if spec.dev:
        best, told_of_dev = _comparison(spec, scene, searching, trail)
        report["dev"] = told_of_dev
        report["chosen"] = chosen(told_of_dev) if spec.falls_back else FOUND
        report["best_member"] = best
    return report


def chosen(dev: Mapping[str, Mapping[str, Any]]) -> str:
    """The merge that is best on the dev tasks; what was found, where it is as good as any."""
    best = max(dev, key=lambda name: float(dev[name]["mean"]))
    return best if dev[best]["mean"] > dev[FOUND]["mean"] else FOUND


def _comparison(
    spec: SearchSpec, scene: Scene, searching: Searching, trail: Trail
) -> tuple[str, dict[str, Any]]:
    """The best member, and what was found on dev tasks beside merges that need no search."""
    tasks = DevTasks(spec.dev)
    model, position = scene.embedder.model, scene.position
    searching.stand(trail.best_point)
    models = {FOUND: tasks.measured(model)}
    singles = alone(scene, tasks)
    best = max(singles, key=lambda label: sum(singles[label].scores.values()))
    models[f"best member ({best})"] = singles[best]
    for name, coefficients in plain_merges(scene).items():
        position.put(coefficients)
        models[name] = tasks.measured(model)
    return best, compared(models, FOUND, spec.seed)


def front_of(spec: SearchSpec, trail: Trail) -> list[dict[str, Any]]:
    """The points that no other beats on all axes: their numbers, labels and values by axis."""
    axes = [along(spec.axes, one["tasks"]) if one["tasks"] else None for one in trail.judged]
    return [
        {"point": number, "label": trail.judged[number]["label"], "axes": axes[number]}
        for number in front(axes, spec.sign)
    ]


def remark_on(spec: SearchSpec, trail: Trail) -> str:
    """The comment before a recipe that was found."""
    judged = "the loss on the probe set" if spec.objective == "loss" else f"-{spec.objective}"
    return (
        f"Found from {spec.recipe.source.shown} by boom-search ({spec.strategy}): {judged} is "
        f"{trail.best_value:.6g}, and was {trail.first_value:.6g} at first.\n"
        f"The search ended because {trail.stopped}. The whole of it is in {REPORT}."
    )


def remark_on_chosen(spec: SearchSpec, report: Mapping[str, Any]) -> str:
    """The comment before a merge that needs no search, and is better than what was found."""
    dev, name = report["dev"], report["chosen"]
    return (
        f"Written by boom-search for {spec.recipe.source.shown}: on the dev tasks {name} has "
        f"{dev[name]['mean']:.6g}, and what was found {dev[FOUND]['mean']:.6g}.\n"
        f"What was found is in {REPORT}, and is written here with `fallback: false`."
    )


def remark_on_front(spec: SearchSpec, axes: Mapping[str, float]) -> str:
    """The comment before a recipe of a point that trades axes off."""
    values = ", ".join(f"{name} {value:.6g}" for name, value in axes.items())
    what = "losses on the probe set" if spec.objective == "loss" else "dev tasks"
    return (
        f"Found from {spec.recipe.source.shown} by boom-search: {values} ({what}).\n"
        f"No other point was as good on all of these, and better on one."
    )
