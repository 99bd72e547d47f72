"""Where a merged model is written: its weights at planned offsets, then every other file.

See staging.py for how a folder takes its place.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.shell import read_modules
from ..checkpoint.weights import has_weights, is_file, read_object
from ..errors import (
    CheckpointError,
    MergekitEmbedError,
    NonFiniteError,
    OutputError,
    OutputExistsError,
    PlanError,
)
from ..kernels import Raw
from .fingerprint import difference, fingerprint
from .hashing import Hash
from .inputs import leaves
from .journal import Entry, Fingerprint, Journal, read_journal
from .lineage.file import LINEAGE
from .lineage.of_merge import lineage_of, origins
from .manifest import MANIFEST, manifest
from .plan import Job, Plan, check_space, nearest_folder
from .run import Learned
from .staging import JOURNAL, Staging, check_place, left_behind, sync, write_json
from .taking_over import verified, whole

OTHER_WEIGHTS = [
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".mlmodel",
    ".msgpack",
    ".npz",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".pt",
    ".pth",
    ".safetensors",
    ".tflite",
]
"""Weights in whatever format are the members' own, and stale beside merged ones."""

NOT_SHELL = {
    ".cache",
    ".git",
    ".gitattributes",
    ".gitignore",
    "README.md",
    "checkpoints",
    "coreml",
    "eval",
    LINEAGE,
    MANIFEST,
    "onnx",
    "openvino",
    "optimizer.pt",
    "runs",
    "scheduler.pt",
    "trainer_state.json",
    "train_results.json",
    "training_args.bin",
}
"""What tells of one member's making, or repeats its weights."""


def comes_again(error: BaseException) -> bool:
    """True for an error that the same merge meets however often it is run.

    A checkpoint that is broken stays so; one that the system could not read may be read next time.
    """
    if isinstance(error, CheckpointError):
        return not isinstance(error.__cause__, OSError)
    return isinstance(error, NonFiniteError | PlanError)


def check_destination(plan: Plan) -> None:
    """Refuse a destination that is taken, or that is one of the models to be merged.

    Raises:
        OutputExistsError: saying what is there and what would replace it.
        CheckpointError: when something is to be copied into it that is no file.
    """
    shell_files(plan.shell.root)
    folders = [(model.label, model.root) for model in plan.opened]
    folders += [(model.label, model.adapter) for model in plan.opened if model.adapter]
    role = "one of the models to be merged"
    check_place(plan.output, folders, role, "a model", is_model, overwrite=plan.overwrite)


def check_disk(plans: Sequence[Plan]) -> None:
    """Refuse plans that the disks cannot hold together.

    Raises:
        OutputError: when the outputs on a disk need more than is free.
    """
    disks: dict[int, list[Plan]] = {}
    for plan in plans:
        disks.setdefault(nearest_folder(plan.output).stat().st_dev, []).append(plan)
    for together in disks.values():
        check_space(
            together[0].output,
            *(_bytes_written(plan) - left_behind(plan.output) for plan in together),
        )


def _bytes_written(plan: Plan) -> int:
    """Of the weights, and at most of all other files."""
    copied = shell_files(plan.shell.root)
    return plan.bytes_out + sum(path.stat().st_size for path in copied)


def is_model(folder: Path) -> bool:
    """True for a folder that holds a model."""
    try:
        modules = read_modules(folder)
    except MergekitEmbedError:
        modules = ()
    return bool(modules) or (has_weights(folder) and (folder / "config.json").is_file())


