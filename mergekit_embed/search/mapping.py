"""From what a search changes to coefficients: small differentiable functions, in float64.

A mixture is `o + sum_k c_k (x_k - o)`, so that all a method has to say is `c`; as a function of its
parameters and the Gram matrix it takes no tensor of the model. The gradient of a loss by `c` is
`<dL/dtheta, x_k - o>`, and that by the parameters follows here by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..methods.gram import CANCELLED
from ..methods.slerp import VANISHING_SINE
from .geometry import Cells
from .specs import Point

Raw = list[Tensor]
"""What an optimiser changes: float64 tensors without bounds."""


class Mapping(Protocol):
    """How a method's parameters are reached from numbers without bounds."""

    def start(self, point: Point) -> Raw:
        """The numbers that give a point."""

    def point(self, raw: Raw) -> Point:
        """The parameters that the numbers stand for."""

    def coefficients(self, raw: Raw) -> Tensor:
        """Float64 (C, K), differentiable."""

    def penalty(self, raw: Raw) -> Tensor:
        """What is added to the loss: a scalar."""

    def shrink(self, raw: Raw, rate: float) -> None:
        """Change the numbers in place after a step at this rate, as L1 asks."""


@dataclass
class SelfPositioned:
    """The arcs of `methods.self_positioning`; scalars by softplus, and lambda as it is.

    Source: arXiv 2410.15035. The penalty is `mu * lambda`, in the mean over groups.
    """

    cells: Cells
    mu: float

    def start(self, point: Point) -> Raw:
        """See `Mapping`. The inverse of softplus is `a + log(1 - exp(-a))`."""
        scalars = torch.from_numpy(point.weights.copy())
        return [scalars + torch.log(-torch.expm1(-scalars)), torch.from_numpy(point.factor.copy())]

    def point(self, raw: Raw) -> Point:
        """See `Mapping`."""
        return Point(softplus(raw[0]).detach().numpy().copy(), raw[1].detach().numpy().copy())

    def coefficients(self, raw: Raw) -> Tensor:
        """See `Mapping`."""
        groups = torch.from_numpy(self.cells.group_of)
        joined = along_arcs(torch.from_numpy(self.cells.grams), softplus(raw[0])[groups])
        return raw[1][groups][:, None] * joined

    def penalty(self, raw: Raw) -> Tensor:
        """See `Mapping`."""
        return self.mu * raw[1].mean()

    def shrink(self, raw: Raw, rate: float) -> None:
        """See `Mapping`: only ratios of the scalars count, so there is nothing to shrink."""


def along_arcs(grams: Tensor, weight: Tensor) -> Tensor:
    """As `methods.self_positioning` with `lambda` 1: float64 (C, K) of (C, K, K) and (C, K)."""
    count = grams.shape[-1]
    members = torch.eye(count, dtype=torch.float64)
    lengths = torch.diagonal(grams, dim1=-2, dim2=-1).sqrt()
    point = members[0].expand(len(grams), count)
    for index in range(1, count):
        t = weight[:, index] / (weight[:, :index].mean(dim=1) + weight[:, index])
        inner = torch.einsum("ck,ck->c", point, grams[..., index])
        squared = torch.einsum("ci,cij,cj->c", point, grams, point)
        reach = (point.abs() * lengths).sum(dim=-1)
        scale = squared.clamp_min(0.0) * lengths[:, index] ** 2
        there = (squared > CANCELLED * reach**2) & (scale > 0)
        cosine = torch.where(there, inner / torch.where(there, scale, 1.0).sqrt(), 0.0)
        point = _joined(point, members[index], t, cosine.clamp(-1.0, 1.0))
    return point


def _joined(point: Tensor, member: Tensor, t: Tensor, cosine: Tensor) -> Tensor:
    """The point at `t` of the arc from one vector to another; of the chord without a sine.

    Where the chord is taken, the arc is computed from a right angle: what is not chosen must have a
    finite gradient too.
    """
    chord = torch.sin(torch.arccos(cosine.detach())) < VANISHING_SINE
    angle = torch.arccos(torch.where(chord, 0.0, cosine))
    sine = torch.sin(angle)
    first = torch.where(chord, 1.0 - t, torch.sin((1.0 - t) * angle) / sine)
    second = torch.where(chord, t, torch.sin(t * angle) / sine)
    return first[:, None] * point + second[:, None] * member


@dataclass
class Free:
    """Each coefficient by itself: `c = lambda w`, with lambda as it is given."""

    cells: Cells
    factor: Tensor
    l1: float

    def start(self, point: Point) -> Raw:
        """See `Mapping`."""
        return [torch.from_numpy(point.weights.copy())]

    def point(self, raw: Raw) -> Point:
        """See `Mapping`."""
        return Point(raw[0].detach().numpy().copy(), self.factor.numpy())

    def coefficients(self, raw: Raw) -> Tensor:
        """See `Mapping`."""
        groups = torch.from_numpy(self.cells.group_of)
        return (self.factor[:, None] * raw[0])[groups]

    def penalty(self, raw: Raw) -> Tensor:
        """See `Mapping`. L1 has no part in it: `shrink` takes its step exactly."""
        return torch.zeros((), dtype=torch.float64)

    def shrink(self, raw: Raw, rate: float) -> None:
        """See `Mapping`. The proximal step of L1, which makes coefficients exactly 0."""
        if self.l1:
            with torch.no_grad():
                raw[0].copy_(torch.nn.functional.softshrink(raw[0], rate * self.l1))


@dataclass
class Simplex:
    """Weights that are positive and sum to 1 in every group, by softmax; times lambda."""

    cells: Cells
    factor: Tensor

    def start(self, point: Point) -> Raw:
        """See `Mapping`."""
        return [torch.log(torch.from_numpy(point.weights.copy()))]

    def point(self, raw: Raw) -> Point:
        """See `Mapping`."""
        return Point(torch.softmax(raw[0], dim=-1).detach().numpy().copy(), self.factor.numpy())

    def coefficients(self, raw: Raw) -> Tensor:
        """See `Mapping`."""
        groups = torch.from_numpy(self.cells.group_of)
        return (self.factor[:, None] * torch.softmax(raw[0], dim=-1))[groups]

    def penalty(self, raw: Raw) -> Tensor:
        """See `Mapping`."""
        return torch.zeros((), dtype=torch.float64)

    def shrink(self, raw: Raw, rate: float) -> None:
        """See `Mapping`: weights that sum to 1 have one L1 norm."""


def gradients(mapping: Mapping, raw: Sequence[Tensor], by_coefficients: Tensor) -> list[Tensor]:
    """The gradient of loss plus penalty by the numbers.

    Args:
        mapping: the parameterisation.
        raw: the numbers, which need not require gradients.
        by_coefficients: float64 (C, K), the gradient of the loss by the coefficients.
    """
    leaves = [one.detach().requires_grad_(True) for one in raw]
    pull = (mapping.coefficients(leaves) * by_coefficients).sum()
    total = pull + mapping.penalty(leaves)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    zeros = [torch.zeros_like(one) for one in leaves]
    return [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]
