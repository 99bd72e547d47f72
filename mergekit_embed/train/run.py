"""The whole way of a training plan: check everything, train every member, write the merge recipe.

OUT/members/NAME    the models, each renamed into its place when it is whole
OUT/merge.yaml      the recipe that merges them, once all are there
OUT/plan.yaml       the plan, with paths from there
OUT/training.json   what was trained, on what, and what it took
OUT/.work/NAME      checkpoints of a member that is not finished
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.locate import locate
from ..engine.staging import check_place, held, write_json
from ..errors import UsageError
from . import record
from .bags import Member, members
from .data import Dataset, open_datasets
from .merging import merge_recipe, write_recipe
from .mining import mine_all
from .places import content_in, from_folder, rebased
from .plan import load
from .processes import Processes, check_device, joined
from .progress import Progress, Silent
from .record import RECORD, WORK, Fingerprint
from .specs import TrainingPlan

if TYPE_CHECKING:
    from ..engine import MergeResult

PLAN = "plan.yaml"
RECIPE = "merge.yaml"
MERGED = "merged"
EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class TrainingResult:
    """What a training has made, and what it took.

    Attributes:
        path: the folder of everything.
        members: what the record says of each member, by its name.
        trained: the members that this run has trained, or gone on with; others were finished.
        recipe: the recipe that merges the members.
        merged: what the merge has made, where it was asked for.
        seconds: of this run.
    """

    path: Path
    members: Mapping[str, Mapping[str, Any]]
    trained: tuple[str, ...]
    recipe: Path
    merged: tuple[MergeResult, ...]
    seconds: float


def train(
    plan: str | Path | Mapping[str, Any] | TrainingPlan,
    output: str | Path | None = None,
    *,
    merge: bool = False,
    executor: str = "local",
    ray_address: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    update: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train the members that a plan names, and write the recipe that merges them.

    A training that was interrupted or killed goes on where it was when the same is asked for
    again. A finished member is not trained again, unless what it depends on has changed.

    Args:
        plan: a YAML file, a mapping with the same keys, or a loaded plan.
        output: the folder to write; by default the plan's, else `trained/<plan name>`.
        merge: go on and merge the members into `merged` in that folder.
        executor: "local", or "ray": each member is trained on a machine of a Ray cluster.
        ray_address: of the cluster's head; see `mergekit_embed.merge`.
        restart: train all members anew.
        progress: is told how far it is.
        update: what the record says of the update that this is; None for what it has said before.

    Raises:
        RecipeError, DataError, UsageError, NotFoundError, OutputExistsError: before anything is
            written, when the plan, its data, the model or the place are not right.
        CheckpointError, OutputError, NonFiniteError, WorkerError: see `train_member`.
        KeyboardInterrupt: with a note that says how to go on.
    """
    began = time.monotonic()
    if executor not in EXECUTORS:
        raise UsageError(f"{executor!r} is no executor; use {' or '.join(EXECUTORS)}")
    if ray_address is not None and executor != "ray":
        raise UsageError("an address of a Ray cluster needs the executor `ray`")
    loaded = load(plan)
    target = Path(output).expanduser() if output else loaded.target
    with joined() as processes:
        run = _opened(loaded, target, executor, processes, progress or Silent())
        run.update = update
        with _locked(target, processes):
            trained = run.train(restart=restart, executor=executor, ray_address=ray_address)
            merged = processes.agree(run.merge) if merge else ()
    seconds = time.monotonic() - began
    return TrainingResult(target, run.found, trained, target / RECIPE, merged, seconds)


def _opened(
    plan: TrainingPlan, target: Path, executor: str, processes: Processes, progress: Progress
) -> Training:
    """A training with its data, members and base, all checked; nothing is written."""
    datasets = open_datasets(plan)
    drawn = members(plan, datasets)
    base = Path(processes.agree(lambda: locate(plan.model, plan.source.folders)))
    _check_pooling(plan, base)
    processes.agree(lambda: _check(plan, base, target))
    if executor == "local":  # machines of a cluster look themselves
        for note in processes.agree(lambda: check_device(plan, processes)):
            progress.note(note)
    datasets = _mined(plan, datasets, processes, progress)
    digest = processes.agree(lambda: record.model_digest(base))
    prints = {one.name: record.fingerprint(plan, one, datasets, digest) for one in drawn}
    called = {"name": from_folder(plan, plan.model, target), "digest": digest}
    return Training(
        plan, target, datasets, drawn, base, called, prints, processes, progress, found={}
    )


def _mined(
    plan: TrainingPlan, datasets: Mapping[str, Dataset], processes: Processes, progress: Progress
) -> dict[str, Dataset]:
    """The data sets with their hard negatives; one process finds them, the others read them."""
    if processes.count > 1:
        processes.agree(lambda: bool(mine_all(datasets, plan, progress.note)))
    return mine_all(datasets, plan, progress.note)


