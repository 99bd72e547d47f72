"""The plan: every job, address and cost of a merge, from headers alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, RemappedTensor, Shape, Tensor
from ..dtypes import DType
from ..errors import OutputError
from ..kernels import BLOCK, Divide, cpu_chunk_blocks, cpu_workers
from ..methods import Unit
from ..recipe import Recipe
from .reader import FACTOR_BYTES

TORCH_BYTES = 330 * 10**6
"""Memory of a process that has imported torch and run a first operation, measured."""

KEEP_BYTES = 48 * 2**20
"""Bytes of one tensor of all members, as read, that a worker keeps between two passes over it."""


@dataclass(frozen=True)
class Stretch:
    """Rows interpolated to another number of `rows`, the first `kept` of them as they are."""

    rows: int
    kept: int

    def shape(self, shape: Shape) -> Shape:
        """The shape of the result for the shape that is merged."""
        return (self.rows, *shape[1:])


@dataclass(frozen=True)
class Job:
    """One tensor of the result.

    Attributes:
        name: as users see it, with the component's folder.
        sources: the tensor in each member; in the shell alone for a copy.
        members: which of the plan's members the sources belong to; none for the shell's.
        origin: the tensor in the base, when deltas start there.
        dtype: stored type of the result.
        file: index into the plan's files; `offset`: of the first byte in it.
        unit: what counts as one vector; `group` names the vector for layers and models.
        parameters: of the method, resolved for this tensor; None: the tensor is copied, and
            `sources` must all be equal.
        divide: which of the merged elements are divided, by what.
        stretch: the merged rows are interpolated to another number of rows.
    """

    name: str
    sources: tuple[Tensor, ...]
    members: tuple[int, ...]
    origin: Tensor | None
    dtype: DType
    shape: Shape
    file: int
    offset: int
    unit: Unit
    group: str
    parameters: Mapping[str, Any] | None
    divide: Divide | None = None
    stretch: Stretch | None = None

    @property
    def count(self) -> int:
        """Number of elements of each source, and of the result unless it is stretched."""
        return self.sources[0].count

    @property
    def bytes_in(self) -> int:
        """Stored bytes of all sources."""
        origin = self.origin.nbytes if self.origin else 0
        return origin + sum(source.nbytes for source in self.sources)

    @property
    def width(self) -> int:
        """Bytes of one element of all sources, as they are read."""
        origin = self.origin.read_as.itemsize if self.origin else 0
        return origin + sum(source.read_as.itemsize for source in self.sources)

    @property
    def bytes_out(self) -> int:
        """Stored bytes of the result."""
        shape = self.stretch.shape(self.shape) if self.stretch else self.shape
        return (math.prod(shape) * self.dtype.bits + 7) // 8


@dataclass(frozen=True)
class WeightFile:
    """A file to be written: its path in the model's folder, its header, its final size."""

    path: str
    header: bytes = field(repr=False)
    size: int


@dataclass(frozen=True)
class Index:
    """The index of a sharded component: its path, and the content."""

    path: str
    content: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """What a merge will do.

    `shell` is the model that every file but the weights comes from. `notes` are things the user
    should know that are not errors. `layers` are the shell's layers that config.json is to tell
    of, when they are not simply all. `edits` says in words what is done to merged weights, `told`
    what other files are to say of it, by their path in the shell's folder. `written` are whole
    files that stand there instead of the shell's, by their path, and `omitted` those of the shell
    that are left out. `overwrite` allows the output to be a model's folder.
    """

    recipe: Recipe
    output: Path
    members: tuple[Checkpoint, ...]
    base: Checkpoint | None
    shell: Checkpoint
    jobs: tuple[Job, ...] = field(repr=False)
    files: tuple[WeightFile, ...]
    indexes: tuple[Index, ...] = field(repr=False)
    layers: tuple[int, ...] | None
    notes: tuple[str, ...]
    edits: tuple[str, ...] = ()
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    written: Mapping[str, Path | bytes] = field(default_factory=dict, repr=False)
    omitted: frozenset[str] = frozenset()
    overwrite: bool = False

    @property
    def bytes_in(self) -> int:
        """Bytes of all inputs, each counted once."""
        return sum(job.bytes_in for job in self.jobs)

    @property
    def bytes_out(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def disk_free(self) -> int:
        """Free bytes where the output goes."""
        folder = self.output.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @property
    def peak_memory(self) -> int:
        """An upper estimate of the resident bytes of a run on the CPU."""
        vectors = max((len(job.sources) + 1 for job in self.jobs), default=1)
        chunk = 8 * BLOCK * cpu_chunk_blocks(vectors)
        tables = sum(8 * job.count for job in self.jobs if job.stretch)
        models = (*self.members, *((self.base,) if self.base else ()))
        factors = FACTOR_BYTES if any(model.adapter for model in models) else 0
        held = TORCH_BYTES + tables + factors + self._vocabulary_bytes
        return held + cpu_workers() * (KEEP_BYTES + chunk * (3 * vectors + 4))

    @property
    def _vocabulary_bytes(self) -> int:
        """Row numbers of remapped tables (those of one model share theirs), and files to write."""
        tensors = [t for job in self.jobs for t in (*job.sources, job.origin)]
        remapped = [tensor for tensor in tensors if isinstance(tensor, RemappedTensor)]
        rows = {id(tensor.rows): tensor.rows.nbytes for tensor in remapped}
        more = sum(
            t.fallback.places.nbytes + t.fallback.rows.nbytes for t in remapped if t.fallback
        )
        files = sum(len(raw) for raw in self.written.values() if isinstance(raw, bytes))
        return sum(rows.values()) + more + files

    def check_disk(self) -> None:
        """Refuse a plan that the disk cannot hold.

        Raises:
            OutputError: when the output needs more than is free.
        """
        if self.bytes_out > self.disk_free:
            raise OutputError(
                f"{self.output}: needs {self.bytes_out / 1e6:,.2f} MB on a disk with "
                f"{self.disk_free / 1e6:,.2f} MB free; free some, or write elsewhere with -o"
            )
