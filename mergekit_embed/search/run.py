"""The whole way: recipe, probe set, members, search, and the recipe that was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.hashing import digest_of
from ..engine.plan import Plan
from ..engine.reader import Reader
from ..engine.stamps import stamp
from ..errors import OutputError
from ..methods import Gram, available
from ..methods.notes import collected_notes
from ..recipe import Recipe
from .by_merging import Merger
from .descent import Descending
from .dev import DevObjective, DevTasks, Scores, compared
from .evolution import Evolving
from .found import NAME, as_yaml, found_recipe
from .geometry import told
from .load import load_search
from .loop import Progress, Searching, Silent, Trail
from .objective import Objective, ProbeLoss
from .prepare import Probe, Scene, open_probe, open_scene, planned
from .soups import FewShot, ForwardSelection, GreedySoup
from .specs import Doubles, Point, SearchSpec
from .start import Merging, mapping_of, starting_point
from .state import STATE, fingerprint, read_state, write_json, write_text
from .strategy import Strategy

REPORT = "search.json"


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        recipe: the file of the recipe that merges it.
        point: its parameters; `value`: what it is judged at, small is good.
        start_value: what the recipe's own parameters were judged at.
        stopped: why the search ended.
        report: the content of search.json.
        seconds: of all runs together.
        resumed: judgements that were there already, from a search that was interrupted.
    """

    recipe: Path
    point: Point
    value: float
    start_value: float
    stopped: str
    report: Mapping[str, Any]
    seconds: float
    resumed: int


