"""Putting a model at a point by merging into it, for methods that are no mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..engine.plan import Job, Plan
from ..engine.run import Silent, run
from ..kernels import Kernels, open_kernels
from ..loading import IntoModel
from .specs import Doubles, Point


class Merger:
    """Merges at one point after the other, as `boom-merge` would, into one model.

    A point costs a pass over the members' files; no more than chunks of them are in memory.
    """

    def __init__(self, plan: Plan, parameters: Mapping[str, nn.Parameter], device: str):
        merged = {job.name for job in plan.jobs if job.parameters is not None}
        self._plan = plan
        self._parameters = {name: parameters[name] for name in merged & parameters.keys()}
        self._kernels: Kernels = open_kernels(device, small=plan.bytes_in < 10**9)

    def stand(self, point: Point) -> None:
        """Put the model at a point; errors as those of a merge."""
        with torch.no_grad():
            run([self._at(point)], self._kernels, [IntoModel(self._parameters)], Silent())

    def _at(self, point: Point) -> Plan:
        """The plan with the parameters of a point."""
        known = self._plan.recipe.method.parameters
        jobs = []
        for job in self._plan.jobs:
            if job.parameters is not None:
                count = len(job.sources)
                given: dict[str, Any] = {
                    name: np.full(count, value) if known[name].per_member else value
                    for name, value in point.others.items()
                }
                if "weight" in known:
                    given["weight"] = point.weights[0]
                job = replace(job, parameters={**job.parameters, **given})
            jobs.append(job)
        return replace(self._plan, jobs=tuple(jobs))


def weights_of(job: Job) -> Doubles:
    """The weights of the members of a tensor, float64 (K,); 1 for methods that have none."""
    assert job.parameters is not None
    return np.asarray(job.parameters.get("weight", np.ones(len(job.sources))), dtype=np.float64)