class Destination(Staging):
    """The files of a model being written: the sink of its plan.

    As a context manager it leaves no half model behind, but after a failure that a later run may
    not meet again the hidden folder with a journal, which such a run continues.

    Attributes:
        resumed: how many tensors were there from an earlier run.
        kept: how many are there for a later one, after a failure.
        remark: why what an earlier run left was not continued, in words.
    """

    def __init__(self, plan: Plan, *, restart: bool = False, verify: bool = False):
        """`restart`: continue nothing; `verify`: continue only what still has its hashes."""
        super().__init__(plan.output, lambda: check_destination(plan))
        self.plan = plan
        self._origins = origins(plan)
        self.resumed = self.kept = 0
        self.remark: str | None = None
        self._restart, self._verify = restart, verify
        self._entries: dict[str, Entry] = {}
        self._hashes: dict[str, Hash] = {}
        self._unsaved: list[Entry] = []
        self._journal: Journal | None = None
        self._list_lock, self._save_lock = threading.Lock(), threading.Lock()
        self._failed: OutputError | None = None
        self._is_committing = False

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return fingerprint(self.plan)

    def continues(self) -> bool:
        """Take over what an earlier run of the same merge finished."""
        found = None if self._restart else read_journal(self.folder / JOURNAL)
        if found is None:
            return False
        changed = difference(found.fingerprint, self._fingerprint)
        if changed is not None:
            self.remark = f"{self.output}: started over, not continued: {changed}"
            return False
        entries = whole(self.plan, self.folder, found.entries)
        if self._verify:
            entries, self.remark = verified(self.plan, self.folder, entries)
        self._entries = {entry.tensor: entry for entry in entries}
        self.resumed = len(entries)
        return bool(entries)

    def prepare(self) -> None:
        """Create every weight file with its header, and remove all but these and the journal."""
        self.tidy()
        for file in self.plan.files:
            self.create(file.path, file.header, file.size)
        if self._entries:
            self._begin_journal(self._entries.values())

    def tidy(self) -> None:
        """Remove what an earlier run left beside its weight files and the journal."""
        planned = {JOURNAL, *(file.path for file in self.plan.files)}
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            if path.relative_to(self.folder).as_posix() not in planned:
                path.unlink()

    def wants(self, job: Job) -> bool:
        """See `Sink.wants`."""
        return job.name not in self._entries

    def notes(self, job: Job) -> Sequence[str]:
        """See `Sink.notes`."""
        return self._entries[job.name].notes

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """Store a job's elements from `start` on, at their planned place. Safe from any thread.

        Raises:
            OutputError: when the disk is full or fails.
        """
        self._hashes.setdefault(job.name, Hash()).add(raw)
        self.put(job.file, job.offset + start * job.dtype.itemsize, raw)

    def finished(self, job: Job, learned: Learned) -> None:
        """See `Sink.finished`. The job is in the journal once `save` was called after this.

        Raises:
            OutputError: when an earlier `save` failed.
        """
        if self._failed is not None:
            raise self._failed
        self.add(entry_of(job, self._hashes.pop(job.name, Hash()), learned))

    def add(self, entry: Entry) -> None:
        """Take note of a tensor whose bytes are in its file. Safe from any thread."""
        with self._list_lock:
            self._entries[entry.tensor] = entry
            self._unsaved.append(entry)

    @property
    def unsaved(self) -> int:
        """Bytes of finished tensors that are not in the journal."""
        with self._list_lock:
            return sum(entry.size for entry in self._unsaved)

    def save(self) -> None:
        """Put what is finished on the disk, and then into the journal. Safe from any thread.

        Raises:
            OutputError: when the disk is full or fails, or did so before: what the system could not
                write once it forgets, and would call written the next time.
        """
        with self._save_lock:
            if self._failed is not None:
                raise self._failed
            if not self._is_committing:
                with self._failing():
                    self._save()

    def _save(self) -> None:
        with self._list_lock:
            fresh, self._unsaved = self._unsaved, []
        if not fresh:
            return
        places = {job.name: job.file for job in self.plan.jobs}
        for file in sorted({places[entry.tensor] for entry in fresh}):
            self.flush(file)
        if self._journal is None:
            self._begin_journal(fresh)
        else:
            self._journal.add(fresh)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Remember that bytes may not have reached the disk."""
        try:
            with self.explained():
                yield
        except OutputError as error:
            if not isinstance(error, OutputExistsError):
                self._failed = error
            raise

    def _begin_journal(self, entries: Iterable[Entry]) -> None:
        """Write a journal of these entries; the names of their files have to be on the disk too."""
        self.flush_folders()
        self._journal = Journal(self.folder / JOURNAL, self._fingerprint, entries)
        self.flush_folders()

    def keeps(self, error: BaseException) -> bool:
        """Keep what is finished, unless the error would come again."""
        if comes_again(error) or not self.folder.exists():
            return False
        self._is_committing = False
        with suppress(OutputError):  # what was saved before stays good
            self.save()
        found = read_journal(self.folder / JOURNAL)
        self.kept = len(whole(self.plan, self.folder, found.entries)) if found else 0
        return self.kept > 0

    def commit(self) -> None:
        """Add every other file, sync all, and put the folder in its place.

        Raises:
            OutputError: when a file cannot be written or the folder not be renamed.
        """
        with self._save_lock:
            self._is_committing = True
        self.complete()
        with self._failing():
            super().commit()

    def complete(self) -> None:
        """Add every file but the weights.

        Raises:
            OutputError: when one cannot be written, or something could not be before.
        """
        if self._failed is not None:
            raise self._failed
        with self.explained():
            for index in self.plan.indexes:
                write_json(self.folder / index.path, index.content)
            copy_shell(self.plan, self.folder)
            told = manifest(self.plan, self._entries, self.folder)
            write_json(self.folder / MANIFEST, told)
            lineage = lineage_of(self.plan, self._origins, self._entries, told)
            write_json(self.folder / LINEAGE, lineage)

    def _let_go(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        super()._let_go()


def entry_of(job: Job, written: Hash, learned: Learned) -> Entry:
    """What the journal says of a finished job, from the hash of its bytes."""
    inputs = tuple(map(learned.digest_of, leaves(job.tensors)))
    return Entry(job.name, written.size, written.digest, inputs, learned.notes)


def copy_shell(plan: Plan, target: Path) -> None:
    """Write every file but the weights: the shell's, but for what the plan says of some."""
    root = plan.shell.root
    shell = {path.relative_to(root).as_posix(): path for path in shell_files(root)}
    kept = {path: source for path, source in shell.items() if path not in plan.omitted}
    sources: dict[str, Path | bytes] = {**kept, **plan.written}
    for path, source in sorted(sources.items()):
        copied = target / path
        copied.parent.mkdir(parents=True, exist_ok=True)
        content = _edited(plan, path, source)
        if content is not None:
            write_json(copied, content)
            continue
        if isinstance(source, bytes):
            copied.write_bytes(source)
        else:
            shutil.copyfile(source, copied)
        sync(copied)
    for module in plan.shell.modules:
        (target / module.path).mkdir(parents=True, exist_ok=True)


def _edited(plan: Plan, path: str, source: Path | bytes) -> dict[str, Any] | None:
    """What a JSON file says in the result, when that is not what it says at its source."""
    told = plan.told.get(path)
    if not told:
        return None
    content = json.loads(source) if isinstance(source, bytes) else read_object(source)
    return {**content, **told}


def shell_files(root: Path, folder: Path | None = None) -> list[Path]:
    """The files of a model that are copied; links to files count as these.

    Raises:
        CheckpointError: for a device, which could be read without end, and for a link to a folder,
            which may hold itself, or everything on the disk.
    """
    found = []
    for entry in (folder or root).iterdir():
        if entry.name in NOT_SHELL or entry.name.startswith("checkpoint-"):
            continue
        if entry.is_symlink() and entry.is_dir():
            told = "is a link to a folder, which is not copied into the result"
            raise CheckpointError(entry, f"{told}; remove it, or put the folder in its place")
        if entry.is_dir():
            found += shell_files(root, entry)
        elif entry.suffix in OTHER_WEIGHTS or entry.name.endswith(".index.json"):
            continue
        elif is_file(entry):
            found.append(entry)
    return found
