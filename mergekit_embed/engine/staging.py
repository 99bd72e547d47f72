"""A folder that is written beside its place, under a lock, and renamed at the end.

Everything goes into a hidden sibling folder, at planned offsets, is synced, and the folder is
renamed. The place therefore holds what was there, the new folder, or nothing, and never a mixture.
What is beside it belongs to the run that holds the lock: NAME.partial is what it writes, and
NAME.replaced an older folder that waits for the new one to be in its place. What a run writes may
stay for another one to continue, where it has a journal; that waits in NAME.journal while the
folder is renamed, so that no finished folder ever holds one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import OutputError, OutputExistsError
from ..kernels import Raw

UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot reserve space, or not lock."""


def check_place(
    output: Path,
    sources: Sequence[tuple[str, Path]],
    role: str,
    kind: str,
    is_one: Callable[[Path], bool],
    *,
    overwrite: bool,
) -> None:
    """Refuse a place that is taken, or that is one of the folders that are read.

    Args:
        output: the folder to write.
        sources: the label and the folder of everything that is read.
        role: what a source is, in words for the error.
        kind: what is written, such as "a model"; only this is ever replaced.
        is_one: whether a folder holds one of that kind.
        overwrite: allow the place to hold one.

    Raises:
        OutputExistsError: saying what is there and what would replace it.
    """
    resolved = output.resolve()
    for label, folder in sources:
        root = folder.resolve()
        if root.is_relative_to(resolved) or resolved.is_relative_to(root):
            relation = "holds" if root.is_relative_to(resolved) else "lies inside"
            raise OutputExistsError(
                f"{output}: {relation} {label}, {role}; write the result elsewhere with -o"
            )
    nearest = next(folder for folder in (resolved, *resolved.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        named = "is a file" if nearest == resolved else f"{nearest} is a file"
        raise OutputExistsError(f"{output}: {named}; choose a folder with -o")
    if nearest != resolved or not any(resolved.iterdir()):
        return
    if not is_one(resolved):
        raise OutputExistsError(
            f"{output}: holds files that are not {kind}, which are never replaced; choose "
            "another folder with -o"
        )
    if not overwrite:
        raise OutputExistsError(
            f"{output}: holds {kind} already; pass --overwrite to replace it, or choose "
            "another folder with -o"
        )


JOURNAL = "merge_journal.jsonl"
"""What a run that can be continued knows of itself, in the folder that it writes."""


def siblings(output: Path) -> tuple[Path, Path, Path, Path]:
    """What a run may have beside its place: partial, replaced, journal and lock."""
    final = output.resolve()
    ends = ("partial", "replaced", "journal", "lock")
    partial, replaced, journal, lock = (final.with_name(f".{final.name}.{end}") for end in ends)
    return partial, replaced, journal, lock


def left_behind(output: Path) -> int:
    """Bytes on the disk of what an earlier run left; the next continues or removes it.

    It is asked before the place is locked: what a live run removes meanwhile counts for nothing.
    """
    total = 0
    for folder, _, names in os.walk(siblings(output)[0]):
        for name in names:
            with suppress(FileNotFoundError):
                total += 512 * Path(folder, name).stat().st_blocks
    return total


class Staging:
    """The files of a folder being written. As a context manager it leaves no half of one behind.

    Attributes:
        folder: where the files are written until `commit`.
        bytes_written: of all files, once committed.
    """

    def __init__(self, output: Path, check: Callable[[], None]):
        """`check` raises when the place is taken; asked once it is locked, and before renaming."""
        self.output = output
        self._check = check
        self._final = output.resolve()
        self.folder, self._aside, self._journal_aside, self._lock_file = siblings(output)
        self._made = [parent for parent in self._final.parents if not parent.exists()]
        self._descriptors: dict[int, int] = {}
        self._lock: int | None = None
        self.bytes_written = 0

    def __enter__(self) -> Self:
        try:
            with self.explained():
                self._claim()
                self._check()
                if not self.continues():
                    _remove(self.folder)
                    self.folder.mkdir()
                self.prepare()
        except BaseException as error:
            self._discard(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._discard(error)

    def continues(self) -> bool:
        """Whether the folder that an earlier run left is kept for this one, rather than emptied."""
        return False

    def keeps(self, error: BaseException) -> bool:
        """Whether the folder stays as it is after an error, for another run to continue."""
        return False

    def prepare(self) -> None:
        """What a kind of folder has in it from the start."""

    def create(self, name: str, header: bytes, size: int, number: int | None = None) -> int:
        """A file of its final size, with its space reserved, so that a full disk shows at once.

        What is there of it is kept.

        Returns:
            the number that `put` knows it by: the one that is asked for, or the next.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        number = len(self._descriptors) if number is None else number
        self._descriptors[number] = descriptor
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with _where_supported():
                os.posix_fallocate(descriptor, 0, size)
        os.pwrite(descriptor, header, 0)
        return number

    def release(self, file: int) -> None:
        """Sync a file that is whole, and close it.

        Raises:
            OutputError: when the disk is full or fails.
        """
        descriptor = self._descriptors.pop(file)
        try:
            with self.explained():
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put(self, file: int, position: int, raw: Raw) -> None:
        """Write bytes at a place of a file. Safe from any thread.

        Raises:
            OutputError: when the disk is full or fails.
        """
        with self.explained():
            write_at(self._descriptors[file], position, raw)

    def flush(self, file: int) -> None:
        """Wait until all that was put into a file is on the disk.

        Raises:
            OSError: when it is not.
        """
        sync_data(self._descriptors[file])

    def flush_folders(self) -> None:
        """Wait until the names of all files, and of the folder itself, are on the disk."""
        inner = [path for path in self.folder.rglob("*") if path.is_dir()]
        for folder in [*inner, self.folder, self.folder.parent]:
            _sync_folder(folder)

    def commit(self) -> None:
        """Sync everything, and put the folder in its place.

        Raises:
            OutputError: when a file cannot be written or the folder not be renamed.
        """
        with self.explained():
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            self.flush_folders()
            written = (p for p in self.folder.rglob("*") if p.is_file() and p.name != JOURNAL)
            self.bytes_written = sum(path.stat().st_size for path in written)
            self._swap()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What the system says, as an `OutputError` that says what to do."""
        try:
            yield
        except OSError as error:
            raise explained(self.output, error) from error

    def _claim(self) -> None:
        """Hold the lock, and put right what a killed run left; a live one is respected."""
        self._lock = _lock_of(self.output, self._lock_file)
        self._restore()

    def _restore(self) -> None:
        """What was renamed for a commit that did not come about gets its name back."""
        if self._aside.exists() and not self._final.exists():
            self._aside.rename(self._final)
        if self._journal_aside.exists() and self.folder.exists():
            self._journal_aside.rename(self.folder / JOURNAL)
        _remove(self._aside)
        _remove(self._journal_aside)

    def _swap(self) -> None:
        """Rename into place. Where this ends early, `_restore` puts an older folder back."""
        self._check()
        if self._final.exists():
            self._final.rename(self._aside)
        if (self.folder / JOURNAL).exists():
            (self.folder / JOURNAL).rename(self._journal_aside)
        self.folder.rename(self._final)
        _sync_folder(self._final.parent)

    def _discard(self, error: BaseException | None) -> None:
        """Close everything, and remove what was not committed, unless it can be continued."""
        try:
            if self._lock is not None:
                with suppress(OSError):
                    self._restore()
                    if error is None or not self.keeps(error):
                        _remove(self.folder)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close every file, and let others write to the place."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if self._lock is not None:
            with suppress(OSError):
                self._lock_file.unlink()
            os.close(self._lock)
            self._lock = None
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()  # only of an empty folder


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def held(output: Path) -> Iterator[None]:
    """The lock of a folder that is not renamed but grows in its place; it is made if need be.

    Raises:
        OutputError: when another run holds it, or the folder cannot be made.
    """
    lock_file = siblings(output)[3]
    try:
        lock = _lock_of(output, lock_file)
    except OSError as error:
        raise explained(output, error) from error
    try:
        output.mkdir(exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            output.rmdir()  # only of an empty folder
        with suppress(OSError):
            lock_file.unlink()
        os.close(lock)


def _lock_of(output: Path, lock_file: Path) -> int:
    """The open lock file of an output.

    Raises:
        OutputError: when another run holds it.
    """
    try:
        while True:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(lock_file)
            if lock is not None:
                return lock
    except BlockingIOError:
        raise OutputError(
            f"{output}: another run is writing to it; wait for its end, or choose "
            "another folder with -o"
        ) from None


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


def write_at(descriptor: int, position: int, raw: Raw) -> None:
    """Write bytes at a place of a file.

    Raises:
        OSError: when that fails.
    """
    view = memoryview(raw.data)
    while len(view):
        wrote = os.pwrite(descriptor, view, position)
        view, position = view[wrote:], position + wrote


def sync_data(descriptor: int) -> None:
    """Wait until what was written to a file is on the disk.

    Raises:
        OSError: when it is not.
    """
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def explained(output: Path, error: OSError) -> OutputError:
    """What the system says of an output, as an error that says what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutputError(f"{output}: the disk is full; free some space, or write elsewhere")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return OutputError(
            f"{output}: cannot be written ({error.strerror}); choose another folder with -o"
        )
    at = f" ({error.filename})" if error.filename else ""
    return OutputError(f"{output}: cannot be written: {error.strerror or error}{at}")


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot, and none loses a file for it
        sync(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as people like to read it, down to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
