"""The nearest documents of queries: exact, in blocks, and the same whatever the blocks are.

Cosines are summed in float64 and rounded to float32, so that neither the size of a block nor the
library that multiplies shows in them; of equal ones the document with the lower number comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
"""Unit vectors, (N, dimension); perhaps a file that is mapped into memory."""

QUERIES, DOCUMENTS = 1024, 8192
"""A block: 64 MB of cosines, and as much again for what they are sorted by."""


@dataclass(frozen=True)
class Pairs:
    """Queries and documents that belong together, sorted by the query: int64 (P,) each."""

    queries: NDArray[np.int64]
    documents: NDArray[np.int64]

    @classmethod
    def of(cls, queries: NDArray[np.int64], documents: NDArray[np.int64]) -> Pairs:
        """Pairs in any order; those that are there twice count once."""
        every = np.unique(np.stack([queries, documents], axis=1), axis=0)
        return cls(every[:, 0], every[:, 1])

    def between(self, first: int, last: int) -> Pairs:
        """The pairs of the queries from `first` to `last`, which is left out."""
        start, stop = np.searchsorted(self.queries, [first, last])
        return Pairs(self.queries[start:stop], self.documents[start:stop])


@dataclass(frozen=True)
class Nearest:
    """The nearest documents of some queries.

    Attributes:
        first: the number of the first of these queries.
        documents: int64 (queries, top), the nearest first; -1 where there is none.
        cosines: float32 (queries, top); minus infinity where there is none.
    """

    first: int
    documents: NDArray[np.int64]
    cosines: NDArray[np.float32]


def nearest(
    queries: Vectors, documents: Vectors, without: Pairs, top: int, device: str = "cpu"
) -> Iterator[Nearest]:
    """The `top` nearest documents of every query, without those that are paired with it.

    Args:
        queries: unit vectors (Q, dimension).
        documents: unit vectors (D, dimension).
        without: the documents that do not count for a query.
        top: how many, at most.
        device: where cosines are computed, a torch device that knows float64.

    Yields:
        what was found for one block of queries after the other.
    """
    import torch

    for first in range(0, len(queries), QUERIES):
        block = _on(device, queries[first : first + QUERIES])
        pairs = without.between(first, first + len(block))
        best = torch.empty((len(block), 0), dtype=torch.int64, device=device)
        for start in range(0, len(documents), DOCUMENTS):
            cosines = (block @ _on(device, documents[start : start + DOCUMENTS]).T).float()
            here = (pairs.documents >= start) & (pairs.documents < start + cosines.shape[1])
            rows = torch.from_numpy(pairs.queries[here] - first).to(device)
            columns = torch.from_numpy(pairs.documents[here] - start).to(device)
            cosines[rows, columns] = -torch.inf
            both = torch.cat([best, _ranks(cosines, start)], dim=1)
            best = both.topk(min(top, both.shape[1]), dim=1).values
        yield _found(first, best.cpu().numpy(), top)


def cosines_of(queries: Vectors, documents: Vectors, pairs: Pairs) -> NDArray[np.float32]:
    """The cosine of each pair, float32 (P,), by the arithmetic of `nearest`."""
    found = np.empty(len(pairs.queries), dtype=np.float32)
    for start in range(0, len(found), DOCUMENTS):
        here = slice(start, start + DOCUMENTS)
        left = queries[pairs.queries[here]].astype(np.float64)
        right = documents[pairs.documents[here]].astype(np.float64)
        found[here] = np.einsum("ij,ij->i", left, right)
    return found


def _on(device: str, vectors: Vectors) -> torch.Tensor:
    import torch

    return torch.from_numpy(vectors.astype(np.float64)).to(device)


LOW = 2**32 - 1


def _ranks(cosines: torch.Tensor, start: int) -> torch.Tensor:
    """Whole numbers of 64 bits, all different, in the order of cosines and then of documents.

    The upper half is the float's own bits, which are in its order once those of negative numbers
    are turned round; the lower half counts documents from the end.
    """
    import torch

    bits = (cosines + 0.0).view(torch.int32)  # -0.0 becomes 0.0, which is no other cosine
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    numbers = torch.arange(start, start + cosines.shape[1], device=cosines.device)
    return (ordered << 32) | (LOW - numbers)


def _found(first: int, ranks: NDArray[np.int64], top: int) -> Nearest:
    """What the ranks (queries, up to `top`) say, filled up to `top`."""
    documents = np.full((len(ranks), top), -1, dtype=np.int64)
    cosines = np.full((len(ranks), top), -np.inf, dtype=np.float32)
    width = ranks.shape[1]
    ordered = (ranks >> 32).astype(np.int32)
    cosines[:, :width] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
    documents[:, :width] = LOW - (ranks & LOW)
    documents[np.isneginf(cosines)] = -1
    return Nearest(first, documents, cosines)
