"""What was measured of each tensor, and the numbers that follow for layers, modules and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.names import component_of, layer_of, module_of
from ..methods import Gram
from ..methods.gram import divide
from .sample import Signs

Doubles = NDArray[np.float64]

By = Literal["model", "component", "layer", "module", "tensor"]
GROUPINGS: tuple[By, ...] = ("model", "component", "layer", "module", "tensor")


@dataclass(frozen=True)
class TensorFacts:
    """One tensor in all members; where layers are put together, a member may not have it.

    Attributes:
        name: as users see it, with the component's folder.
        shape: of the tensor.
        members: int64 (k,), which of the K members have it.
        gram: float64 (K, K), inner products of the members' vectors, as a merge measures them.
        base_squared: squared length of the base's tensor; None where the vectors begin at zero.
        signs: what was counted on the sample.
        rank: float64 (K,), effective rank of the vectors as matrices; None: not asked for, or the
            tensor is no matrix.
        coefficients: float64 (K,), what the recipe's method makes of it; None where it has none.
    """

    name: str
    shape: tuple[int, ...]
    members: NDArray[np.int64]
    gram: Doubles
    base_squared: float | None
    signs: Signs
    rank: Doubles | None
    coefficients: Doubles | None

    @property
    def count(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_finite(self) -> bool:
        """Whether all members hold nothing but numbers."""
        return bool(np.isfinite(self.gram).all())


@dataclass(frozen=True)
class Summary:
    """Some tensors together as one vector of each member. Pairs are float64 (K, K).

    Attributes:
        name: of the group.
        elements: of all its tensors.
        lengths: float64 (K,).
        relative: lengths divided by that of the base; None where the vectors begin at zero.
        cosines: of pairs; 0 where a vector is zero.
        moved: float64 (K,), share of the elements that are not zero.
        conflicts: of the elements that are not zero in both vectors, the share with opposite signs.
        split: of the elements that are not zero in several vectors, the share not of one sign.
        overlap: share of the largest elements of a pair that both have in common.
        rank: float64 (K,), mean of the matrices' effective ranks, as shares of the full rank.
        coefficients: float64 (K,), mean of the tensors', weighted by elements; None: none known.
        shares: float64 (K,), of the way from the origin to the merge that each member gives.
    """

    name: str
    elements: int
    lengths: Doubles
    relative: Doubles | None
    cosines: Doubles
    moved: Doubles
    conflicts: Doubles
    split: float
    overlap: Doubles
    rank: Doubles | None
    coefficients: Doubles | None
    shares: Doubles | None


@dataclass(frozen=True)
class Facts:
    """Everything that was measured of some members.

    Attributes:
        labels: what the K members are called.
        base: what the base is called; None where the vectors are the members themselves.
        tensors: in the order of their names.
        sample: most elements of a tensor that signs were counted on.
        recipe: what the recipe is called, and its method; None where models were given.
        notes: what the plan and the cache have to say.
    """

    labels: tuple[str, ...]
    base: str | None
    tensors: tuple[TensorFacts, ...]
    sample: int
    recipe: tuple[str, str] | None
    notes: tuple[str, ...]

    @property
    def short(self) -> list[str]:
        """The labels without the folders that all of them lie in, for pictures."""
        heads = [label.rpartition("/")[0].split("/") for label in self.labels]
        common = 0
        for parts in zip(*heads, strict=False):
            if len(set(parts)) > 1:
                break
            common += 1
        found = ["/".join(label.split("/")[common:]) for label in self.labels]
        return found if len(found) > 1 else list(self.labels)

    @cached_property
    def model(self) -> Summary:
        """All tensors as one vector."""
        return self.by("model")[0]

    def by(self, grouping: By) -> list[Summary]:
        """A summary of every layer, module, component, tensor, or of the whole model.

        Tensors with not-a-number or infinity in a member are left out.
        """
        groups: dict[str, list[TensorFacts]] = {}
        for tensor in self.tensors:
            if tensor.is_finite:
                groups.setdefault(_group(tensor.name, grouping), []).append(tensor)
        if grouping == "layer":
            groups = dict(sorted(groups.items(), key=lambda one: _order(one[0])))
        if not groups:
            groups = {"model": []}
        return [summed(name, some, len(self.labels)) for name, some in groups.items()]


def summed(name: str, tensors: Sequence[TensorFacts], members: int) -> Summary:
    """Tensors as one vector of each of so many members; sampled counts weigh as their tensors."""
    matrix, pairs = np.zeros((members, members)), np.zeros((4, members, members))
    moved, split, several, base = np.zeros(members), 0.0, 0.0, 0.0
    for tensor in tensors:
        matrix += tensor.gram
        signs, weight = tensor.signs, tensor.count / max(tensor.signs.taken, 1)
        counted = (signs.both, signs.opposite, signs.top, signs.least_top)
        at = np.ix_(np.arange(len(pairs)), tensor.members, tensor.members)
        pairs[at] += weight * np.stack(counted)
        moved[tensor.members] += weight * signs.moved
        split, several = split + weight * signs.split, several + weight * signs.several
        base += tensor.base_squared or 0.0
    gram, elements = Gram(matrix), sum(tensor.count for tensor in tensors)
    lengths = gram.lengths()
    has_base = any(tensor.base_squared is not None for tensor in tensors)
    coefficients = _mean_coefficients(tensors, members)
    ranks = [t.rank / min(_sides(t.shape)) for t in tensors if t.rank is not None]
    return Summary(
        name=name,
        elements=elements,
        lengths=lengths,
        relative=divide(lengths, np.full(members, np.sqrt(base))) if has_base else None,
        cosines=gram.cosines(),
        moved=moved / max(elements, 1),
        conflicts=divide(pairs[1], pairs[0]),
        split=split / several if several else 0.0,
        overlap=divide(pairs[2], pairs[3]),
        rank=np.mean(ranks, axis=0) if ranks else None,
        coefficients=coefficients,
        shares=_shares(tensors, members),
    )


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The sides of a tensor as a matrix: its first dimension, and all others."""
    return shape[0], int(np.prod(shape[1:], dtype=np.int64))


