"""Training one member, from the base to its models in their places."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from torch import nn

from ..engine.lineage.names import public_name
from ..engine.staging import Staging, sync, write_json
from ..errors import DataError, OutputError, Problem, UsageError
from .arguments import arguments
from .bags import Member
from .batches import Columns, Order, Rows, steps_of
from .card import describe, tell_curve
from .checkpoints import latest
from .data import Dataset
from .interrupt import Interrupt, put_off
from .keeping import Keeping
from .merging import FOLDER
from .models import open_base, prepare, prompts, put_weights, write
from .objectives import built
from .places import places
from .processes import Processes, has_accelerator
from .progress import Progress
from .record import WORK, Fingerprint, curve_of, file_sizes, rows_of, versions
from .schedules import schedule, walk
from .specs import TrainingPlan
from .trainer import MemberTrainer


@dataclass(frozen=True)
class Job:
    """One member to train.

    Attributes:
        base: the folder of the model to start from.
        output: the folder of the whole run.
        number, count: which of how many members it is, for progress.
    """

    plan: TrainingPlan
    member: Member
    datasets: Mapping[str, Dataset]
    base: Path
    output: Path
    fingerprint: Fingerprint
    number: int
    count: int

    @property
    def work(self) -> Path:
        """Where its checkpoints lie."""
        return self.output / WORK / self.member.name


def train_member(job: Job, processes: Processes, progress: Progress) -> dict[str, Any]:
    """Train a member, or go on with it, and put its models into their places.

    Returns:
        what the record says of it.

    Raises:
        UsageError: when the model or the device cannot do what the plan wants.
        CheckpointError: when the base cannot be loaded.
        OutputError: when something cannot be written.
        NonFiniteError: when the loss is no number any more.
        DataError: when a file of rows has changed since it was checked.
        KeyboardInterrupt: when it was interrupted; a checkpoint is there.
    """
    checkpoint = processes.agree(lambda: _checkpoint(job))
    with _quiet(), _deterministic():
        run = _Run(job, processes, progress)
        run.train(checkpoint)
        told = processes.agree(run.finish)
    del run
    gc.collect()  # models and trainers refer to each other; the next member needs their memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return told


def _checkpoint(job: Job) -> Path | None:
    """The checkpoint to go on from, in a working folder that is of the same training."""
    mark = job.work / "fingerprint.json"
    if not mark.is_file() or json.loads(mark.read_text()) != job.fingerprint.exact:
        if job.work.exists():
            shutil.rmtree(job.work)
        job.work.mkdir(parents=True)
        write_json(mark, job.fingerprint.exact)
    return latest(job.work)


class _Run:
    """A member on its way."""

    def __init__(self, job: Job, processes: Processes, progress: Progress):
        self._job, self._processes, self._progress = job, processes, progress
        self._name = public_name(job.base)
        plan, member = job.plan, job.member
        self._datasets = {name: job.datasets[name] for name in job.datasets if name in member.rows}
        self._steps = steps_of(plan, member, self._datasets)
        self._interrupt = Interrupt()
        self._arguments = arguments(plan, member, job.work, self._steps, processes)
        torch.manual_seed(self._arguments.seed)  # for what adapters start with
        self._model = open_base(plan, job.base)
        self._length = self._model.max_seq_length
        prepare(self._model, plan)
        self._losses = _losses(self._model, self._datasets)
        self._trainer, self._keeping = self._assembled()

    def _assembled(self) -> tuple[MemberTrainer, Keeping]:
        plan, member, datasets = self._job.plan, self._job.member, self._datasets
        keeping = Keeping(
            plan, member.spec, self._job.work, self._processes, self._progress, self._interrupt
        )
        keys = {id(loss): f"loss_{i}" for i, loss in enumerate(_distinct(self._losses))}
        order = Order(plan, member, datasets, self._processes.count)
        columns = Columns(
            self._model.preprocess,
            datasets,
            {name: prompts(self._model, dataset) for name, dataset in datasets.items()},
            {name: keys[id(loss)] for name, loss in self._losses.items()},
        )
        if plan.early_stop is not None:
            keeping.evaluator = _evaluator(plan)
        describe(self._model, plan, member, datasets, self._losses, self._name)
        trainer = MemberTrainer(
            rows=Rows(member, datasets, _examples(self._job, datasets, self._steps)),
            order=order,
            columns=columns,
            model=self._model,
            args=self._arguments,
            loss={keys[id(loss)]: loss for loss in _distinct(self._losses)},
            evaluator=keeping.evaluator,
            callbacks=[keeping],
        )
        keeping.trainer = trainer
        return trainer, keeping

    def train(self, checkpoint: Path | None) -> None:
        """Every step that is left."""
        job = self._job
        if checkpoint is not None:
            self._keeping.resume(checkpoint)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        self._progress.started(job.member.name, job.number, job.count, step, self._steps)
        try:
            with put_off(self._interrupt, self._progress.note):
                self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{job.member.name}: the device has too little memory for its batches; set "
                "`mini_batch_size` of the losses (the same gradients, in smaller pieces), "
                "`gradient_checkpointing: true`, or a smaller `batch_size`"
            ) from error
        except (RuntimeError, SafetensorError) as error:
            if "PytorchStreamWriter" in str(error) or isinstance(error, SafetensorError):
                raise _not_saved(job, error) from error
            raise
        if self._keeping.interrupted:
            raise KeyboardInterrupt

    def finish(self) -> dict[str, Any]:
        """Write the models of the member, each beside its place and then renamed."""
        curve = curve_of(self._trainer.state.log_history, self._epochs())
        models = {}
        for name in self._job.member.spec.models:
            weights = self._keeping.weights(name)
            if weights is not None:
                put_weights(self._model, weights)
            tell_curve(self._model, curve)
            models[name] = self._write(name)
        kept = self._keeping.kept
        best = {"step": kept.best_step, "score": kept.best_score} if kept.best_step else None
        steps = self._trainer.state.global_step
        return {
            "fingerprint": self._job.fingerprint.meaning,
            "seed": self._job.member.spec.seed,
            "rows": rows_of(self._job.member, self._datasets),
            "models": models,
            "steps": steps,
            "planned_steps": self._steps,
            "epochs": round(self._epochs() * steps / self._steps, 4),
            "examples": _examples(self._job, self._datasets, steps),
            "tokens": kept.tokens,
            "seconds": round(kept.seconds, 3),
            "devices": self._processes.count,
            "device": _device_name(),
            "curve": curve,
            "evaluations": kept.evaluations,
            "best": best,
            "versions": versions(),
        }

    def _epochs(self) -> float:
        """How often the training goes through the member's rows."""
        once = len(schedule(self._job.plan, self._job.member, self._datasets, 0))
        return self._steps / once

    def _write(self, name: str) -> dict[str, int]:
        place = self._job.output / FOLDER / name
        with Staging(place, lambda: None) as staging:
            with staging.explained():
                write(
                    self._model,
                    self._job.plan,
                    self._job.base,
                    self._length,
                    staging.folder,
                    self._name,
                )
                for path in staging.folder.rglob("*"):
                    if path.is_file():
                        sync(path)
            staging.commit()
        return file_sizes(place)


