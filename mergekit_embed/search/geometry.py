"""The members as vectors: their Gram matrices, lengths and angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.agenda import Agenda
from ..engine.mixtures import measure
from ..engine.plan import Job, Plan
from ..engine.reader import Reader
from ..engine.run import Running, Silent
from ..kernels import open_kernels
from ..methods import Gram
from .groups import Grouping
from .specs import Doubles

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Tensors with the same coefficients: those of one group that are measured as one vector.

    Attributes:
        cell_of: int64 (T,), of every tensor.
        group_of: int64 (C,), of every cell.
        grams: float64 (C, K, K), of the vector that a cell belongs to.
    """

    cell_of: Numbers
    group_of: Numbers
    grams: Doubles

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group_of.max()) + 1

    def summed(self, by_tensor: Doubles) -> Doubles:
        """Sums over the tensors of each cell: (C, ...) of (T, ...)."""
        found = np.zeros((len(self.group_of), *by_tensor.shape[1:]))
        np.add.at(found, self.cell_of, by_tensor)
        return found


def merged_jobs(plan: Plan) -> tuple[Job, ...]:
    """The tensors that are merged and not copied, in the order of their names."""
    return tuple(
        sorted((job for job in plan.jobs if job.parameters is not None), key=lambda job: job.name)
    )


def measured(plan: Plan, device: str) -> Doubles:
    """The Gram matrix of every merged tensor: float64 (T, K, K), by the engine's own kernels.

    Raises:
        NonFiniteError, CheckpointError: as a merge does.
    """
    jobs = merged_jobs(plan)
    kernels = open_kernels(device, small=plan.bytes_in < 10**9)
    agenda = Agenda([plan], lambda plan, job: False)
    found: dict[str, Gram] = {}
    with Reader(plan.inputs) as reader, kernels.session():
        running = Running(agenda, kernels, reader, Silent())
        for (_, job), gram in running.results([(plan, job) for job in jobs], measure):
            found[job.name] = gram
    return np.stack([found[job.name].matrix for job in jobs])


def cells_of(plan: Plan, grouping: Grouping, grams: Doubles) -> Cells:
    """The cells of a model.

    Args:
        plan: says what is measured as one vector: tensors, layers or the model.
        grouping: of the merged tensors, in the order of their names.
        grams: of each of them, float64 (T, K, K).
    """
    jobs = merged_jobs(plan)
    unit = [job.name if job.unit == "tensor" else job.group for job in jobs]
    sums: dict[str, Doubles] = {}
    for name, gram in zip(unit, grams, strict=True):  # in the order of names, as a merge adds them
        sums[name] = sums[name] + gram if name in sums else gram
    keys = list(zip(grouping.group_of, unit, strict=True))
    cells = list(dict.fromkeys(keys))
    number = {cell: index for index, cell in enumerate(cells)}
    return Cells(
        cell_of=np.array([number[key] for key in keys], dtype=np.int64),
        group_of=np.array([group for group, _ in cells], dtype=np.int64),
        grams=np.stack([sums[name] for _, name in cells]),
    )


def told(gram: Doubles, labels: list[str]) -> dict[str, Any]:
    """Lengths of vectors and the angles between them in degrees, for a report.

    Args:
        gram: float64 (K, K), of whole models.
        labels: of the K vectors.
    """
    whole = Gram(gram)
    angles = np.degrees(np.arccos(whole.cosines()))
    np.fill_diagonal(angles, 0.0)
    return {
        "lengths": dict(zip(labels, whole.lengths().tolist(), strict=True)),
        "angles": [[round(float(angle), 4) for angle in row] for row in angles],
    }
