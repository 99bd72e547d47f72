"""Where a merged model is written: its weights at planned offsets, then every other file.

See staging.py for how a folder takes its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.shell import read_modules
from ..checkpoint.weights import has_weights, is_file, read_object
from ..errors import CheckpointError, MergekitEmbedError
from ..kernels import Raw
from .plan import Job, Plan, check_space, nearest_folder
from .staging import Staging, check_place, sync, write_json

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


def check_destination(plan: Plan) -> None:
    """Refuse a destination that is taken, or that is one of the models to be merged.

    Raises:
        OutputExistsError: saying what is there and what would replace it.
        CheckpointError: when something is to be copied into it that is no file.
    """
    _shell_files(plan.shell.root)
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
        check_space(together[0].output, *map(_bytes_written, together))


def _bytes_written(plan: Plan) -> int:
    """Of the weights, and at most of all other files."""
    copied = _shell_files(plan.shell.root)
    return plan.bytes_out + sum(path.stat().st_size for path in copied)


def is_model(folder: Path) -> bool:
    """True for a folder that holds a model."""
    try:
        modules = read_modules(folder)
    except MergekitEmbedError:
        modules = ()
    return bool(modules) or (has_weights(folder) and (folder / "config.json").is_file())


class Destination(Staging):
    """The files of a model being written. As a context manager it leaves no half model behind."""

    def __init__(self, plan: Plan):
        super().__init__(plan.output, lambda: check_destination(plan))
        self.plan = plan

    def prepare(self) -> None:
        """Create every weight file with its header."""
        for file in self.plan.files:
            self.create(file.path, file.header, file.size)

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """Store a job's elements from `start` on, at their planned place. Safe from any thread.

        Raises:
            OutputError: when the disk is full or fails.
        """
        self.put(job.file, job.offset + start * job.dtype.itemsize, raw)

    def commit(self) -> None:
        """Add every other file, sync all, and put the folder in its place.

        Raises:
            OutputError: when a file cannot be written or the folder not be renamed.
        """
        with self.explained():
            for index in self.plan.indexes:
                write_json(self.folder / index.path, index.content)
            copy_shell(self.plan, self.folder)
        super().commit()


def copy_shell(plan: Plan, target: Path) -> None:
    """Write every file but the weights: the shell's, but for what the plan says of some."""
    root = plan.shell.root
    shell = {path.relative_to(root).as_posix(): path for path in _shell_files(root)}
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


def _shell_files(root: Path, folder: Path | None = None) -> list[Path]:
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
            found += _shell_files(root, entry)
        elif entry.suffix in OTHER_WEIGHTS or entry.name.endswith(".index.json"):
            continue
        elif is_file(entry):
            found.append(entry)
    return found
