"""Which loss the rows of a kind are trained with, and what is wrong with one that a plan names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..recipe.shape import unknown
from ..recipe.values import Path
from . import losses
from .losses.registry import Entry, Model, Module, RowKind
from .specs import Kind, Loss, Named

DEFAULTS: dict[Kind, Loss] = {
    "retrieval": Loss("info_nce", {}),
    "pair": Loss("info_nce", {}),
    "classification": Loss("info_nce", {"negatives": "own"}),
    "clustering": Loss("info_nce", {"negatives": "own"}),
    "sts": Loss("cosent", {}),
}
"""BOOM's InfoNCE, with own negatives only where others of the batch may be alike; CoSENT for rows
with scores, which is our choice."""

TAKEN: dict[RowKind, str] = {
    "groups": "an anchor and its positives",
    "scored pairs": "two texts and their score",
    "teacher scores": "a teacher's scores",
    "teacher vectors": "a teacher's embeddings",
}
"""What a loss wants of a row, in words."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a loss, at a path in its entry; `key` is of a key that is not known."""

    path: Path
    message: str
    key: bool = False


def faults_of(loss: Loss, kind: Kind) -> Iterator[Fault]:
    """Everything that is wrong with a loss for rows of this kind, found without torch."""
    known = losses.available()
    if loss.name not in known:
        yield Fault((), f'"{loss.name}": {unknown("loss", loss.name, known)}')
        return
    wanted, given = known[loss.name].rows, "scored pairs" if kind == "sts" else "groups"
    if wanted != given:
        yield Fault((), f"{loss.name} takes {TAKEN[wanted]}, which {kind} rows are not")
    yield from _faults_of_parameters(known[loss.name], loss, ())
    around = losses.wrappers()
    for index, one in enumerate(loss.wrap):
        if one.name in around:
            yield from _faults_of_parameters(around[one.name], one, ("wrap", index))
        else:
            message = f'"{one.name}": {unknown("wrapper", one.name, around)}'
            yield Fault(("wrap", index), message)


def _faults_of_parameters(entry: Entry, named: Named, place: Path) -> Iterator[Fault]:
    for problem in entry.problems(named.parameters):
        path = (*place, "parameters", problem.where)
        yield Fault(path, problem.message, key=problem.where not in entry.settings)


def built(loss: Loss, model: Model, positives: int) -> Module:
    """A loss as a module, with all that is put around it.

    Raises:
        UsageError: when it does not suit the model.
    """
    module = losses.named(loss.name).build(model, positives, **loss.parameters)
    for around in loss.wrap:
        module = losses.wrapper(around.name).build(model, module, **around.parameters)
    return module
