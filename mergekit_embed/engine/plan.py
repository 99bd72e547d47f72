"""The plan: every job, address and cost of a merge, from headers alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, RemappedTensor, Shape, Tensor
from ..dtypes import DType
from ..errors import OutputError
from ..kernels import Divide, cpu_memory, cpu_workers
from ..methods import Unit
from ..recipe import Recipe
from .folding import FACTOR_BYTES
from .passes import goes_again
from .stamps import Stamp

KEEP_BYTES = 256 * 2**20
"""Bytes of what was read, all workers together, that are kept for another pass over them."""


@dataclass(frozen=True)
class Stretch:
    """Rows interpolated to another number of `rows`, the first `kept` of them as they are."""

    rows: int
    kept: int

    def shape(self, shape: Shape) -> Shape:
        """The shape of the result for the shape that is merged."""
        return (self.rows, *shape[1:])


@dataclass(frozen=True)
class Measured:
    """What was measured of one tensor in every member.

    Attributes:
        tensors: a Fisher for each element, or the Gram matrix of a linear layer's inputs.
        labels: the folders that they lie in, for messages.
        norms: L2 norms of the members' Fishers over the whole model; 1 for Gram matrices.
        elementwise: True for Fishers.
        transposed: the layer's weight is stored (in, out).
    """

    tensors: tuple[Tensor, ...]
    labels: tuple[str, ...]
    norms: tuple[float, ...]
    elementwise: bool
    transposed: bool


@dataclass(frozen=True)
class Job:
    """One tensor of the result.

    Attributes:
        name: as users see it, with the component's folder.
        role: of the component that it belongs to; `tensor`: its name there.
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
        measured: what the method weighs by; None where it takes the weighted mean instead.
    """

    name: str
    role: str
    tensor: str
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
    measured: Measured | None = None

    @property
    def count(self) -> int:
        """Number of elements of each source, and of the result unless it is stretched."""
        return self.sources[0].count

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is read: the sources, and the origin and statistics where there are some."""
        return (*self._elements, *(self.measured.tensors if self.measured else ()))

    @property
    def _elements(self) -> tuple[Tensor, ...]:
        return self.sources if self.origin is None else (*self.sources, self.origin)

    @property
    def bytes_in(self) -> int:
        """Stored bytes of all that is read."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def width(self) -> int:
        """Bytes of one element of all that has as many elements, as they are read."""
        elementwise = self.measured is None or self.measured.elementwise
        tensors = self.tensors if elementwise else self._elements
        return sum(tensor.read_as.itemsize for tensor in tensors)

    @property
    def result_shape(self) -> Shape:
        """Sizes of the result."""
        return self.stretch.shape(self.shape) if self.stretch else self.shape

    @property
    def result_count(self) -> int:
        """Number of elements of the result."""
        return math.prod(self.result_shape)

    @property
    def bytes_out(self) -> int:
        """Stored bytes of the result."""
        return (self.result_count * self.dtype.bits + 7) // 8


def bytes_of(jobs: Iterable[Job]) -> int:
    """Stored bytes of all that the jobs read, each counted once."""
    found: dict[Tensor, int] = {}

    def walk(tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor not in found:
                within = sum(part.nbytes for part in tensor.parts)
                found[tensor] = max(0, tensor.nbytes - within)
                walk(tensor.parts)

    for job in jobs:
        walk(job.tensors)
    return sum(found.values())


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

    `shell` is the model that every file but the weights comes from, `told` what its JSON files are
    to say otherwise, by their path in its folder. `written` are whole files that stand there
    instead of the shell's, by their path, and `omitted` those of the shell that are left out.
    `nested` are the plans of members that are recipes. `notes` are things the user should know that
    are not errors. `edits` says in words what is done to merged weights. `overwrite` allows the
    output to be a model's folder. `inputs` is how every file that is read was when it was planned.
    """

    recipe: Recipe
    output: Path
    members: tuple[Checkpoint, ...]
    base: Checkpoint | None
    shell: Checkpoint
    jobs: tuple[Job, ...] = field(repr=False)
    files: tuple[WeightFile, ...]
    indexes: tuple[Index, ...] = field(repr=False)
    notes: tuple[str, ...]
    nested: tuple[Plan, ...] = field(default=(), repr=False)
    edits: tuple[str, ...] = ()
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    written: Mapping[str, Path | bytes] = field(default_factory=dict, repr=False)
    omitted: frozenset[str] = frozenset()
    overwrite: bool = False
    inputs: Mapping[Path, Stamp] = field(default_factory=dict, repr=False)

    @cached_property
    def depth(self) -> int:
        """How many recipes deep the members are nested: 0 where all are models."""
        return 1 + max((plan.depth for plan in self.nested), default=-1)

    @cached_property
    def opened(self) -> tuple[Checkpoint, ...]:
        """The members and the base, and in place of those that are recipes their own, each once."""
        own = (*self.members, *((self.base,) if self.base else ()))
        found = [model for model in own if model.recipe is None]
        found += [model for plan in self.nested for model in plan.opened]
        return tuple({(model.root, model.adapter): model for model in found}.values())

    @property
    def bytes_in(self) -> int:
        """Bytes of all inputs, each counted once."""
        return bytes_of(self.jobs)

    @property
    def bytes_out(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def disk_free(self) -> int:
        """Free bytes where the output goes."""
        return free_space(self.output)

    @property
    def peak_memory(self) -> int:
        """An upper estimate of the resident bytes of a run on the CPU.

        Of inputs that are gone through again, or that are merges themselves, some are kept.
        """
        again = [job for job in self.jobs if self.nested or goes_again(self, job)]
        return self.least_memory + min(_pass_bytes(again), KEEP_BYTES)

    @property
    def shared_peak_memory(self) -> int:
        """The same for a run together with other plans, which keeps of all that they share."""
        return self.least_memory + min(_pass_bytes(self.jobs), KEEP_BYTES)

    @property
    def least_memory(self) -> int:
        """The same for a run that keeps nothing of what it has read."""
        vectors = max((len(job.sources) + 1 for job in self.jobs), default=1)
        tables = sum(8 * job.count for job in self.jobs if job.stretch)
        factors = FACTOR_BYTES if any(model.adapter for model in self.opened) else 0
        square = max((_regression_bytes(job) for job in self.jobs), default=0)
        held = tables + factors + self._vocabulary_bytes + cpu_workers() * square
        inner = max((plan.least_memory - cpu_memory(1) for plan in self.nested), default=0)
        return cpu_memory(vectors) + held + max(inner, 0)

    @property
    def _vocabulary_bytes(self) -> int:
        """Row numbers of remapped tables (those of one model share theirs), and files to write."""
        tensors = [tensor for job in self.jobs for tensor in job.tensors]
        remapped = [tensor for tensor in tensors if isinstance(tensor, RemappedTensor)]
        rows = {id(tensor.rows): tensor.rows.nbytes for tensor in remapped}
        more = sum(
            t.fallback.places.nbytes + t.fallback.rows.nbytes for t in remapped if t.fallback
        )
        files = sum(len(raw) for raw in self.written.values() if isinstance(raw, bytes))
        return sum(rows.values()) + more + files


def _pass_bytes(jobs: Iterable[Job]) -> int:
    return sum(job.count * job.width for job in jobs)


def _regression_bytes(job: Job) -> int:
    """Of the Gram matrices of a tensor in memory: as stored, weighted, and four on the way."""
    if job.measured is None or job.measured.elementwise:
        return 0
    (size, _), count = job.measured.tensors[0].shape, len(job.sources)
    whole = 8 * job.count * (count + 4) if job.measured.transposed else 0
    stored = sum(tensor.nbytes for tensor in job.measured.tensors)
    return stored + 8 * size * size * (count + 4) + whole


def nearest_folder(output: Path) -> Path:
    """The folder that an output will be in, or is, as far as it is there."""
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_space(output: Path) -> int:
    """Free bytes where an output goes."""
    return shutil.disk_usage(nearest_folder(output)).free


def check_space(output: Path, *needed: int) -> None:
    """Refuse outputs, the first of which is named, that the disk cannot hold together.

    Raises:
        OutputError: when they need more than is free.
    """
    free = free_space(output)
    if sum(needed) > free:
        more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
        raise OutputError(
            f"{output}{more}: needs {sum(needed) / 1e6:,.2f} MB on a disk with "
            f"{free / 1e6:,.2f} MB free; free some, or write elsewhere with -o"
        )