def search(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    output: str | Path | None = None,
    *,
    device: str = "auto",
    cache: str | int = "auto",
    restart: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the parameters of a merge on a probe set, and write the recipe that merges with them.

    Args:
        recipe: a YAML file, a mapping with the same keys, or a loaded `Recipe`, with a `search`.
        output: the folder for found.yaml and search.json; `searched/<recipe name>` by default.
        device: where the model is: "auto" (a CUDA device when there is one), "cpu", "cuda:1".
        cache: bytes that may be spent to keep the members there; "auto" for half of what is free,
            "off" to read them at every step.
        restart: do not go on with what an interrupted search left, but begin anew.
        progress: told of points as they are judged.

    Raises:
        RecipeError, PlanError, CheckpointError: when recipe or models are wrong.
        DataError: when the probe set is.
        NonFiniteError: when the members' own loss is not a number.
        OutputError: when something cannot be written.
    """
    spec = load_search(recipe)
    folder = Path(output or Path("searched") / spec.recipe.name).expanduser()
    plan = planned(spec, folder)
    probe = open_probe(spec)
    said = fingerprint(spec, probe.datasets if probe else {}, _inputs(plan, spec.dev))
    _make(folder)
    with Reader(plan.inputs) as reader:
        scene = open_scene(spec, plan, reader, device, cache)
        searching = _searching(spec, scene, probe, progress or Silent())
        searching.save = lambda state: write_json(folder / STATE, {"fingerprint": said, **state})
        kept = None if restart else read_state(folder, said)
        if kept is not None:
            searching.restore(kept)
        resumed = len(searching.trail.judged)
        trail = searching.run()
        searching.stand(trail.best_point)
        report = _report(spec, scene, probe, trail, searching)
    content = found_recipe(spec, trail.best_point, scene.grouping, folder)
    text = as_yaml(content, _remark(spec, trail))
    report["written"] = digest_of(text.encode())
    write_text(folder / NAME, text)
    write_json(folder / REPORT, report)
    (folder / STATE).unlink(missing_ok=True)
    return SearchResult(
        recipe=folder / NAME,
        point=trail.best_point,
        value=trail.best_value,
        start_value=_first(trail),
        stopped=trail.stopped,
        report=report,
        seconds=trail.seconds,
        resumed=resumed,
    )


def _first(trail: Trail) -> float:
    value = trail.judged[0]["value"]
    return math.nan if value is None else float(value)


def _make(folder: Path) -> None:
    """Make the folder before anything that takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error


def _inputs(plan: Plan, dev: Sequence[Path]) -> list[tuple[str, str]]:
    """How the files of members and dev tasks are."""
    files = {path: stamp(path) for folder in dev for path in sorted(folder.glob("*.jsonl"))}
    return [(str(path), repr(found)) for path, found in {**plan.inputs, **files}.items()]


def _searching(
    spec: SearchSpec, scene: Scene, probe: Probe | None, progress: Progress
) -> Searching:
    start = starting_point(spec, scene.jobs, scene.grouping)
    if spec.strategy == "cma_es":
        move = Merger(scene.plan, dict(scene.embedder.parameters()), scene.device).stand
    else:
        merging = Merging(spec.recipe, scene.jobs, scene.cells)

        def move(point: Point) -> None:
            scene.position.put(merging.coefficients(point))

    return Searching(
        strategy=strategy_of(spec, scene, start),
        objective=_objective(spec, scene, probe),
        move=move,
        pull=lambda: scene.cells.summed(scene.position.pulls()),
        save=lambda state: None,
        progress=progress,
        limit=spec.time_limit,
    )


def strategy_of(spec: SearchSpec, scene: Scene, start: Point) -> Strategy:
    """What proposes points as the recipe says, from a point on."""
    if spec.strategy == "gradient":
        return Descending(spec.descent, mapping_of(spec, scene.cells, start), start)
    if spec.strategy == "few_shot":
        return FewShot(scene.labels, spec.temperature)
    if spec.strategy == "cma_es":
        return Evolving(spec.bounds, start, spec.evaluations, spec.seed)
    kind = GreedySoup if spec.strategy == "greedy_soup" else ForwardSelection
    return kind(scene.labels)


def _objective(spec: SearchSpec, scene: Scene, probe: Probe | None) -> Objective:
    model = scene.embedder.model
    if probe is not None:
        return ProbeLoss(model, probe.datasets, probe.rows, spec.seed)
    tasks = DevTasks(spec.dev, BATCH)

    rivals = None
    if spec.objective == "borda":
        rivals = list(_alone(scene, tasks).values())
    return DevObjective(lambda: tasks.scores(model), rivals)


def _alone(scene: Scene, tasks: DevTasks) -> dict[str, Scores]:
    """What the members reach by themselves; the model moves."""
    found: dict[str, Scores] = {}
    for label, weights in zip(scene.labels, np.eye(len(scene.labels)), strict=True):
        scene.position.put(np.tile(weights, (len(scene.jobs), 1)))
        found[label] = tasks.scores(scene.embedder.model)
    return found


BATCH = 32
"""Texts that are embedded at once for dev tasks."""


def _report(
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
        }
    if spec.dev:
        report["dev"] = _comparison(spec, scene, searching, trail)
    return report


def _comparison(
    spec: SearchSpec, scene: Scene, searching: Searching, trail: Trail
) -> dict[str, Any]:
    """What was found on the dev tasks, beside merges that need no search."""
    tasks = DevTasks(spec.dev, BATCH)
    model, position = scene.embedder.model, scene.position
    searching.stand(trail.best_point)
    models = {"found": tasks.scores(model)}
    alone = _alone(scene, tasks)
    best = max(alone, key=lambda label: sum(alone[label].values()))
    models[f"best member ({best})"] = dict(alone[best])
    for name, coefficients in _plain_merges(scene).items():
        position.put(coefficients)
        models[name] = tasks.scores(model)
    searching.move(trail.best_point)
    return compared(models, "found", spec.seed)


def _plain_merges(scene: Scene) -> dict[str, Doubles]:
    """The coefficients of merges that need no search, float64 (T, K): equal weights."""
    count = len(scene.labels)
    uniform = np.full((len(scene.jobs), count), 1.0 / count)
    multislerp = available()["multislerp"].function
    with collected_notes():  # vectors that cancel are the members' own affair
        found = [multislerp(Gram(gram), weight=np.ones(count)) for gram in scene.grams]
    return {"uniform": uniform, "multislerp": np.stack(found)}


def _remark(spec: SearchSpec, trail: Trail) -> str:
    judged = "the loss on the probe set" if spec.objective == "loss" else f"-{spec.objective}"
    return (
        f"Found from {spec.recipe.source.shown} by boom-search ({spec.strategy}): {judged} is "
        f"{trail.best_value:.6g}, and was {_first(trail):.6g} at first.\n"
        f"The search ended because {trail.stopped}. The whole of it is in {REPORT}."
    )
