"""Members on the machines of a Ray cluster: one member is one task, the driver keeps the record.

Everything lies on storage that all machines share. A task whose worker dies is given to another,
which goes on from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.executors.cluster import Cluster, connected, marked, packed
from ..errors import WorkerError
from ..version import __version__
from .bags import Member
from .places import absolute
from .record import WORK
from .worker import Order, Report, work

if TYPE_CHECKING:
    from .run import Training

ATTEMPTS = 4
"""How often in a row a member may be lost before a step of it is done."""

LOOK_SECONDS = 1.0
"""How often it is looked whether machines are left, where nothing is reported."""

PATIENCE_SECONDS = 60.0
"""So long a cluster may be without machines, which one that scales itself is at first."""


def train_on_ray(training: Training, wanted: Sequence[Member], address: str | None) -> None:
    """Train members on a cluster, and add each to the record as it is finished.

    Raises:
        UsageError: when Ray is not there, no cluster answers, or a machine has something else.
        OutputError: when a machine does not see the folder.
        WorkerError: when machines die again and again, or none is left.
    """
    folder = training.target / WORK
    with connected(address, device="auto") as cluster, marked([(folder, training.target)]) as token:
        cluster.check_shared([folder.absolute()], token)
        _Driver(cluster, training, token).train(wanted)


@dataclass
class _Task:
    """A member that a worker has, and how often in a row it was lost before a step was done."""

    member: Member
    attempts: int = 1


class _Driver:
    """A training on its way."""

    def __init__(self, cluster: Cluster, training: Training, token: str):
        self._cluster, self._training, self._token = cluster, training, token
        self._plan = absolute(training.plan)
        self._work = cluster.ray.remote(work).options(
            max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD", **self._needs()
        )
        self._running: dict[Any, _Task] = {}

    def _needs(self) -> dict[str, int]:
        """A GPU for each member; on clusters without, all CPUs of a machine."""
        if self._cluster.ray.cluster_resources().get("GPU", 0) >= 1:
            return {"num_gpus": 1, "num_cpus": 1}
        nodes = [node for node in self._cluster.ray.nodes() if node["Alive"]]
        cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        return {"num_cpus": min((count for count in cpus if count), default=1)}

    def train(self, wanted: Sequence[Member]) -> None:
        """Train members until all are done."""
        try:
            for member in wanted:
                self._submit(_Task(member))
            alone = 0.0
            while self._running:
                ready, _ = self._cluster.ray.wait([*self._running], timeout=LOOK_SECONDS)
                alone = 0.0 if ready or self._cluster.cpus else alone + LOOK_SECONDS
                if alone > PATIENCE_SECONDS:
                    raise WorkerError("the Ray cluster has no machine left that could train")
                for stream in ready:
                    self._hear(stream)
        except BaseException:
            for stream in self._running:
                self._cluster.ray.cancel(stream, force=True)
            raise

    def _submit(self, task: _Task) -> None:
        training, name = self._training, task.member.name
        names = [member.name for member in training.members]
        order = Order(
            self._plan,
            name,
            training.base,
            training.target,
            training.prints[name].meaning,
            names.index(name) + 1,
            len(names),
            self._token,
        )
        self._running[self._work.remote(__version__, packed(order))] = task

    def _hear(self, stream: Any) -> None:
        """Take the next report of a task; where its worker has died, give it to another."""
        exceptions = self._cluster.ray.exceptions
        task = self._running[stream]
        try:
            report: Report = self._cluster.ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
        except (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError):
            raise
        except exceptions.RayError as error:
            del self._running[stream]
            if task.attempts >= ATTEMPTS:
                reason = " ".join(str(error).split())[:300]
                raise WorkerError(
                    f"workers died {ATTEMPTS} times at {task.member.name}, maybe for want of "
                    f"memory: {reason}"
                ) from error
            self._submit(_Task(task.member, task.attempts + 1))
        else:
            self._take(report, task)

    def _take(self, report: Report, task: _Task) -> None:
        if report.error is not None:
            raise report.error
        for name, values in report.told:
            getattr(self._training.progress, name)(*values)
            if name == "stepped":
                task.attempts = 1
        if report.record is not None:
            self._training.add(task.member.name, report.record)