def _losses(model: SentenceTransformer, datasets: Mapping[str, Dataset]) -> dict[str, nn.Module]:
    """The loss of every data set; those that say the same share one."""
    made: dict[str, nn.Module] = {}
    found = {}
    for name, dataset in datasets.items():
        spec = dataset.spec
        said = repr((spec.loss, spec.positives))
        if said not in made:
            made[said] = built(spec.loss, model, spec.positives)
        found[name] = made[said]
    return found


def _not_saved(job: Job, error: Exception) -> OutputError:
    """What torch and safetensors say of a checkpoint that they could not write."""
    reason = " ".join(str(error).split())[:200]
    return OutputError(
        f"{job.work}: a checkpoint cannot be written ({reason}); is the disk full? The same "
        "command continues from the one before"
    )


def _distinct(found: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Every loss once."""
    return list({id(loss): loss for loss in found.values()}.values())


def _examples(job: Job, datasets: Mapping[str, Dataset], steps: int) -> int:
    """Rows in the first so many batches."""
    batches = itertools.islice(walk(job.plan, job.member, datasets), steps)
    return sum(len(batch) for _, batch in batches)


def _evaluator(plan: TrainingPlan) -> Any:
    """What measures the dev task of a plan.

    Raises:
        DataError: when it is not there, or not in order.
    """
    assert plan.early_stop is not None
    folder = next((f for f in places(plan, plan.early_stop.task) if f.is_dir()), None)
    if folder is None:
        raise DataError([Problem("early_stop.task", f"there is no folder {plan.early_stop.task}")])
    return importlib.import_module(".dev", __package__).evaluator(folder)


def _device_name() -> str:
    """What kind of device is trained on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries say nothing meanwhile but errors; what they count, `Progress` tells."""
    of_transformers: Any = importlib.import_module("transformers.utils.logging")
    loud = [logging.getLogger(name) for name in ("sentence_transformers", "accelerate", "datasets")]
    levels = [logger.level for logger in loud]
    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()
        for logger, before in zip(loud, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    """On a CPU the same training gives the same bytes; elsewhere that costs too much."""
    if has_accelerator():
        yield
        return
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # which finds errors, and takes time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = filled
