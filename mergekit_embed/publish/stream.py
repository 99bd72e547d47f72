"""Straight to the Hub: every shard is sent while the next is merged, and then removed from here.

The disk holds two shards at most. Nothing is to be seen on the Hub until the last is there; then
one commit names them all, with the other files. What was killed is run again: shards that were
sent are merged once more, since their bytes are gone, but not sent once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine import MergeResult, Plan, Progress
from ..engine.by_file import run_by_file
from ..engine.destination import Destination
from ..engine.keeping import kept
from ..engine.merge import SMALL, peak_memory, room
from ..engine.plan import bytes_of, check_space
from ..engine.run import Silent
from ..engine.staging import JOURNAL, left_behind
from ..engine.stamps import stamp
from ..kernels import open_kernels
from .advice import advised
from .card import write_card
from .check import File, check_card, files_in
from .lineage import read_lineage
from .push import (
    MESSAGE,
    Prepared,
    Pushed,
    already_there,
    check_place,
    commit,
    ensure,
    open_hub,
    quiet,
    upload,
)
from .target import Target, There, compare

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

AT_ONCE = 2
"""So many shards are on the disk: one that is merged, and one that is sent."""


@dataclass(frozen=True)
class Streamed:
    """What was merged, and where it is. There is nothing at the merge's path."""

    merge: MergeResult
    pushed: Pushed


def stream_to_hub(
    plan: Plan,
    target: Target | str,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    restart: bool = False,
    verify: bool = False,
    memory: int | None = None,
    message: str = MESSAGE,
    api: HfApi | None = None,
) -> Streamed:
    """Merge a model into a repository of the Hub. Beside `plan.output` lies what is on its way.

    The weights are checked as they are merged; whether the model loads can be tried only once it
    is on the Hub.

    Args:
        plan: of the merge.
        target: where to.
        device: as for `merge`.
        progress: as for `merge`.
        restart: as for `merge`.
        verify: as for `merge`.
        memory: as for `merge`.
        message: of the commit.
        api: as for `push`.

    Raises:
        MergekitEmbedError: what `merge` and `push` raise. On the Hub nothing is to be seen then.
    """
    started = time.perf_counter()
    target = Target(target) if isinstance(target, str) else target
    keep = None if memory is None else room([plan], memory)
    largest = sorted((file.size for file in plan.files), reverse=True)[:AT_ONCE]
    check_space(plan.output, sum(largest) - left_behind(plan.output))
    small = plan.bytes_in < SMALL
    with quiet(show_progress=False):
        api = api or open_hub()
        user, there = check_place(api, target, plan.recipe)
        with advised(target.repository):
            there = There(
                exists=True,
                has_branch=True,
                head=ensure(api, target, there),
                files=there.files,
                is_own=there.is_own,
            )
        kernels = open_kernels(device, small=small)
        sink = Streaming(plan, api, target, restart=restart, verify=verify)
        with ExitStack() as stack:
            stack.enter_context(sink)
            with kept([sink]):
                ran = run_by_file(plan, kernels, sink, progress or Silent(), keep)
                pushed = sink.publish(there, user, message)
    merged = MergeResult(
        path=plan.output,
        members=len(plan.members),
        seconds=time.perf_counter() - started,
        bytes_read=ran.bytes_read,
        bytes_in=bytes_of(plan.jobs),
        bytes_written=sink.bytes_written,
        peak_memory=peak_memory(),
        notes=(*((sink.remark,) if sink.remark else ()), *plan.notes, *ran.notes[0]),
        resumed=sink.resumed,
    )
    return Streamed(merged, pushed)


class Streaming(Destination):
    """The files of a model on their way to the Hub: the sink of its plan, file by file."""

    def __init__(
        self, plan: Plan, api: HfApi, target: Target, *, restart: bool = False, verify: bool = False
    ):
        """See `Destination`."""
        super().__init__(plan, restart=restart, verify=verify)
        self._check = lambda: None  # nothing is put in that place
        self._api, self._target = api, target
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._sending: list[Future[File]] = []
        self._is_over = False
        self._added: dict[str, CommitOperationAdd] = {}

    def prepare(self) -> None:
        """See `Staging.prepare`. A file is created when its jobs begin."""
        self.tidy()
        begun = self._begun()
        for number, file in enumerate(self.plan.files):
            if number not in begun:
                (self.folder / file.path).unlink(missing_ok=True)
        if self._entries:
            self._begin_journal(self._entries.values())

    def _begun(self) -> set[int]:
        """The files of which an earlier run left something."""
        return {job.file for job in self.plan.jobs if job.name in self._entries}

    def order(self) -> Sequence[int]:
        """See `FileSink.order`. What an earlier run left takes room, and goes first."""
        begun = self._begun()
        return sorted(range(len(self.plan.files)), key=lambda file: (file not in begun, file))

    def begin(self, file: int) -> None:
        """See `FileSink.begin`. Waits until the file before the last one was sent and removed.

        Raises:
            HubError, OutputError: when it could not be.
        """
        for sending in self._sending[: len(self._sending) + 1 - AT_ONCE]:
            sending.result()
        described = self.plan.files[file]
        with self.explained():
            self.create(described.path, described.header, described.size, number=file)

    def end(self, file: int) -> None:
        """See `FileSink.end`. What was merged is synced and in the journal before it is sent."""
        self.save()
        self.release(file)
        self._sending.append(self._sender.submit(self._send, self.plan.files[file].path))

    def _send(self, name: str) -> File:
        """Send a file, and remove it."""
        from huggingface_hub import CommitOperationAdd

        path = self.folder / name
        found = File(name, path, stamp(path))
        with advised(self._target.repository):
            added = CommitOperationAdd(name, str(path))
            sha256 = added.upload_info.sha256.hex()
            upload(self._api, self._target, [added], frees=True)
        self._added[name] = added
        if added.path_or_fileobj != b"":  # one so small that the Hub wants it in the commit
            return found
        if not self._is_over:
            path.unlink()
        return File(name, path, found.stamp, sha256)

    def publish(self, there: There, user: str, message: str) -> Pushed:
        """Add the other files, and make the commit that names all.

        Raises:
            HubError: when the Hub refuses.
            PublishError: when the card is one that it would refuse.
        """
        from huggingface_hub import CommitOperationAdd

        with self._save_lock:
            self._is_committing = True
        shards = [sending.result() for sending in self._sending]
        self.complete()
        write_card(self.folder, name=self._target.repository)
        check_card(self.folder)
        others = [file for file in files_in(self.folder) if file.path not in self._added]
        files = [*shards, *(file for file in others if file.path != JOURNAL)]
        self.bytes_written = sum(file.size for file in files)
        own = read_lineage(self.folder)
        made = compare(self._api, self._target, there, files, own)
        prepared = Prepared(self._target, user, there, made, own)
        done = already_there(self._api, prepared)
        if done is not None:
            return done
        with advised(self._target.repository):
            added = [
                self._added.get(file.path) or CommitOperationAdd(file.path, str(file.source))
                for file in made.sent
            ]
            return commit(self._api, prepared, added, there.head, message)

    def _discard(self, error: BaseException | None) -> None:
        """Leave what is being sent to itself, which may take long; a later run finds it there."""
        self._is_over = True
        self._sender.shutdown(wait=False, cancel_futures=True)
        super()._discard(error)
