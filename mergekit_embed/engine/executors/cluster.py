"""A Ray cluster: connecting to it, and whether its machines see what this one writes."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from ...errors import UsageError
from ..staging import explained
from .worker import MARK, missing, not_shared

CONNECT_SECONDS = 10.0
"""So long the head of a cluster may take to answer."""

PROBE_SECONDS = 60.0
"""So long a machine may take to start a worker and have it say whether it sees a folder."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. `ray` is the library."""

    ray: ModuleType

    @property
    def cpus(self) -> int:
        """CPUs of all machines that are alive; 0 when none is left."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def check_shared(self, folders: Sequence[Path], token: str) -> None:
        """Refuse folders that not every machine with a CPU sees.

        Raises:
            OutputError: naming the machines.
        """
        machines = [
            node
            for node in self.ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {
            self.ray.remote(missing)
            .options(num_cpus=0, max_retries=1, scheduling_strategy=strategy(node["NodeID"], True))
            .remote(folders, token): node["NodeManagerHostname"]
            for node in machines
        }
        answers, _ = self.ray.wait([*asked], num_returns=len(asked), timeout=PROBE_SECONDS)
        blind: dict[Path, list[str]] = {}
        for answer in answers:  # who did not answer is asked again by each task
            for folder in self._answer(answer):
                blind.setdefault(folder, []).append(asked[answer])
        for folder, names in blind.items():
            raise not_shared(folder, sorted(set(names)))

    def _answer(self, answer: Any) -> list[Path]:
        try:
            found: list[Path] = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise UsageError(
                    f"a machine of the cluster cannot load mergekit_embed ({error.cause}); install "
                    "the same version on all"
                ) from error
            raise
        except self.ray.exceptions.RayError:  # it has died; its tasks will go elsewhere
            return []
        return found


@contextmanager
def connected(address: str | None, *, device: str) -> Iterator[Cluster]:
    """A connection to a cluster, which ends with the block unless it was there before.

    Raises:
        UsageError: when Ray is not installed, no cluster answers, or a device is asked for.
    """
    if device not in {"auto", "cpu"}:
        raise UsageError(f"the executor `ray` computes on CPUs; {device!r} needs `local`")
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not there; run `pip install 'mergekit_embed[ray]'`")
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            f"{address}: the merge itself has to run on a machine of the cluster; start it there, "
            "or submit it as a job"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported and starts anything
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change
    import ray
    import ray.exceptions
    import ray.util.scheduling_strategies

    if ray.is_initialized():
        yield Cluster(ray)
        return
    try:
        _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
        with _signals_kept():
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise UsageError(f"no Ray cluster at {where}: {error}") from error
    # What Ray has to say of dead workers it prints to standard output, whatever its log level. This
    # is the switch that its own debugger uses.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True


def _check_answers(address: str) -> None:
    """Try a HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: when nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray has SIGTERM end the process at once; the handler of before cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def marked(folders: Sequence[tuple[Path, Path]]) -> Iterator[str]:
    """Mark folders with a file that says what nobody can guess, and give that back.

    Args:
        folders: each with the output that it will be.

    Raises:
        OutputError: when the file cannot be written.
    """
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        for folder, output in folders:
            try:
                (folder / MARK).write_text(token)
            except OSError as error:
                raise explained(output, error) from error
            stack.callback((folder / MARK).unlink, missing_ok=True)
        yield token


def packed(value: Any) -> bytes:
    """Anything that tasks need, with every path made absolute: workers have folders of their own.

    Pickled as Ray does, so that methods may be defined in a script.
    """
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, PurePath) and not obj.is_absolute():
                return Path, (str(Path(obj).absolute()),)
            inherited: Callable[[Any], Any] = super().reducer_override
            return inherited(obj)

    buffer = io.BytesIO()
    pickler: Any = Pickler
    pickler(buffer).dump(value)
    return buffer.getvalue()
