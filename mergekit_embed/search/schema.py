"""What the keys of a recipe's `search` block are, and which values they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ..train.schema import DatasetEntry, Name, TaskEntry
from ..train.schema_training import STRICT, Number, Positive, Text

OF_THE_PROBE = ("data", "tasks", "bad_rows", "seed")
"""Keys that a training plan has as well, with the same meaning."""


class SearchEntry(BaseModel):
    """How the parameters of a recipe are found."""

    model_config = STRICT

    data: dict[Name, DatasetEntry] = Field(
        default_factory=dict,
        description="the data sets that the probe set is drawn from, as those of a training plan "
        "(docs/training.md); required unless dev tasks are judged by",
    )
    tasks: dict[Text, TaskEntry] = Field(
        default_factory=dict, description="what all data sets of a task have in common"
    )
    bad_rows: Annotated[Number, Field(ge=0, le=100)] = Field(
        default=1.0, description="percent of a data set's rows that may be bad"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of the rows that are drawn, and of the order of batches"
    )
    probe: Positive = Field(
        default=32_000, description="rows of the probe set at most, drawn evenly over tasks"
    )
    batch_size: Positive = Field(default=32, description="rows of a batch, where no task says")
    positives: Positive = Field(default=1, description="positives of every row")
    negatives: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=7, description="hard negatives of every row, at most"
    )
    max_length: Positive = Field(
        default=512, description="tokens of a text, at most the model's own limit"
    )
    held_out: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="the part of every task's batches that points are judged on and that give no "
        "gradient; at least one batch of every data set. 0: judge on all",
    )
    strategy: Literal[
        "gradient", "few_shot", "greedy_soup", "forward_selection", "cma_es", "optuna"
    ] = Field(default="gradient", description="how points are found (see below)")
    objective: Literal["loss", "dev", "borda"] = Field(
        default="loss",
        description="what points are judged by: the loss on the probe set, the mean of the `dev` "
        "tasks, or their Borda count against the members",
    )
    balance: Literal["tasks", "batches"] = Field(
        default="tasks",
        description="of `loss`: `tasks` counts every task the same, its loss as a multiple of what "
        "it was at the first point; `batches` takes the mean over batches, losses as they are",
    )
    dev: list[Text] = Field(
        default_factory=list,
        description="folders of dev tasks, to compare what was found with other merges, or to "
        "judge by; the probe set must share no text with them",
    )
    fallback: bool = Field(
        default=True,
        description="of `dev`: when a merge that needs no search is better on those tasks than "
        "what was found, `found.yaml` is that merge",
    )
    overlap: Literal["error", "drop"] = Field(
        default="error",
        description="what becomes of rows of the probe set that a task of `dev` has: an error, or "
        "they are left out and counted",
    )
    groups: Literal["model", "block", "layer", "module", "component"] = Field(
        default="model",
        description="which tensors share coefficients: all; those of a block of layers; of a "
        "layer; of a module in all layers; of a component of the model's folder",
    )
    blocks: Positive = Field(default=4, description="how many blocks, for `groups: block`")
    steps: Positive = Field(default=1000, description="of `gradient`: batches, one a step")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="of `gradient`")
    learning_rate: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="at the first step; by default 0.05 for SGD, 0.005 for Adam"
    )
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(default=0.9, description="of SGD")
    learning_rate_schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the rate falls to 0 over the steps"
    )
    mu: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="of `self_positioning`: `mu * lambda` is added to the loss"
    )
    l1: Annotated[Number, Field(ge=0)] = Field(
        default=0.0,
        description="of free coefficients: `l1 * sum |c|` is added to the loss, so that members "
        "that help little are left out",
    )
    evaluate_every: Positive = Field(
        default=50, description="of `gradient`: steps from one judgement to the next"
    )
    patience: Positive = Field(
        default=5, description="of `gradient`: stop after so many judgements without a better one"
    )
    time_limit: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="seconds; the best point so far is kept"
    )
    temperature: Annotated[Number, Field(gt=0)] = Field(
        default=1.0, description="of `few_shot`: weights are softmax(-loss / temperature)"
    )
    parameters: dict[Text, Annotated[list[Number], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict,
        description="of `cma_es` and `optuna`: the least and the most of every parameter that is "
        "searched, such as `{density: [0.1, 0.9], lambda: [0.5, 1.5]}`; `weight` is one for each "
        "member",
    )
    evaluations: Positive = Field(
        default=60, description="of `cma_es` and `optuna`: points that are judged"
    )
    axes: dict[Text, Annotated[list[Text], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="of `optuna`: what is traded off, such as `{retrieval: [questions], "
        "similarity: [sts-a, sts-b]}`: names for tasks whose mean is one axis; the tasks are "
        "those of `dev`, or of the probe set where the loss is judged by",
    )

    def rate(self) -> float:
        """The learning rate at the first step."""
        default = {"sgd": 0.05, "adam": 0.005}
        return default[self.optimizer] if self.learning_rate is None else self.learning_rate


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a `search` block."""
    return SearchEntry.model_json_schema()
