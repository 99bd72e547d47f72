"""What a merge reads from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checkpoint import FoldedTensor, StoredTensor, Tensor
from .nested import MergedTensor


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What is read from files for tensors: themselves, and in place of merged ones their own."""
    found: dict[Tensor, None] = {}

    def walk(some: Iterable[Tensor]) -> None:
        for tensor in some:
            if isinstance(tensor, MergedTensor):
                walk(tensor.job.tensors)
            else:
                found[tensor] = None

    walk(tensors)
    return list(found)


def stored_within(tensor: Tensor) -> Iterator[StoredTensor]:
    """Every stored tensor that this one is made of, or itself."""
    if isinstance(tensor, StoredTensor):
        yield tensor
    if isinstance(tensor, FoldedTensor) and tensor.update is not None:
        yield from (tensor.update.left, tensor.update.right)
    for part in tensor.parts:
        yield from stored_within(part)


def files_of(tensors: Iterable[Tensor]) -> set[Path]:
    """Every file that is read for tensors."""
    return {stored.file for tensor in tensors for stored in stored_within(tensor)}
