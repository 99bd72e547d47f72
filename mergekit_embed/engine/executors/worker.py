"""What a worker does with a task: measure or merge its jobs, and tell of it from time to time.

Nothing here knows of Ray. Members are read, and the result is written, through the file system that
all machines share.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import ChangedError, CheckpointError, MergekitEmbedError, OutputError, UsageError
from ...kernels import Raw, open_kernels
from ...methods import Gram
from ...version import __version__
from ..agenda import Agenda, Grams
from ..destination import entry_of
from ..hashing import Hash
from ..inputs import files_of
from ..journal import Entry
from ..keeping import BYTES, SECONDS
from ..plan import Job, Plan
from ..reader import Reader
from ..run import Learned, Running, Silent
from ..sharing import Share
from ..staging import explained, sync_data, write_at
from ..stamps import Stamp, stamp
from .tasks import JobKey, Keys, Order, Report, Task

MARK = "merge_driver.txt"
"""The file that tells a worker that the folder it sees is the one that the driver has made."""


def work(version: str, task: Task, packed: bytes, grams: Grams) -> Iterator[Report]:
    """Do a task on one thread. `packed` is the pickled `Order`.

    What fails as it is expected to is reported; anything else is raised.
    """
    try:
        if version != __version__:
            raise UsageError(
                f"{socket.gethostname()} has mergekit_embed {__version__}, the machine that the "
                f"merge was started on {version}; install the same on all"
            )
        yield from _Worker(_unpacked(packed), task, grams).reports()
    except MergekitEmbedError as error:
        yield Report(error=error)


def _unpacked(packed: bytes) -> Order:
    try:
        found = pickle.loads(packed)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{socket.gethostname()} cannot load what the recipe needs ({error}); install the "
            "package that its method comes from on all machines"
        ) from error
    assert isinstance(found, Order)
    return found


def missing(folders: Sequence[Path], token: str) -> list[Path]:
    """Those folders that are not, on this machine, the ones that the driver has made."""
    return [folder for folder in folders if _text(folder / MARK) != token]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


class PartialFolder:
    """The sink of a plan on a machine that does not own its folder: some jobs, in files there."""

    def __init__(self, plan: Plan, folder: Path, wanted: Mapping[str, JobKey]):
        self._plan, self._folder, self._wanted = plan, folder, wanted
        self._descriptors: dict[int, int] = {}
        self._hashes: dict[str, Hash] = {}
        self._finished: list[tuple[JobKey, Entry]] = []

    def wants(self, job: Job) -> bool:
        """See `Sink.wants`."""
        return job.name in self._wanted

    def notes(self, job: Job) -> Sequence[str]:
        """See `Sink.notes`; the driver knows them."""
        return ()

    def write(self, job: Job, start: int, raw: Raw) -> None:
        """See `Sink.write`.

        Raises:
            OutputError: when the disk is full or fails.
        """
        self._hashes.setdefault(job.name, Hash()).add(raw)
        try:
            if job.file not in self._descriptors:
                self._descriptors[job.file] = self._open(job.file)
            position = job.offset + start * job.dtype.itemsize
            write_at(self._descriptors[job.file], position, raw)
        except OSError as error:
            raise explained(self._plan.output, error) from error

    def _open(self, file: int) -> int:
        # For writing alone: a client of NFS that may read as well fetches the page around a piece
        # and writes all of it back, over what another machine has put there.
        return os.open(self._folder / self._plan.files[file].path, os.O_WRONLY | os.O_CLOEXEC)

    def finished(self, job: Job, learned: Learned) -> None:
        """See `Sink.finished`."""
        entry = entry_of(job, self._hashes.pop(job.name, Hash()), learned)
        self._finished.append((self._wanted[job.name], entry))

    @property
    def unsaved(self) -> int:
        """Bytes of finished jobs that may not be on the disk."""
        return sum(entry.size for _, entry in self._finished)

    def saved(self) -> list[tuple[JobKey, Entry]]:
        """The jobs that were finished since this was called last; their bytes are on the disk.

        Raises:
            OutputError: when they do not get there.
        """
        try:
            for descriptor in self._descriptors.values():
                sync_data(descriptor)
        except OSError as error:
            raise explained(self._plan.output, error) from error
        found, self._finished = self._finished, []
        return found

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class _Worker:
    """A task on its way."""

    def __init__(self, order: Order, task: Task, grams: Grams):
        strange = missing(order.folders, order.token)
        if strange:
            raise not_shared(strange[0], [socket.gethostname()])
        self._order, self._task = order, task
        everything = Agenda(order.plans, lambda plan, job: False)
        self._jobs = Keys(everything).jobs(task.jobs)
        self._keys = {id(job): key for (_, job), key in zip(self._jobs, task.jobs, strict=True)}
        self._sinks = [
            PartialFolder(plan, folder, self._wanted(plan))
            for plan, folder in zip(order.plans, order.folders, strict=True)
        ]
        merged = set() if task.measures else set(self._keys)
        self._agenda = Agenda(order.plans, lambda plan, job: id(job) in merged)
        self._stamps = _stamps_here(order.plans, self._jobs)
        self._grams = grams
        self._bytes_read = 0

    def _wanted(self, plan: Plan) -> dict[str, JobKey]:
        return {job.name: self._keys[id(job)] for one, job in self._jobs if one is plan}

    def reports(self) -> Iterator[Report]:
        """Do all, and tell of it: what is told of is on the disk."""
        kernels = open_kernels("cpu", small=self._order.small)
        kernels.workers = 1
        try:
            with Reader(self._stamps) as reader, kernels.session():
                running = Running(self._agenda, kernels, reader, Silent(), self._order.keep)
                running.grams = self._grams
                yield from self._measured(running) if self._task.measures else self._merged(running)
        finally:
            for sink in self._sinks:
                sink.close()

    def _measured(self, running: Running) -> Iterator[Report]:
        for (_, job), gram in running.measure(self._jobs):
            yield self._report(running, grams=((self._keys[id(job)], gram),))

    def _merged(self, running: Running) -> Iterator[Report]:
        last = time.monotonic()
        for _ in running.merge(self._sinks):
            unsaved = sum(sink.unsaved for sink in self._sinks)
            if time.monotonic() - last >= SECONDS or unsaved >= BYTES:
                yield self._report(running, entries=self._saved())
                last = time.monotonic()
        yield self._report(running, entries=self._saved())

    def _saved(self) -> tuple[tuple[JobKey, Entry], ...]:
        return tuple(one for sink in self._sinks for one in sink.saved())

    def _report(
        self,
        running: Running,
        entries: tuple[tuple[JobKey, Entry], ...] = (),
        grams: tuple[tuple[JobKey, Gram], ...] = (),
    ) -> Report:
        running.reader.refuse_changed()
        read, said = running.reader.bytes_read, running.said.listed()
        report = Report(entries, grams, tuple(said), read - self._bytes_read)
        self._bytes_read = read
        return report


def not_shared(folder: Path, machines: Sequence[str]) -> OutputError:
    """The error for a folder that some machines do not see."""
    return OutputError(
        f"{folder.parent}: what is written there is not seen on {', '.join(machines)}; with the "
        "executor `ray` the result has to go to storage that all machines share, by the same path"
    )


def _stamps_here(plans: Sequence[Plan], jobs: Share) -> dict[Path, Stamp]:
    """How the files that jobs read are on this machine.

    They have to have the size and the time that they were planned with; numbers of devices, and on
    some file systems of files, differ between machines.

    Raises:
        CheckpointError: for a file that this machine does not see.
        ChangedError: for one that is not what it was.
    """
    found = {}
    known = {path: one for plan in plans for path, one in plan.inputs.items()}
    for path in sorted(files_of(tensor for _, job in jobs for tensor in job.tensors)):
        if not path.exists():
            raise CheckpointError(
                path,
                f"is not there on {socket.gethostname()}; with the executor `ray` models have to "
                "lie on storage that all machines share, by the same path",
            )
        found[path] = stamp(path)
        planned = known.get(path, found[path])
        if (found[path].size, found[path].mtime_ns) != (planned.size, planned.mtime_ns):
            raise ChangedError(
                path, "has changed since the merge was planned; wait until it is whole, merge again"
            )
    return found