def _check_pooling(plan: TrainingPlan, base: Path) -> None:
    """Raise a UsageError where the pooling is not known, or known twice."""
    own = (base / "modules.json").is_file()
    if own and plan.pooling is not None:
        raise UsageError(
            f"{plan.model} is a sentence-transformers model and has a pooling of its own; leave "
            "out `pooling`"
        )
    if not own and plan.pooling is None:
        raise UsageError(
            f"{plan.model} is a bare transformer; say how it makes one vector of a text, with "
            "`pooling: mean`, `cls` or `last`"
        )


def _check(plan: TrainingPlan, base: Path, target: Path) -> None:
    check_place(
        target, [(plan.model, base)], "the model to train", "members", _is_ours, overwrite=True
    )


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RECORD, WORK))


@contextmanager
def _locked(target: Path, processes: Processes) -> Iterator[None]:
    """The lock of a folder, which the first process holds for all."""
    if not processes.first:
        processes.agree(lambda: None)
        yield
        return
    lock = held(target)
    processes.agree(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@dataclass
class Training:
    """A training on its way.

    `found` is what is known of finished members, `update` what the record says of an update.
    """

    plan: TrainingPlan
    target: Path
    datasets: Mapping[str, Dataset]
    members: tuple[Member, ...]
    base: Path
    called: Mapping[str, str]
    prints: Mapping[str, Fingerprint]
    processes: Processes
    progress: Progress
    found: dict[str, Mapping[str, Any]]
    update: Mapping[str, Any] | None = None

    def train(self, *, restart: bool, executor: str, ray_address: str | None) -> tuple[str, ...]:
        """Every member that is not finished, in the order of the plan; their names."""
        self.found = self.processes.agree(lambda: self._begin(restart=restart))
        wanted = [one for one in self.members if one.name not in self.found]
        if wanted and executor == "ray":
            from .on_ray import train_on_ray

            train_on_ray(self, wanted, ray_address)
        elif wanted:
            self._train_here(wanted)
        self.processes.agree(self._write_recipe)
        return tuple(one.name for one in wanted)

    def _begin(self, *, restart: bool) -> dict[str, Mapping[str, Any]]:
        """What is finished. What is to be done anew, or was for nobody, goes away."""
        if restart:
            shutil.rmtree(self.target / WORK, ignore_errors=True)
            (self.target / RECORD).unlink(missing_ok=True)
        known = record.read(self.target)
        self.update = self.update or record.read_update(self.target)
        finished: dict[str, Mapping[str, Any]] = {
            name: known[name]
            for name, wanted in self.prints.items()
            if record.is_finished(known.get(name), wanted, self.target)
        }
        (self.target / WORK).mkdir(parents=True, exist_ok=True)
        self._write_plan()
        if len(finished) < len(self.members):
            (self.target / RECIPE).unlink(missing_ok=True)
        return finished

    def _write_plan(self) -> None:
        """The plan beside what it makes: so that all is known there that an update needs."""
        beside = self.target / f".{PLAN}"
        write_recipe(beside, content_in(self.plan, self.target), "What the members here are of.")
        beside.rename(self.target / PLAN)

    def _train_here(self, wanted: list[Member]) -> None:
        from .fit import Job, train_member

        for number, member in enumerate(self.members, start=1):
            if member.name not in {one.name for one in wanted}:
                continue
            job = Job(
                self.plan,
                member,
                self.datasets,
                self.base,
                self.target,
                self.prints[member.name],
                number,
                len(self.members),
            )
            told = train_member(job, self.processes, self.progress)
            self.add(member.name, told)

    def add(self, name: str, told: Mapping[str, Any]) -> None:
        """Record a member whose models are in their places; its checkpoints go away."""
        known = {**self.found, name: told}
        self.found = {one.name: known[one.name] for one in self.members if one.name in known}
        if self.processes.first:
            self._write_record()
            shutil.rmtree(self.target / WORK / name, ignore_errors=True)
        self.processes.wait()
        self.progress.finished(name)

    def _write_record(self) -> None:
        content = record.content(self.plan, self.called, self.datasets, self.found)
        if self.update is not None:
            content["update"] = dict(self.update)
        beside = self.target / f".{RECORD}"
        write_json(beside, content)
        beside.rename(self.target / RECORD)

    def _write_recipe(self) -> None:
        """The recipe beside the members; the record says then what the plan says now."""
        self._write_record()
        rows = {member.name: member.total for member in self.members}
        recipe = merge_recipe(
            replace(self.plan, merge=rebased(self.plan, self.target)), rows, self.called["name"]
        )
        beside = self.target / f".{RECIPE}"
        write_recipe(beside, recipe, f"The members of the training plan {self.plan.name}.")
        beside.rename(self.target / RECIPE)
        with suppress(OSError):
            (self.target / WORK).rmdir()  # only of an empty folder: other plans may have members

    def merge(self) -> tuple[MergeResult, ...]:
        """Merge the members into a folder beside them."""
        from ..engine import merge_many

        return tuple(merge_many(self.target / RECIPE, self.target / MERGED, overwrite=True))
