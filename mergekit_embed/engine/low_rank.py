"""Linear algebra of low-rank matrices, in float64: products, truncated decompositions, tall ones.

Nothing here forms a matrix that is larger than its factors, a block of it, or a square of its
smaller side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .folding import Doubles

BLOCK_ELEMENTS = 2**21
"""Elements of a tall matrix that are worked on at a time: 17 MB."""

TALL = 4
"""From this ratio of its sides on, a matrix is decomposed block by block."""

LARGE = 2**25
"""From so many elements on as well: the decomposition of a whole matrix takes several copies."""

VANISHING = 2.0**-52
"""A singular value below this share of the largest is rounding."""


@dataclass(frozen=True)
class Factors:
    """`left @ right`, the nearest matrix of its rank to another one.

    Attributes:
        left: (rows, rank).
        right: (rank, columns).
        energy: squared Frobenius norm of the matrix that was approximated.
        kept: share of the energy that the product keeps, 0 to 1.
    """

    left: Doubles
    right: Doubles
    energy: float
    kept: float

    @property
    def rank(self) -> int:
        """The number of singular values that were kept."""
        return int(self.left.shape[1])

    @property
    def transposed(self) -> Factors:
        """The factors of the transposed matrix."""
        return Factors(self.right.T, self.left.T, self.energy, self.kept)


def truncated(matrix: Doubles, rank: int) -> Factors:
    """The singular value decomposition of a matrix, cut off: `U sqrt(S)` and `sqrt(S) V^T`.

    No other matrix of this rank is nearer (Eckart and Young 1936).
    """
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(singular[:rank])
    return Factors(left[:, :rank] * root, root[:, None] * right[:rank], *_shares(singular, rank))


Blocks = Callable[[], Iterable[Doubles]]
"""Goes through a tall matrix: blocks of consecutive rows, top to bottom. It is called twice."""


def truncated_tall(blocks: Blocks, rows: int, rank: int) -> Factors:
    """As `truncated`, for a matrix that is never in memory as a whole.

    The triangle R of its QR decomposition is made block by block (tall-skinny QR, Demmel et al.
    2012, arXiv 0808.2664), which is backward stable as the whole one is; a Gram matrix would lose
    half of the digits. R has the singular values S and right vectors V of the matrix D, and a
    second pass gives the left factor, `U sqrt(S) = D V / sqrt(S)`.

    Args:
        blocks: the matrix, as often as it is asked for.
        rows: of the whole matrix.
        rank: the most singular values to keep.
    """
    triangle = triangle_of(blocks())
    _, singular, right = np.linalg.svd(triangle, full_matrices=False)
    kept = singular[: min(rank, rows)]
    root = np.sqrt(np.where(kept > VANISHING * kept[:1], kept, 0.0))
    project = right[: len(root)].T * np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    left = np.empty((rows, len(root)))
    top = 0
    for block in blocks():
        np.matmul(block, project, out=left[top : top + len(block)])
        top += len(block)
    return Factors(left, root[:, None] * right[: len(root)], *_shares(singular, rank))


def triangle_of(blocks: Iterable[Doubles]) -> Doubles:
    """The triangle R of the QR decomposition of a tall matrix: at most (columns, columns)."""
    triangle: Doubles | None = None
    for block in blocks:
        stacked = block if triangle is None else np.concatenate([triangle, block])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
    assert triangle is not None
    return triangle


def _shares(singular: Doubles, rank: int) -> tuple[float, float]:
    """The energy of these singular values, and the share of the first `rank`."""
    squares = singular * singular
    energy = float(np.sum(squares))
    return energy, float(np.sum(squares[:rank])) / energy if energy else 1.0


def is_tall(rows: int, columns: int) -> bool:
    """True for a matrix, no wider than tall, that is better decomposed block by block."""
    return rows >= columns and (rows >= TALL * columns or rows * columns > LARGE)


def ranges(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of this width: a block each, and never fewer rows than columns."""
    step = max(width, BLOCK_ELEMENTS // max(width, 1), 1)
    for start in range(0, count, step):
        yield start, min(start + step, count)


@dataclass(frozen=True)
class Product:
    """`b @ a` in float64: b (out, rank), a (rank, in)."""

    b: Doubles
    a: Doubles


def inner_products(products: Sequence[Product | None]) -> Doubles:
    """Inner products of low-rank matrices of one shape: (K, K). None stands for zero.

    `<B_i A_i, B_j A_j> = tr(A_i^T B_i^T B_j A_j)`, the sum of the elements of
    `(B_i^T B_j) * (A_i A_j^T)`.
    """
    found = np.zeros((len(products), len(products)))
    for i, one in enumerate(products):
        for j, other in enumerate(products[: i + 1]):
            if one is not None and other is not None:
                found[i, j] = np.sum((one.b.T @ other.b) * (one.a @ other.a.T))
                found[j, i] = found[i, j]
    return found


def truncated_product(product: Product, rank: int) -> Factors:
    """As `truncated` for `b @ a`, through the factors alone.

    With `side = Q R` the orthogonal decomposition of the shorter factor, the product has the
    singular values of the other factor times R^T, which is as tall as that and as wide as the sum
    of the ranks.
    """
    if product.a.shape[1] > product.b.shape[0]:
        swapped = Product(product.a.T, product.b.T)
        return truncated_product(swapped, rank).transposed
    orthogonal, triangle = np.linalg.qr(product.a.T)  # (in, k), (k, sum of ranks)

    def blocks() -> Iterator[Doubles]:
        for top, bottom in ranges(len(product.b), product.b.shape[1]):
            yield product.b[top:bottom] @ triangle.T

    found = truncated_tall(blocks, len(product.b), rank)
    return Factors(found.left, found.right @ orthogonal.T, found.energy, found.kept)
