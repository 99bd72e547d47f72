"""A validated training plan: what is wanted, with nothing left to check but data and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from ..recipe.source import Source

Kind = Literal["retrieval", "pair", "classification", "clustering", "sts"]
"""What the rows of a data set ask of a model."""

OWN_NEGATIVES = frozenset({"classification", "clustering"})
"""Kinds whose rows are compared with their own negatives only: others in the batch may be alike."""


@dataclass(frozen=True)
class Named:
    """Something that is registered by a name, with the parameters that the plan sets."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Loss(Named):
    """A loss, and what is put around it, the innermost first."""

    wrap: tuple[Named, ...] = ()


@dataclass(frozen=True)
class Mining:
    """How hard negatives are found.

    Of the `top` documents that are nearest to a query, those whose similarity is below `below`
    times that of its positive, and of these the `keep` nearest. `encoder` is the model that
    measures; None for the one that is trained.
    """

    top: int
    keep: int
    below: float
    encoder: str | None


@dataclass(frozen=True)
class DatasetSpec:
    """A file of rows and how it is trained on.

    `query` and `document` are put in front of texts; None for the model's own prompt. `columns`
    maps the names that rows should have to those that they do have.
    """

    name: str
    kind: Kind
    task: str
    cluster: str | None
    path: str
    split: str
    subset: str | None
    columns: Mapping[str, str]
    query: str | None
    document: str | None
    batch_size: int
    positives: int
    negatives: int
    loss: Loss
    mine: Mining | None


@dataclass(frozen=True)
class Sampled:
    """A random part of every data set: percent by its name.

    Members that draw by the same name take nested parts.
    """

    ratios: Mapping[str, Fraction]
    draw: str


@dataclass(frozen=True)
class Complement:
    """Of these data sets the rows that the member `of` does not have."""

    of: str
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class Mixed:
    """A mixture of data sets with shares drawn from a symmetric Dirichlet distribution.

    It has `percent` of all rows of these data sets, or as many as there are.
    """

    datasets: tuple[str, ...]
    alpha: float
    percent: Fraction
    draw: str


@dataclass(frozen=True)
class MemberSpec:
    """What one member is trained on, and what is kept of its run.

    `checkpoints` are percent of its steps; models from there are merged too. `ema` is the decay of
    an exponential mean of its weights, which then is the member. One that is not `merged` is there
    to compare with. `weight` is that in the merge; None leaves it to the plan.
    """

    name: str
    rule: Sampled | Complement | Mixed
    seed: int
    epochs: int
    merged: bool
    weight: float | None
    group: str | None
    checkpoints: tuple[int, ...]
    ema: float | None

    @property
    def models(self) -> tuple[str, ...]:
        """What is kept of it: its checkpoints, else the end of its run."""
        if not self.checkpoints:
            return (self.name,)
        return tuple(f"{self.name}-at-{percent}" for percent in self.checkpoints)


@dataclass(frozen=True)
class Order:
    """In which order batches come: a name of `schedules`, and what it needs.

    `stages` are names of data sets for `two_stage`, `alpha` the exponent of `size_power`.
    """

    name: str
    alpha: float
    stages: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter is trained; `fold` writes members as whole models."""

    r: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]
    fold: bool


@dataclass(frozen=True)
class EarlyStop:
    """Stop when a dev task has not become better for `patience` evaluations, `every` steps one."""

    task: str
    every: int
    patience: int


@dataclass(frozen=True)
class Training:
    """How every member is trained. `steps`, when given, counts instead of epochs."""

    epochs: int
    steps: int | None
    learning_rate: float
    learning_rate_schedule: str
    warmup: float
    weight_decay: float
    max_gradient_norm: float
    max_length: int
    precision: str
    gradient_checkpointing: bool
    save_every: int | None


@dataclass(frozen=True)
class TrainingPlan:
    """What members to train, on what, and how they are merged.

    `weights` says what members weigh that say nothing themselves: their rows, or all alike.
    `merge` is the recipe without the trained members; `also` are models that it lists before them.
    `bad_rows` is the percent of a data set's rows that may be bad.
    """

    name: str
    source: Source = field(repr=False, compare=False)
    model: str
    pooling: str | None
    seed: int
    output: str | None
    datasets: Mapping[str, DatasetSpec]
    members: tuple[MemberSpec, ...]
    order: Order
    training: Training
    lora: Lora | None
    early_stop: EarlyStop | None
    weights: Literal["rows", "equal"]
    merge: Mapping[str, Any]
    bad_rows: Fraction

    @property
    def target(self) -> Path:
        """The folder to write where nobody says otherwise."""
        return Path(self.output or Path("trained") / self.name).expanduser()

    def member(self, name: str) -> MemberSpec:
        """The member of this name.

        Raises:
            KeyError: when there is none.
        """
        return {member.name: member for member in self.members}[name]
