"""Of which merge a journal is: all that the bytes of the result depend on.

The jobs hold what follows from the recipe, the headers, the tokenizers and the configurations, so
that nothing of these has to be compared itself; the inputs' sizes and times stand for the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..checkpoint import FoldedTensor, RemappedTensor, StoredTensor, Tensor
from ..methods import Method
from ..recipe import Recipe
from .hashing import digest_of
from .journal import Fingerprint
from .nested import MergedTensor
from .plan import Job, Plan

NUMERICS = 1
"""Raised whenever the same plan begins to give other bytes than before."""


def fingerprint(plan: Plan) -> Fingerprint:
    """What a run has to have in common with another one to continue it."""
    described = Described()
    jobs = [described.job(job) for job in plan.jobs]
    files = [[file.path, digest_of(file.header), file.size] for file in plan.files]
    return {
        "numerics": NUMERICS,
        "recipe": recipe_digest(plan.recipe),
        "jobs": digest_of(as_text([jobs, plan.recipe.seed]).encode()),
        "files": files,
        "inputs": {
            str(path.absolute()): [stamp.size, stamp.mtime_ns]
            for path, stamp in sorted(plan.inputs.items())
        },
    }


def difference(old: Fingerprint, new: Fingerprint) -> str | None:
    """What of a merge is not as it was, in words; None where all is."""
    if old == json.loads(json.dumps(new)):
        return None
    if old.get("numerics") != new["numerics"]:
        return "another version of mergekit_embed began it"
    if old.get("recipe") != new["recipe"]:
        return "the recipe is another"
    theirs = old.get("inputs", {})
    changed = [path for path, known in new["inputs"].items() if theirs.get(path) != known]
    return f"{changed[0]} has changed" if changed else "the models or the recipe have changed"


def recipe_digest(recipe: Recipe) -> str:
    """A hash of what a recipe says of the result; not of its name, its comments or its output."""
    return digest_of(as_text(_said(recipe)).encode())


def as_text(value: Any) -> str:
    """JSON data as text, the same for the same data."""
    return json.dumps(value, sort_keys=True, default=str)


def _said(value: Any) -> Any:
    """A part of a recipe as JSON data."""
    if isinstance(value, Recipe):
        left_out = {"name", "source", "output", "point", "publish"}
        told = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left_out}
        return _said(told)
    if isinstance(value, Method):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _said(one) for key, one in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_said(one) for one in value]
    return repr(value)


class Described:
    """Jobs and tensors as JSON data; tensors that many jobs have are described once."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Tensor, str]] = {}

    def job(self, job: Job) -> list[Any]:
        """All that the bytes of a job depend on, but for what the tensors hold."""
        measured = job.measured
        parameters = (
            None
            if job.parameters is None
            else sorted(
                (name, np.asarray(value).tolist()) for name, value in job.parameters.items()
            )
        )
        return [
            [job.name, job.tensor, job.members, str(job.dtype), job.shape, job.file, job.offset],
            [self.tensor(source) for source in job.sources],
            None if job.origin is None else self.tensor(job.origin),
            [job.unit, job.group, parameters, repr(job.divide), repr(job.stretch)],
            measured and [self.tensor(tensor) for tensor in measured.tensors],
            measured and [measured.norms, measured.elementwise, measured.transposed],
        ]

    def tensor(self, tensor: Tensor) -> str:
        """A hash of what a tensor is made of and where that lies."""
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = (tensor, digest_of(as_text(self._made_of(tensor)).encode()))
        return self._tensors[id(tensor)][1]

    def _made_of(self, tensor: Tensor) -> list[Any]:
        if isinstance(tensor, StoredTensor):
            place = [str(tensor.file.absolute()), tensor.offset, tensor.strides]
            return [tensor.name, str(tensor.dtype), tensor.shape, *place]
        if isinstance(tensor, FoldedTensor):
            update = tensor.update
            added = update and [
                self.tensor(update.left),
                self.tensor(update.right),
                update.scale,
                update.transposed,
            ]
            return [self.tensor(tensor.start), added]
        if isinstance(tensor, RemappedTensor):
            rows = [
                tensor.rows,
                *([tensor.fallback.rows, tensor.fallback.places] if tensor.fallback else []),
            ]
            numbers = [digest_of(np.ascontiguousarray(array).tobytes()) for array in rows]
            return [[self.tensor(part) for part in tensor.parts], numbers]
        if isinstance(tensor, MergedTensor):
            return [self.job(tensor.job), recipe_digest(tensor.plan.recipe)]
        raise TypeError(f"{type(tensor).__name__} has no fingerprint")
