"""The whole way: recipe, probe set, members, search, and the recipe that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.hashing import digest_of
from ..engine.plan import Plan
from ..engine.reader import Reader
from ..engine.stamps import stamp
from ..errors import OutputError
from ..recipe import Recipe
from .baselines import FOUND, alone
from .box import Box
from .by_merging import Merger
from .descent import Descending
from .dev import DevObjective, DevTasks
from .evolution import Evolving
from .found import NAME, as_yaml, found_recipe, plain_recipe
from .load import load_search
from .loop import Progress, Searching, Silent, Trail
from .objective import Objective, ProbeLoss
from .prepare import Probe, Scene, open_probe, open_scene, planned
from .preview import target_of
from .report import REPORT, remark_on, remark_on_chosen, remark_on_front, report_of
from .sampling import Sampling
from .soups import FewShot, ForwardSelection, GreedySoup
from .specs import Point, SearchSpec
from .start import Merging, mapping_of, starting_point
from .state import STATE, fingerprint, read_state, write_json, write_text
from .strategy import Strategy

FRONT = "front"
"""The folder for recipes of the points of a front, beside found.yaml."""


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        recipe: the file of the recipe that merges it, or another merge that is better on dev tasks
            and needs no search; `report["chosen"]` says which.
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
    folder = target_of(spec, output)
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
        report = report_of(spec, scene, probe, trail, searching)
    report["written"] = _write_recipes(spec, scene, trail, folder, report)
    write_json(folder / REPORT, report)
    (folder / STATE).unlink(missing_ok=True)
    return SearchResult(
        recipe=folder / NAME,
        point=trail.best_point,
        value=trail.best_value,
        start_value=trail.first_value,
        stopped=trail.stopped,
        report=report,
        seconds=trail.seconds,
        resumed=resumed,
    )


def _write_recipes(
    spec: SearchSpec, scene: Scene, trail: Trail, folder: Path, report: Mapping[str, Any]
) -> str:
    """found.yaml, whose hash is returned, and a recipe for every point of a front."""
    if report.get("chosen", FOUND) == FOUND:
        content = found_recipe(spec, trail.best_point, scene.grouping, folder)
        text = as_yaml(content, remark_on(spec, trail))
    else:
        content = plain_recipe(spec, report["chosen"], report["best_member"], folder)
        text = as_yaml(content, remark_on_chosen(spec, report))
    write_text(folder / NAME, text)
    for place, one in enumerate(report.get("front", ()), start=1):
        file = folder / FRONT / f"{place}.yaml"
        content = found_recipe(spec, trail.point(one["point"]), scene.grouping, file.parent)
        content["output"] = f"{content['output']}-{place}"
        write_text(file, as_yaml(content, remark_on_front(spec, one["axes"])))
    return digest_of(text.encode())


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
    if spec.boxed:
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
        return Evolving(Box(spec.bounds, start), spec.evaluations, spec.seed)
    if spec.strategy == "optuna":
        box = Box(spec.bounds, start)
        return Sampling(box, spec.evaluations, spec.seed, spec.axes, spec.sign)
    kind = GreedySoup if spec.strategy == "greedy_soup" else ForwardSelection
    return kind(scene.labels)


def _objective(spec: SearchSpec, scene: Scene, probe: Probe | None) -> Objective:
    model = scene.embedder.model
    if probe is not None:
        return ProbeLoss(model, probe.datasets, probe.rows, spec.seed, balanced=spec.balanced)
    tasks = DevTasks(spec.dev)

    rivals = None
    if spec.objective == "borda":
        rivals = [one.scores for one in alone(scene, tasks).values()]
    return DevObjective(lambda: tasks.scores(model), rivals)
