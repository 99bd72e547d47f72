"""Where the jobs of a merge are run: on this machine, or on those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...errors import UsageError
from ..destination import Destination
from ..plan import Plan
from ..run import Progress, Ran

EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Runs the jobs of plans. Every executor gives the same bytes."""

    def run(
        self, plans: Sequence[Plan], destinations: Sequence[Destination], progress: Progress
    ) -> Ran:
        """Run what the destinations want, and have it written into their files.

        Raises:
            MergekitEmbedError: the first that a job met; nothing writes any more then that a later
                run would not write as well.
        """


@dataclass(frozen=True)
class Wanted:
    """How a merge is to be run.

    Attributes:
        device: where to compute; Ray's workers compute on CPUs.
        small: it takes less time than compiling kernels.
        keep: bytes of what is read that a process keeps for another pass; None for the usual.
    """

    device: str
    small: bool
    keep: int | None


@contextmanager
def opened(name: str, wanted: Wanted, ray_address: str | None) -> Iterator[Executor]:
    """An executor by its name, ready to run.

    Args:
        name: "local" or "ray".
        wanted: how to run.
        ray_address: of the cluster's head; None: a cluster that this machine is part of or that
            RAY_ADDRESS names, else one of this machine alone.

    Raises:
        UsageError: when there is no such executor, Ray is not installed, or no cluster answers.
    """
    if name not in EXECUTORS:
        raise UsageError(f"{name!r} is no executor; use {' or '.join(EXECUTORS)}")
    if name == "ray":
        from .cluster import connected
        from .on_ray import RayExecutor

        with connected(ray_address, device=wanted.device) as cluster:
            yield RayExecutor(cluster, small=wanted.small, keep=wanted.keep)
        return
    if ray_address is not None:
        raise UsageError("an address of a Ray cluster needs the executor `ray`")
    from .local import Local

    yield Local(wanted.device, small=wanted.small, keep=wanted.keep)
