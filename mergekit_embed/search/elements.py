"""The elements of the members, chunk by chunk: from their files, or kept on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import Tensor as Stored
from ..engine.plan import Job
from ..engine.reader import Reader
from ..errors import UsageError
from ..kernels import Raw
from ..kernels.torch_backend import TORCH_TYPES

CHUNK = {"cpu": 2**18, "cuda": 2**24}
"""Elements of a vector handled at once: what fits the CPU's caches, or keeps a GPU busy."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of a tensor, of the stored type, where the model is."""

    start: int
    stop: int
    members: tuple[Tensor, ...]
    origin: Tensor | None


class Elements(Protocol):
    """Gives the elements of tensors of every member and of the origin."""

    def pieces(self, job: Job) -> Iterator[Piece]:
        """All elements of a tensor, first to last."""


class Streamed:
    """Reads every chunk from the files, each time: memory of one chunk of every member."""

    def __init__(self, reader: Reader, device: torch.device):
        self._reader, self._device = reader, device
        self._chunk = CHUNK[device.type]

    def pieces(self, job: Job) -> Iterator[Piece]:
        """See `Elements`."""
        for start in range(0, job.count, self._chunk):
            stop = min(start + self._chunk, job.count)
            members = tuple(self._read(source, start, stop) for source in job.sources)
            origin = None if job.origin is None else self._read(job.origin, start, stop)
            yield Piece(start, stop, members, origin)

    def _read(self, tensor: Stored, start: int, stop: int) -> Tensor:
        return on_device(self._reader.read(tensor, start, stop), tensor, self._device)


class Cached:
    """Keeps every member in memory, as it is stored: read once."""

    def __init__(self, reader: Reader, device: torch.device, jobs: Sequence[Job]):
        wanted = dict.fromkeys(tensor for job in jobs for tensor in job.tensors)
        self._held = {
            tensor: on_device(reader.read(tensor, 0, tensor.count), tensor, device)
            for tensor in wanted
        }
        self._chunk = CHUNK[device.type]

    def pieces(self, job: Job) -> Iterator[Piece]:
        """See `Elements`."""
        for start in range(0, job.count, self._chunk):
            stop = min(start + self._chunk, job.count)
            members = tuple(self._held[source][start:stop] for source in job.sources)
            origin = None if job.origin is None else self._held[job.origin][start:stop]
            yield Piece(start, stop, members, origin)


def on_device(raw: Raw, tensor: Stored, device: torch.device) -> Tensor:
    """Bytes that were read of a tensor, as a vector of its type on the device."""
    values = torch.from_numpy(np.ascontiguousarray(raw)).view(TORCH_TYPES[tensor.read_as])
    return values if device.type == "cpu" else values.to(device)


def size_of_cache(jobs: Sequence[Job]) -> int:
    """Bytes that keeping all members takes."""
    tensors = {tensor for job in jobs for tensor in job.tensors}
    return sum(tensor.count * tensor.read_as.itemsize for tensor in tensors)


def opened(
    reader: Reader, device: torch.device, jobs: Sequence[Job], cache: str | int
) -> Streamed | Cached:
    """The members' elements, kept where they fit.

    Args:
        reader: of their files.
        device: where the model is.
        jobs: of the tensors that are merged.
        cache: "off"; "auto" for half of the memory that is free; or bytes.

    Raises:
        UsageError: when `cache` is none of these.
    """
    if cache == "off":
        return Streamed(reader, device)
    if cache != "auto" and not isinstance(cache, int):
        raise UsageError(f"cache must be a size such as 4GB, off or auto, not {cache}")
    allowed = cache if isinstance(cache, int) else free_memory(device) // 2
    if size_of_cache(jobs) <= allowed:
        return Cached(reader, device, jobs)
    return Streamed(reader, device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU with what the system can free at once."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
