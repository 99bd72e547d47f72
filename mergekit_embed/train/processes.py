"""The processes that train together: this one alone, or those that a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import MergekitEmbedError, UsageError
from .specs import TrainingPlan

Found = TypeVar("Found")


@dataclass(frozen=True)
class Processes:
    """How many processes there are, and which of them this one is. Only the first writes files."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is this one that writes and speaks."""
        return self.rank == 0

    def agree(self, find: Callable[[], Found]) -> Found:
        """What the first process finds, in all of them. Every process has to ask.

        Raises:
            MergekitEmbedError: in the first process, as `find` does.
            SystemExit: in the others then, with the exit code of the error.
        """
        if self.count == 1:
            return find()
        from torch import distributed

        answer: list[Any] = [None, None]
        error: MergekitEmbedError | None = None
        if self.first:
            try:
                answer[0] = find()
            except MergekitEmbedError as failed:
                error, answer[1] = failed, failed.exit_code
        distributed.broadcast_object_list(answer, src=0, device=_device())
        if error is not None:
            raise error
        if answer[1] is not None:
            raise SystemExit(answer[1])
        found: Found = answer[0]
        return found

    def total(self, number: int) -> int:
        """The sum of what all processes say."""
        if self.count == 1:
            return number
        import torch
        from torch import distributed

        summed = torch.tensor(number, dtype=torch.int64, device=_device())
        distributed.all_reduce(summed)
        return int(summed)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun or `accelerate launch` started, connected; else this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    from accelerate import PartialState
    from torch import distributed

    connected = distributed.is_initialized()
    state = PartialState(cpu=not has_accelerator())
    try:
        yield Processes(state.process_index, state.num_processes)
    finally:
        if not connected and distributed.is_initialized():
            distributed.destroy_process_group()


def has_accelerator() -> bool:
    """Whether there is a device to train on other than the CPU."""
    import torch

    return torch.accelerator.is_available()


def check_device(plan: TrainingPlan, processes: Processes) -> list[str]:
    """Refuse what the device cannot do, and tell what it could do better.

    Raises:
        UsageError: for a precision that it does not have, or batches that cannot be shared out.
    """
    import torch

    precision, notes = plan.training.precision, list[str]()
    if not has_accelerator():
        if precision == "fp16":
            message = "`precision: fp16` needs a GPU; on a CPU take fp32 or bf16"
            raise UsageError(message)
    elif torch.cuda.is_available():
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name()
            raise UsageError(f"`precision: bf16` is more than a {name} can; take fp16 or fp32")
        there = torch.cuda.device_count()
        if there > 1 and processes.count == 1:
            notes.append(
                f"of {there} GPUs one is used; `torchrun --nproc-per-node {there} --no-python "
                "boom-train ...` uses all"
            )
    for spec in plan.datasets.values():
        if spec.batch_size % processes.count:
            raise UsageError(
                f"{spec.name}: batches of {spec.batch_size} rows cannot be shared out among "
                f"{processes.count} processes; choose a `batch_size` that is a multiple"
            )
    return notes


def _device() -> Any:
    """Where tensors lie that the processes exchange."""
    import torch
    from torch import distributed

    on_cpu = "gloo" in str(distributed.get_backend())
    return torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
