"""Where a merged model is written: beside the destination first, and in its place at the end.

Everything goes into a hidden sibling folder, at planned offsets, is synced, and the folder is
renamed. A destination therefore holds an old model, a new one, or nothing, and never a mixture.
What is beside it belongs to the run that holds the lock: NAME.partial is what it writes, and
NAME.replaced an older model that waits for the new one to be in its place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.shell import read_modules
from ..checkpoint.weights import has_weights, read_object
from ..dtypes import FLOAT_NAMES, DType
from ..errors import MergekitEmbedError, OutputError, OutputExistsError
from ..kernels import Raw
from .plan import Job, Plan
from .slicing import with_layers

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


UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot reserve space, or not lock."""


def check_destination(plan: Plan) -> None:
    """Refuse a destination that is taken, or that is one of the models to be merged.

    Raises:
        OutputExistsError: saying what is there and what would replace it.
    """
    output, resolved = plan.output, plan.output.resolve()
    models = (*plan.members, *((plan.base,) if plan.base else ()))
    folders = [(model.label, model.root) for model in models]
    folders += [(model.label, model.adapter) for model in models if model.adapter]
    for label, folder in folders:
        root = folder.resolve()
        if root.is_relative_to(resolved) or resolved.is_relative_to(root):
            relation = "holds" if root.is_relative_to(resolved) else "lies inside"
            raise OutputExistsError(
                f"{output}: {relation} {label}, one of the models to be merged; write the "
                "result elsewhere with -o"
            )
    nearest = next(folder for folder in (resolved, *resolved.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        named = "is a file" if nearest == resolved else f"{nearest} is a file"
        raise OutputExistsError(f"{output}: {named}; choose a folder with -o")
    if nearest != resolved or not any(resolved.iterdir()):
        return
    if not _is_model(resolved):
        raise OutputExistsError(
            f"{output}: holds files that are not a model, which are never replaced; choose "
            "another folder with -o"
        )
    if not plan.overwrite:
        raise OutputExistsError(
            f"{output}: holds a model already; pass --overwrite to replace it, or choose "
            "another folder with -o"
        )


def _is_model(folder: Path) -> bool:
    try:
        modules = read_modules(folder)
    except MergekitEmbedError:
        modules = ()
    return bool(modules) or (has_weights(folder) and (folder / "config.json").is_file())


class Destination:
    """The files of a model being written. As a context manager it leaves no half model behind."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._final = plan.output.resolve()
        self._partial, self._aside, self._lock_file = (
            self._final.with_name(f".{self._final.name}.{end}")
            for end in ("partial", "replaced", "lock")
        )
        self._made = [parent for parent in self._final.parents if not parent.exists()]
        self._descriptors: list[int] = []
        self._lock: int | None = None
        self.bytes_written = 0

    def __enter__(self) -> Destination:
        try:
            self._claim()
            check_destination(self.plan)
            for file in self.plan.files:
                self._create(self._partial / file.path, file.header, file.size)
        except OSError as error:
            self._discard()
            raise _explained(self.plan.output, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._discard()

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """Store a job's elements from `start` on, at their planned place. Safe from any thread.

        Raises:
            OutputError: when the disk is full or fails.
        """
        view = memoryview(raw.data)
        position = job.offset + start * job.dtype.itemsize
        try:
            while len(view):
                wrote = os.pwrite(self._descriptors[job.file], view, position)
                view, position = view[wrote:], position + wrote
        except OSError as error:
            raise _explained(self.plan.output, error) from error

    def commit(self) -> None:
        """Add every other file, sync all, and put the folder in its place.

        Raises:
            OutputError: when a file cannot be written or the folder not be renamed.
        """
        try:
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            for index in self.plan.indexes:
                _write_json(self._partial / index.path, index.content)
            copy_shell(self.plan, self._partial)
            self._sync_folders()
            self.bytes_written = sum(
                p.stat().st_size for p in self._partial.rglob("*") if p.is_file()
            )
            self._swap()
        except OSError as error:
            raise _explained(self.plan.output, error) from error

    def _claim(self) -> None:
        """Hold the lock, and clear what a killed run left; a live one is respected."""
        try:
            while self._lock is None:
                self._final.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self._lock_file)
        except BlockingIOError:
            raise OutputError(
                f"{self.plan.output}: another merge is writing to it; wait for its end, or choose "
                "another folder with -o"
            ) from None
        self._clear()
        self._partial.mkdir()

    def _clear(self) -> None:
        """Nothing of ours beside the destination; an older model set aside goes back if need be."""
        if self._aside.exists() and not self._final.exists():
            self._aside.rename(self._final)
        for left in (self._partial, self._aside):
            if left.exists():
                shutil.rmtree(left)

    def _create(self, path: Path, header: bytes, size: int) -> None:
        """A file of its final size, with its space reserved, so that a full disk shows at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._descriptors.append(descriptor)
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with _where_supported():
                os.posix_fallocate(descriptor, 0, size)
        os.pwrite(descriptor, header, 0)

    def _sync_folders(self) -> None:
        for folder in [self._partial, *(p for p in self._partial.rglob("*") if p.is_dir())]:
            _sync_folder(folder)

    def _swap(self) -> None:
        """Rename into place. Where this ends early, `_clear` puts an older model back."""
        check_destination(self.plan)
        if self._final.exists():
            self._final.rename(self._aside)
        self._partial.rename(self._final)
        _sync_folder(self._final.parent)

    def _discard(self) -> None:
        """Close everything, and remove what was not committed."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        if self._lock is not None:
            with suppress(OSError):
                self._clear()
            with suppress(OSError):
                self._lock_file.unlink()
            os.close(self._lock)
            self._lock = None
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()  # only of an empty folder, so not after a commit


def _locked(path: Path) -> int | None:
    """The file, opened and locked; None when the run that held it has just removed it.

    Raises:
        BlockingIOError: when another run holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with _where_supported():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def _where_supported() -> Iterator[None]:
    """Go on without what the file system cannot do."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _explained(output: Path, error: OSError) -> OutputError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutputError(f"{output}: the disk is full; free some space, or write elsewhere")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return OutputError(
            f"{output}: cannot be written ({error.strerror}); choose another folder with -o"
        )
    at = f" ({error.filename})" if error.filename else ""
    return OutputError(f"{output}: cannot be written: {error.strerror or error}{at}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot, and none loses a file for it
        _sync(path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


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
            _write_json(copied, content)
            continue
        if isinstance(source, bytes):
            copied.write_bytes(source)
        else:
            shutil.copyfile(source, copied)
        _sync(copied)
    for module in plan.shell.modules:
        (target / module.path).mkdir(parents=True, exist_ok=True)


def _edited(plan: Plan, path: str, source: Path | bytes) -> dict[str, Any] | None:
    """What a JSON file says in the result, when that is not what it says at its source."""
    dtype, layers = plan.recipe.dtype, plan.layers
    told = plan.told.get(path, {})
    config = Path(path).name == "config.json" and _is_transformers(
        plan.shell, plan.shell.root / path
    )
    if not told and not (config and (dtype is not None or layers is not None)):
        return None
    content = json.loads(source) if isinstance(source, bytes) else read_object(source)
    if config and dtype is not None:
        content = _with_dtype(content, dtype)
    if config and layers is not None:
        content = with_layers(content, layers)
    return {**content, **told}


def _shell_files(root: Path, folder: Path | None = None) -> list[Path]:
    found = []
    for entry in (folder or root).iterdir():
        if entry.name in NOT_SHELL or entry.name.startswith("checkpoint-"):
            continue
        if entry.is_dir():
            found += _shell_files(root, entry)
        elif entry.suffix not in OTHER_WEIGHTS and not entry.name.endswith(".index.json"):
            found.append(entry)
    return found


def _is_transformers(shell: Checkpoint, config: Path) -> bool:
    """True for the configuration of a transformer."""
    folders = {shell.root / module.path for module in shell.modules if "ransformer" in module.kind}
    return config.parent in (folders or {shell.root})


def _with_dtype(config: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    name = next(name for name, known in FLOAT_NAMES.items() if known is dtype)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return {**config, **dict.fromkeys(keys, name)}
