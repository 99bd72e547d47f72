"""The whole way: models and tasks, what of them is known, what has to be run, the comparison."""

from __future__ import annotations

import gc
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import mteb
from mteb.models import ModelMeta
from mteb.results import TaskResult

from .. import samples
from ..errors import UsageError
from ..samples import Samples
from .cache import Results
from .compare import Comparison, Row
from .encoder import Encoder, Settings, TaskPrompt
from .models import Model
from .progress import Progress, Silent
from .recording import Recorder
from .tasks import Task, TaskError, load_data, unload_data

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Opened = Callable[[Model, "SentenceTransformer"], None]

BATCH = 32
"""Texts that are embedded at once."""

UNKNOWN_COST = 10**6
"""Of a task whose data is not here yet, in characters."""

REPEATED = 0.05
"""What a task costs whose embeddings are there, as a part of what it costs otherwise."""


@dataclass(frozen=True)
class Unit:
    """A model, perhaps cut to some dimensions, on a task; `result` is None until it was run."""

    model: Model
    meta: ModelMeta
    dimension: int | None
    task: Task
    result: TaskResult | None

    @property
    def label(self) -> str:
        """What tables call the model."""
        name = self.model.name
        return name if self.dimension is None else f"{name}:{self.dimension}"


@dataclass
class _Turn:
    """A model in a run, and what is to do of it; a recipe has no units before it is merged."""

    model: Model
    units: Sequence[Unit] = ()


Pair = tuple[int | None, Task]
"""A task, and how many dimensions it is measured with; None for all."""


