"""What the numbers say to somebody who is about to merge."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from .facts import Facts, Summary

EQUAL = 1e-12
"""Vectors whose difference has a smaller share of their squared lengths are the same."""

ALIKE = 0.99
"""Cosine of task vectors from which they point the same way."""

OPPOSED = -0.1
"""Cosine below which task vectors pull against each other."""

UNRELATED_MEMBERS = 0.5
"""Cosine of members (not of task vectors) below which they have no training in common."""

LONG = 5.0
"""Times the median of the others' lengths from which a task vector is long; short: its inverse."""

UNRELATED_BASE = 0.5
"""Length of a task vector as a share of the base's length from which it is no fine-tune's."""


def remarks(facts: Facts) -> list[str]:
    """What to look at before merging, the gravest first."""
    model = facts.model
    return [
        *_non_finite(facts),
        *_unrelated(facts, model),
        *_same(facts, model),
        *_lengths(facts, model),
        *_directions(facts, model),
    ]


def _non_finite(facts: Facts) -> list[str]:
    broken = [tensor for tensor in facts.tensors if not tensor.is_finite]
    told = []
    for number, label in enumerate(facts.labels):
        names = [tensor.name for tensor in broken if not np.isfinite(tensor.gram[number, number])]
        if names:
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            told.append(
                f"{label} (or the base) holds not-a-number or infinity in {', '.join(names[:3])}"
                f"{more}, which are left out here; a merge refuses them"
            )
    return told


def _unrelated(facts: Facts, model: Summary) -> list[str]:
    if model.relative is not None:
        return [
            f"{label} is no fine-tune of {facts.base}: its task vector is {share:.2f} times as "
            "long as the base itself"
            for label, share in zip(facts.labels, model.relative, strict=True)
            if share >= UNRELATED_BASE
        ]
    return [
        f"{facts.labels[i]} and {facts.labels[j]} are unrelated (cosine {model.cosines[i, j]:.2f}):"
        " their mean is no model"
        for i, j in combinations(range(len(facts.labels)), 2)
        if model.cosines[i, j] < UNRELATED_MEMBERS and model.lengths[[i, j]].all()
    ]


def _same(facts: Facts, model: Summary) -> list[str]:
    told = [
        f"{label} is the base itself: its task vector is zero"
        for label, length in zip(facts.labels, model.lengths, strict=True)
        if length == 0 and facts.base is not None
    ]
    for i, j in combinations(range(len(facts.labels)), 2):
        if _are_same(model, i, j):
            told.append(f"{facts.labels[i]} and {facts.labels[j]} are the same")
    return told


def _are_same(model: Summary, i: int, j: int) -> bool:
    one, other = model.lengths[i], model.lengths[j]
    squared = one**2 + other**2 - 2 * model.cosines[i, j] * one * other
    return bool(one > 0 and squared <= EQUAL * (one**2 + other**2))


def _lengths(facts: Facts, model: Summary) -> list[str]:
    told = []
    for number, label in enumerate(facts.labels):
        others = np.delete(model.lengths, number)
        others = others[others > 0]
        if not len(others) or not model.lengths[number]:
            continue
        times = float(model.lengths[number] / np.median(others))
        what = "task vector is" if facts.base is not None else "weights are"
        if times >= LONG:
            told.append(f"{label}'s {what} {times:.0f}x longer than the others'")
        elif times <= 1 / LONG and len(others) > 1:
            told.append(f"{label}'s {what} {1 / times:.0f}x shorter than the others'")
    return told


def _directions(facts: Facts, model: Summary) -> list[str]:
    if facts.base is None:
        return []
    told = []
    for i, j in combinations(range(len(facts.labels)), 2):
        pair, cosine = f"{facts.labels[i]} and {facts.labels[j]}", model.cosines[i, j]
        if cosine >= ALIKE and not _are_same(model, i, j):
            told.append(f"{pair} point the same way (cosine {cosine:.3f}); one adds little")
        if cosine <= OPPOSED:
            told.append(f"{pair} pull against each other (cosine {cosine:.2f})")
    return told
