"""What a machine of a cluster does with a member: train it, and tell of it from time to time.

Nothing here knows of Ray. Model, data and output lie on a file system that all machines share.
"""

from __future__ import annotations

import pickle
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.executors.worker import missing, not_shared
from ..errors import MergekitEmbedError, UsageError
from ..version import __version__
from .bags import members
from .data import open_datasets
from .mining import mine_all
from .processes import Processes, check_device
from .record import WORK, fingerprint, model_digest
from .specs import TrainingPlan

EVERY = 1.0
"""Seconds between reports of steps."""

Told = tuple[str, tuple[Any, ...]]
"""A method of `Progress`, and what it was told."""


@dataclass(frozen=True)
class Order:
    """What a worker needs to know.

    Attributes:
        member: the name of the one to train.
        base: the folder of the model to start from.
        output: the folder of the whole run.
        meaning: the fingerprint that the driver has of the member.
        number, count: which of how many members it is, for progress.
        token: what the file says that marks the folder.
    """

    plan: TrainingPlan
    member: str
    base: Path
    output: Path
    meaning: str
    number: int
    count: int
    token: str


@dataclass(frozen=True)
class Report:
    """What a worker tells: what progress was told, in the end the record, or what went wrong."""

    told: tuple[Told, ...] = ()
    record: Mapping[str, Any] | None = None
    error: MergekitEmbedError | None = None


def work(version: str, packed: bytes) -> Iterator[Report]:
    """Train a member. `packed` is the pickled `Order`.

    What fails as it is expected to is reported; anything else is raised.
    """
    try:
        if version != __version__:
            raise UsageError(
                f"{socket.gethostname()} has mergekit_embed {__version__}, the machine that the "
                f"training was started on {version}; install the same on all"
            )
        order: Order = pickle.loads(packed)
        strange = missing([order.output / WORK], order.token)
        if strange:
            raise not_shared(strange[0], [socket.gethostname()])
        yield from _told(order)
    except MergekitEmbedError as error:
        yield Report(error=error)


def _told(order: Order) -> Iterator[Report]:
    """Train in a thread, and report of it until it ends."""
    heard: queue.SimpleQueue[Told] = queue.SimpleQueue()
    results: list[Report | BaseException] = []

    def train() -> None:
        try:
            results.append(Report(record=_train(order, _Telling(heard))))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=train, name="train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(EVERY)
        told = tuple(heard.get() for _ in range(heard.qsize()))
        if told:
            yield Report(told=_shortened(told))
    result = results[0]
    if isinstance(result, BaseException):
        raise result
    yield result


def _shortened(told: tuple[Told, ...]) -> tuple[Told, ...]:
    """Of steps without a loss only the last one."""
    last = len(told) - 1
    return tuple(
        one
        for i, one in enumerate(told)
        if i == last or one[0] != "stepped" or one[1][2] is not None
    )


def _train(order: Order, progress: _Telling) -> dict[str, Any]:
    from .fit import Job, train_member

    plan = order.plan
    datasets = mine_all(open_datasets(plan), plan, progress.note)
    member = next(one for one in members(plan, datasets) if one.name == order.member)
    found = fingerprint(plan, member, datasets, model_digest(order.base))
    if found.meaning != order.meaning:
        raise UsageError(
            f"model or data are not on {socket.gethostname()} what they are on the machine that "
            "the training was started on; with the executor `ray` they have to lie on storage "
            "that all machines share"
        )
    for note in check_device(plan, Processes()):
        progress.note(note)
    job = Job(plan, member, datasets, order.base, order.output, found, order.number, order.count)
    return train_member(job, Processes(), progress)


class _Telling:
    """See `Progress`: puts what it is told into a queue."""

    def __init__(self, heard: queue.SimpleQueue[Told]):
        self._heard = heard

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        """See `Progress`."""
        self._heard.put(("started", (member, number, count, step, steps)))

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        """See `Progress`."""
        self._heard.put(("stepped", (member, step, loss)))

    def finished(self, member: str) -> None:
        """See `Progress`; the driver knows it from the record."""

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._heard.put(("note", (f"{socket.gethostname()}: {text}",)))