class Evaluating:
    """An evaluation of models on tasks."""

    def __init__(
        self,
        models: Sequence[Model],
        tasks: Sequence[Task],
        *,
        results: str | Path = "results",
        settings: Settings | None = None,
        dimensions: Sequence[int] = (),
        device: str = "auto",
        batch_size: int = BATCH,
        progress: Progress | None = None,
        opened: Opened | None = None,
    ):
        """Nothing is read yet.

        Args:
            models: to compare; the first is what the others are compared with.
            tasks: to measure them on.
            results: the folder of finished results, which are not computed again.
            settings: type and prompts.
            dimensions: a row for each, of the first so many dimensions; all when there are none.
            device: where models run: "auto" (a CUDA device when there is one), "cpu", "cuda:1".
            batch_size: texts that are embedded at once.
            progress: told of tasks as they are done.
            opened: given every model that is opened, as it is before anything is measured.

        Raises:
            OutputError: when the folder cannot be made.
        """
        self._models, self._tasks = tuple(models), tuple(tasks)
        self._settings = settings or Settings()
        self._dimensions: tuple[int | None, ...] = tuple(dimensions) or (None,)
        self._device, self._batch_size = device, batch_size
        self._progress, self._opened = progress or Silent(), opened
        revisions = {task.name: task.facts.revision for task in tasks}
        local = {task.name for task in tasks if task.folder is not None}
        self._cache = Results(Path(results), revisions, local)

    def survey(self) -> tuple[Unit, ...]:
        """All there is to do, with the results that are there already.

        Models are read and hashed for that; recipes are merged, and what they give is not kept.

        Raises:
            CheckpointError, PlanError, NonFiniteError: when a model is broken.
        """
        surveyed = (self._units(model, model.revision(self._device)) for model in self._models)
        return tuple(unit for units in surveyed for unit in units)

    def _units(self, model: Model, revision: str) -> list[Unit]:
        """What there is to do of a model, with the results that are there."""
        found: list[Unit] = []
        for dimension in self._dimensions:
            meta = meta_of(model, revision, self._settings, dimension)
            found += [
                Unit(model, meta, dimension, task, self._known(meta, task)) for task in self._tasks
            ]
        return found

    def _known(self, meta: ModelMeta, task: Task) -> TaskResult | None:
        found = self._cache.load_task_result(task.name, meta)
        whole = found is not None and not found.get_missing_evaluations(task.prototype)
        return found if whole else None

    def run(self) -> Comparison:
        """Run what has not been run, and compare.

        A recipe is merged straight into the model that is measured, and hashed on the way; which of
        its results are there already is known only then.

        Raises:
            TaskError: when the data of a task cannot be had, or it fails; what was finished stays.
            CheckpointError, PlanError, NonFiniteError: when a model is broken.
            OutputError: when a result cannot be written.
        """
        turns = [_Turn(model) for model in self._models]
        for turn in turns:
            if not turn.model.is_merged:
                turn.units = self._units(turn.model, turn.model.revision(self._device))
        left = [self._left(turn) for turn in turns]
        units, count = sum(map(len, left)), len(turns) * len(self._dimensions) * len(self._tasks)
        self._progress.start(sum(sum(self._costs(own)) for own in left), units, count - units)
        try:
            with quiet_libraries():
                for turn in turns:
                    self._take(turn)
        except BaseException as error:
            surveyed = [unit for turn in turns for unit in turn.units]
            kept = sum(self._known(unit.meta, unit.task) is not None for unit in surveyed)
            if kept:
                told = f"{kept} of {count} results are there"
                error.add_note(f"{told}; the same command continues")
            raise
        return self._compared([unit for turn in turns for unit in turn.units])

    def _left(self, turn: _Turn) -> list[Pair]:
        """What is to be run of a model as far as that is known; all, before a recipe is merged."""
        if turn.units:
            return [(unit.dimension, unit.task) for unit in turn.units if unit.result is None]
        return [(dimension, task) for dimension in self._dimensions for task in self._tasks]

    def _costs(self, left: Sequence[Pair]) -> list[float]:
        """How long these take, in characters; a task takes little once its texts are embedded."""
        costs, embedded = [], set()
        for _, task in left:
            cost = UNKNOWN_COST if task.cost is None else task.cost
            costs.append(REPEATED * cost if task.name in embedded else cost)
            embedded.add(task.name)
        return costs

    def _take(self, turn: _Turn) -> None:
        """Give a model's units their results."""
        expected, opened = self._left(turn), None
        if turn.model.is_merged:
            gc.collect()  # the model before holds itself, and its memory
            opened, revision = turn.model.merge(self._device, self._settings.dtype)
            turn.units = self._units(turn.model, revision)
        elif expected:  # a model before this one may have had the same weights
            turn.units = [
                unit if unit.result else replace(unit, result=self._known(unit.meta, unit.task))
                for unit in turn.units
            ]
        left = self._left(turn)
        if len(left) < len(expected):
            spared = sum(self._costs(expected)) - sum(self._costs(left))
            self._progress.spared(spared, len(expected) - len(left))
        if left and opened is None:
            gc.collect()
            opened = turn.model.open(self._device, self._settings.dtype)
        if opened is not None and self._opened is not None:
            self._opened(turn.model, opened)
        if left and opened is not None:
            self._run_model(turn, opened)

    def _run_model(self, turn: _Turn, opened: SentenceTransformer) -> None:
        """Measure what is left of an open model."""
        wanted = self._settings.max_length
        if wanted is not None:
            opened.max_seq_length = min(wanted, opened.max_seq_length or wanted)
        longest = opened.get_embedding_dimension()
        for unit in turn.units:
            if unit.dimension is not None and longest and unit.dimension > longest:
                told = f"{turn.model.name} has {longest} dimensions, and no {unit.dimension} to"
                raise UsageError(f"{told} keep; see --dimensions")
        prompts: dict[str, TaskPrompt] = {
            task.name: task.folder.about.prompt
            for task in self._tasks
            if task.folder is not None and task.folder.about.prompt is not None
        }
        encoder = Encoder(
            opened, turn.units[0].meta, self._settings, prompts, self._progress.embedded
        )
        left = self._left(turn)
        names = [(dimension, task.name) for dimension, task in left]
        costs = dict(zip(names, self._costs(left), strict=True))
        for task in self._tasks:
            own = [unit for unit in turn.units if unit.task is task and unit.result is None]
            encoder.keeps = len(own) > 1
            for unit in own:
                cost = costs[unit.dimension, task.name]
                self._progress.began(unit.label, task.name, cost, task.texts)
                result = self._run_unit(encoder, unit)
                turn.units = [
                    replace(one, result=result) if one is unit else one for one in turn.units
                ]
                self._progress.finished(unit.label, task.name, score_of(result, task))
            encoder.forget()
        encoder.close()

    def _run_unit(self, encoder: Encoder, unit: Unit) -> TaskResult:
        task, recorder = unit.task.fresh(), Recorder()
        load_data(task)
        recorder.watch(task)
        self._cache.fresh = recorder.take_out
        encoder.mteb_model_meta, encoder.dimension = unit.meta, unit.dimension
        try:
            mteb.evaluate(
                encoder,
                task,
                encode_kwargs={"batch_size": self._batch_size, "show_progress_bar": False},
                cache=self._cache,
                co2_tracker=False,
                show_progress_bar=False,
            )
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TaskError(f"{unit.label} on {unit.task.name}: {reason}") from error
        finally:
            unload_data(task)
        kept = self._known(unit.meta, unit.task)  # as the next run finds it: files round scores
        assert kept is not None
        return kept

    def _compared(self, units: Sequence[Unit]) -> Comparison:
        rows: dict[str, list[tuple[Unit, TaskResult]]] = {}
        for unit in units:
            assert unit.result is not None
            rows.setdefault(unit.label, []).append((unit, unit.result))
        found = []
        for label, pairs in rows.items():
            first = pairs[0][0]
            scores = {unit.task.name: score_of(result, unit.task) for unit, result in pairs}
            for name in [name for name, score in scores.items() if math.isnan(score)]:
                self._progress.note(f"{label} has no score on {name} (all texts alike?): 0")
                scores[name] = 0.0
            found.append(
                Row(
                    model=first.model.name,
                    revision=str(first.meta.revision),
                    dimension=first.dimension,
                    scores=scores,
                    samples={unit.task.name: self._samples(unit, result) for unit, result in pairs},
                    seconds=sum(_seconds(result) for _, result in pairs),
                )
            )
        return Comparison(tuple(task.facts for task in self._tasks), tuple(found))

    def _samples(self, unit: Unit, result: TaskResult) -> dict[str, Samples]:
        """The samples of a result; none where they do not give its score."""
        path = self._cache.get_task_result_path(unit.task.name, unit.meta).with_suffix(".npz")
        parts = {f"{split}/{entry['hf_subset']}" for split, entry in _entries(result, unit.task)}
        found = {part: one for part, one in samples.read(path).items() if part in parts}
        agrees = found.keys() == parts and samples.agree(found, score_of(result, unit.task) / 100)
        return found if agrees else {}


