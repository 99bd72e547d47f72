"""A validated `search` block, and what passes between the parts of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..recipe import Recipe
from ..train.specs import TrainingPlan

Doubles = NDArray[np.float64]

StrategyName = Literal[
    "gradient", "few_shot", "greedy_soup", "forward_selection", "cma_es", "optuna"
]
"""How points are proposed."""

GroupsName = Literal["model", "block", "layer", "module", "component"]
"""Which tensors have coefficients in common."""


@dataclass(frozen=True)
class Descent:
    """How coefficients follow their gradient; see `SearchEntry` for each."""

    steps: int
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float
    schedule: Literal["linear", "cosine", "constant"]
    mu: float
    l1: float
    evaluate_every: int
    patience: int


@dataclass(frozen=True)
class SearchSpec:
    """What is searched, and on what.

    Attributes:
        recipe: what is merged; its parameters are where a search starts.
        probe: the data sets, as a training plan has them; None where dev tasks are judged by.
        rows: of the probe set, at most.
        max_length: tokens of a text.
        held_out: the part of its batches that points are judged on and that give no gradient.
        objective: what is judged by: the mean loss of a probe set, the mean of dev tasks (its
            negative, as everything searched for is small), or their Borda count.
        balanced: whether tasks count alike in the loss, and not batches.
        time_limit: seconds; None for none.
        temperature: of `few_shot`.
        dev: folders of dev tasks; `drops_overlap`: rows of the probe set that they have are left
            out, and no error; `falls_back`: a merge that needs no search is written when it is
            better on them.
        bounds: the least and the most of every parameter, for strategies that search within a
            box; `evaluations`: their points.
        axes: names for tasks whose means are traded off against each other.
    """

    recipe: Recipe
    probe: TrainingPlan | None
    strategy: StrategyName
    objective: Literal["loss", "dev", "borda"]
    groups: GroupsName
    blocks: int
    descent: Descent
    rows: int
    max_length: int
    held_out: float
    seed: int
    balanced: bool
    time_limit: float | None
    temperature: float
    dev: tuple[Path, ...]
    drops_overlap: bool
    falls_back: bool
    bounds: Mapping[str, tuple[float, float]]
    evaluations: int
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def boxed(self) -> bool:
        """Whether parameters are searched within bounds, with a merge for every point."""
        return self.strategy in {"cma_es", "optuna"}

    @property
    def sign(self) -> float:
        """1 where small values of tasks are good, -1 where large ones are."""
        return 1.0 if self.objective == "loss" else -1.0

    @property
    def searched(self) -> frozenset[str]:
        """The parameters that are found."""
        if self.boxed:
            return frozenset(self.bounds)
        positioned = self.recipe.method.name == "self_positioning"
        return frozenset({"weight", "lambda"} if positioned else {"weight"})


@dataclass(frozen=True)
class Point:
    """Parameters of a merge, for each group of tensors.

    Attributes:
        weights: float64 (G, K), what the method calls `weight`.
        factor: float64 (G,), what it calls `lambda`; 1 where it has none.
        others: parameters by name that are searched within bounds, the same for all tensors.
    """

    weights: Doubles
    factor: Doubles
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether it can be merged."""
        return bool(np.isfinite(self.weights).all() and np.isfinite(self.factor).all())

    def equals(self, other: Point) -> bool:
        """Whether both merge to the same."""
        same = np.array_equal(self.weights, other.weights)
        return same and np.array_equal(self.factor, other.factor) and self.others == other.others


@dataclass(frozen=True)
class Proposal:
    """A point that a strategy wants to know something of.

    `descend`: the loss of the next batch and its gradient; otherwise the point is judged. `label`
    says what the point is, for the report.
    """

    point: Point
    descend: bool = False
    label: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a point: small values are good.

    Attributes:
        value: the loss of a batch, or what the point is judged by.
        gradient: float64 (C, K), of the loss by the coefficients of every cell.
        tasks: what the value is made of, by task.
    """

    value: float
    gradient: Doubles | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
