"""What a training plan may say of how members are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..recipe.values import kind_of

STRICT = ConfigDict(extra="forbid", protected_namespaces=(), strict=True)
"""YAML knows numbers from texts and from true and false, so nothing is guessed."""

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class OrderEntry(BaseModel):
    """The order of batches."""

    model_config = STRICT

    name: Literal[
        "batch_shuffled",
        "dataset_sequential",
        "task_sequential",
        "two_stage",
        "row_shuffled",
        "size_power",
    ] = Field(description="the name of the order (see below)")
    alpha: Annotated[Number, Field(ge=0, le=10)] = Field(
        default=0.5, description="of `size_power`: a data set of n rows is drawn with p ~ n^alpha"
    )
    first: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None,
        description="of `two_stage`: the data sets or tasks of the first stage; by default those "
        "of kind `retrieval` and `pair`",
    )


class TrainingEntry(BaseModel):
    """How every member is trained."""

    model_config = STRICT

    epochs: Positive = Field(default=1, description="times through the member's rows")
    steps: Positive | None = Field(
        default=None,
        description="instead of epochs: so many batches, in as many epochs as it takes",
    )
    batch_size: Positive = Field(
        default=256, description="rows of a global batch, over all devices, where no task says"
    )
    positives: Positive = Field(default=1, description="positives of every row")
    negatives: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=7, description="hard negatives of every row, at most"
    )
    learning_rate: Annotated[Number, Field(gt=0)] = Field(default=5e-5, description="at its top")
    learning_rate_schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the rate falls after the warm-up"
    )
    warmup: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.1, description="the part of all steps in which the rate rises to its top"
    )
    weight_decay: Annotated[Number, Field(ge=0)] = Field(default=0.0, description="of AdamW")
    max_gradient_norm: Annotated[Number, Field(ge=0)] = Field(
        default=1.0, description="gradients are shortened to this length; 0: never"
    )
    max_length: Positive = Field(
        default=512, description="tokens of a text, at most the model's own limit"
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="of the arithmetic; weights are kept in float32"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice and keep fewer of them"
    )
    save_every: Positive | None = Field(
        default=None,
        description="steps between checkpoints that a killed run continues from; by default there "
        "is one every 5 minutes",
    )


def _targets(given: Any) -> Any:
    """Names of layers, or all of them.

    Raises:
        ValueError: when it is neither.
    """
    named = isinstance(given, list) and given and all(isinstance(n, str) and n for n in given)
    if given != "all-linear" and not named:
        wanted = "must be all-linear or a list of names of layers, such as [q_proj, v_proj]"
        raise ValueError(f"{wanted}, not {kind_of(given)}")
    return given


class LoraEntry(BaseModel):
    """A low-rank adapter is trained, and not the whole model."""

    model_config = STRICT

    r: Positive = Field(default=32, description="the rank")
    alpha: Annotated[Number, Field(gt=0)] = Field(
        default=32.0, description="the adapter is scaled by alpha / r"
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.0, description="of what goes into the adapter"
    )
    targets: Annotated[
        Annotated[list[Text], Field(min_length=1)] | Literal["all-linear"],
        BeforeValidator(_targets),
    ] = Field(default="all-linear", description="the names of the layers, or all linear ones")
    fold: bool = Field(
        default=True, description="write members as whole models; `false`: keep them as adapters"
    )


class EarlyStopEntry(BaseModel):
    """Training ends when a dev task does not become better, with the best weights so far."""

    model_config = STRICT

    task: Text = Field(
        description="a folder with `queries.jsonl`, `corpus.jsonl` and `qrels.jsonl`, or "
        "`labelled.jsonl`, or `pairs.jsonl`; relative as the paths of data"
    )
    every: Positive = Field(default=100, description="steps between evaluations")
    patience: Positive = Field(default=3, description="evaluations without a better result")