def meta_of(
    model: Model, revision: str, settings: Settings, dimension: int | None = None
) -> ModelMeta:
    """What mteb is told of a model: its name, and the hash that says what it is.

    mteb gives every model in a folder the same name and revision, and would take the results of one
    for those of the other.
    """
    name = re.sub(r"[^\w.@=,+/-]", "_", model.name.partition("@")[0])
    known = {
        "name": name if name.count("/") == 1 else f"local/{name.replace('/', '.')}",
        "revision": revision,
        "experiment_kwargs": settings.experiment(dimension) or None,
        "framework": ["Sentence Transformers", "PyTorch"],
        "open_weights": True,
    }
    return ModelMeta.create_empty(overwrites=known)


def _entries(result: TaskResult, task: Task) -> list[tuple[str, Mapping[str, object]]]:
    """The scores of the splits and subsets that the task has, each with its split."""
    return [
        (split, entry)
        for split in task.prototype.eval_splits
        for entry in result.scores.get(split, ())
        if entry["hf_subset"] in task.prototype.hf_subsets
    ]


def score_of(result: TaskResult, task: Task) -> float:
    """The main score in points: the mean over splits and subsets."""
    values = [float(str(entry["main_score"])) for _, entry in _entries(result, task)]
    return 100 * (sum(values) / len(values) if values else float(result.get_score()))


def _seconds(result: TaskResult) -> float:
    """What a result took; 0 where mteb does not know, as of a task of parts."""
    taken = result.evaluation_time or 0.0
    return 0.0 if math.isnan(taken) else taken


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the progress bars and remarks of the libraries that mteb is made of."""
    log = logging.getLogger("mteb")
    level, shown = log.level, datasets.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for module in ("mteb", "sklearn", "scipy", "numpy"):
                warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
            yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