def _mean_coefficients(tensors: Sequence[TensorFacts], members: int) -> Doubles | None:
    total, found = 0, np.zeros(members)
    for tensor in tensors:
        if tensor.coefficients is not None:
            found += tensor.coefficients * tensor.count
            total += tensor.count
    return found / total if total else None


def _shares(tensors: Sequence[TensorFacts], members: int) -> Doubles | None:
    """`|c_k| n_k` of all tensors as one vector, as shares of their sum."""
    known, squared = False, np.zeros(members)
    for tensor in tensors:
        if tensor.coefficients is not None:
            squared += np.square(tensor.coefficients) * np.diagonal(tensor.gram)
            known = True
    ways = np.sqrt(squared)
    return divide(ways, np.full(members, ways.sum())) if known else None


def _group(name: str, by: By) -> str:
    if by == "model":
        return "model"
    if by == "tensor":
        return name
    return {"component": component_of, "layer": layer_of, "module": module_of}[by](name)


def _order(layer: str) -> tuple[int, str, int]:
    """Embeddings first, then the layers by number, then the rest."""
    stack, _, index = layer.rpartition(".")
    if index.isdigit():
        return 1, stack, int(index)
    return (0 if layer == "embeddings" else 2), layer, 0


def as_dict(facts: Facts, groupings: Sequence[By] = GROUPINGS) -> dict[str, Any]:
    """Everything as JSON data."""
    return {
        "members": list(facts.labels),
        "base": facts.base,
        "recipe": facts.recipe and dict(zip(("name", "method"), facts.recipe, strict=True)),
        "sample": facts.sample,
        "notes": list(facts.notes),
        **{by: [_plain(summary) for summary in facts.by(by)] for by in groupings},
    }


def _plain(summary: Summary) -> dict[str, Any]:
    values = vars(summary).items()
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values
    }
