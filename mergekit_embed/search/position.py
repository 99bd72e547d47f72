"""A model that stands at a point of the span of its members, and moves there in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.plan import Job
from .elements import Elements
from .specs import Doubles


class Position:
    """The weights of one model, and the members that stream past them.

    Of every member no more than a chunk is in memory, unless `elements` keeps them.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        jobs: Sequence[Job],
        elements: Elements,
    ):
        """Take hold of a model.

        Args:
            parameters: of the model, float32 or float64, by the names of jobs; what is not there
                (a head that the loaded model leaves out) is passed over.
            jobs: of the tensors that are merged, T of them, of K members.
            elements: where the members' tensors come from.
        """
        self._parameters, self._jobs, self._elements = parameters, tuple(jobs), elements

    @torch.no_grad()
    def put(self, coefficients: Doubles) -> None:
        """Set every tensor to `o + sum_k c_k (x_k - o)`, computed in float64 and rounded once.

        Args:
            coefficients: float64 (T, K).
        """
        for job, own in zip(self._jobs, coefficients, strict=True):
            parameter = self._parameters.get(job.name)
            if parameter is None:
                continue
            flat = parameter.data.view(-1)
            for piece in self._elements.pieces(job):
                flat[piece.start : piece.stop].copy_(_mixed(piece.members, piece.origin, own))

    @torch.no_grad()
    def pulls(self) -> Doubles:
        """The gradient of the loss by the coefficients, `<dL/dtheta, x_k - o>`: float64 (T, K).

        What the loss does not depend on has gradient zero.
        """
        return self.against({name: one.grad for name, one in self._parameters.items()})

    @torch.no_grad()
    def against(self, vectors: Mapping[str, Tensor | None]) -> Doubles:
        """Inner products of some vectors with the members: float64 (T, K)."""
        found = np.zeros((len(self._jobs), len(self._jobs[0].sources)))
        for index, job in enumerate(self._jobs):
            vector = vectors.get(job.name)
            if vector is not None:
                found[index] = self._inner(job, vector.reshape(-1)).cpu().numpy()
        return found

    def _inner(self, job: Job, vector: Tensor) -> Tensor:
        """Float64 (K,). Differences of inner products: products of float32 are exact here."""
        total = torch.zeros(len(job.sources), dtype=torch.float64, device=vector.device)
        for piece in self._elements.pieces(job):
            own = vector[piece.start : piece.stop].double()
            products = torch.stack([torch.dot(own, x.double()) for x in piece.members])
            if piece.origin is not None:
                products -= torch.dot(own, piece.origin.double())
            total += products
        return total

    @torch.no_grad()
    def flat(self) -> Mapping[str, Tensor]:
        """The model's tensors as they are, not copied, by the names of jobs."""
        return {name: one.data for name, one in self._parameters.items()}


def _mixed(members: Sequence[Tensor], origin: Tensor | None, coefficients: Doubles) -> Tensor:
    """Float64: the definition as it is written, in the order of the members."""
    if origin is None:
        mixed = members[0].double() * float(coefficients[0])
        for x, c in zip(members[1:], coefficients[1:], strict=True):
            mixed.add_(x.double(), alpha=float(c))
        return mixed
    start = origin.double()
    mixed = start.clone()
    for x, c in zip(members, coefficients, strict=True):
        mixed.add_(x.double() - start, alpha=float(c))
    return mixed
