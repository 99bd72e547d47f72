"""Which jobs share what they read."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint import Tensor
from .plan import Job, Plan

Share = list[tuple[Plan, Job]]
"""Jobs, of one plan or of several, that are run over one read of their tensors."""


def shares(jobs: Sequence[tuple[Plan, Job]]) -> list[Share]:
    """Jobs together that have a tensor in common, directly or through others.

    A tensor that is made of others, such as one of a nested recipe, has these in common too.
    """
    first_with: dict[Tensor, int] = {}
    leaders = list(range(len(jobs)))

    def leader(index: int) -> int:
        while leaders[index] != index:
            leaders[index] = leaders[leaders[index]]
            index = leaders[index]
        return index

    def meet(index: int, tensor: Tensor) -> None:
        leaders[leader(index)] = leader(first_with.setdefault(tensor, index))
        for part in tensor.parts:
            meet(index, part)

    for index, (_, job) in enumerate(jobs):
        for tensor in job.tensors:
            meet(index, tensor)
    found: dict[int, Share] = {}
    for index, one in enumerate(jobs):
        found.setdefault(leader(index), []).append(one)
    return list(found.values())
