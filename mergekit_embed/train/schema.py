"""What the keys of a training plan are, and which values they take."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from ..recipe.values import kind_of
from .schema_training import (
    STRICT,
    EarlyStopEntry,
    LoraEntry,
    Number,
    OrderEntry,
    Positive,
    Text,
    TrainingEntry,
)
from .specs import Kind

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"


def _folder_name(given: str) -> str:
    """A name that may be that of a folder, everywhere.

    Raises:
        ValueError: for any other.
    """
    if not re.fullmatch(NAME, given):
        raise ValueError(
            f"must be made of letters, digits, `_`, `-` and `.`, to name a folder, not "
            f"{kind_of(given)}"
        )
    return given


Name = Annotated[
    str, AfterValidator(_folder_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"})
]


def _named(given: Any) -> Any:
    """A name where a mapping with a name may stand."""
    return {"name": given} if isinstance(given, str) else given


class WrapperEntry(BaseModel):
    """What is put around a loss, and its parameters."""

    model_config = STRICT

    name: Text = Field(description="the name of the wrapper (docs/losses.md)")
    parameters: dict[str, Any] = Field(default_factory=dict, description="its parameters")


class LossEntry(BaseModel):
    """A loss and its parameters."""

    model_config = STRICT

    name: Text = Field(description="the name of the loss (docs/losses.md)")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the loss, such as `temperature`"
    )
    wrap: list[Annotated[WrapperEntry, BeforeValidator(_named)]] = Field(
        default_factory=list,
        description="what is put around it, the innermost first: "
        "`[{name: matryoshka, parameters: {dims: [384, 128]}}]`",
    )


class PromptEntry(BaseModel):
    """What is put in front of texts."""

    model_config = STRICT

    query: str | None = Field(
        default=None,
        description="in front of queries, and of all texts of rows that have no query; by default "
        "the model's own prompt for them, if any",
    )
    document: str | None = Field(
        default=None,
        description="in front of positives and negatives; by default the model's own, if any",
    )


class MineEntry(BaseModel):
    """Hard negatives are mined before training."""

    model_config = STRICT

    top: Positive = Field(default=50, description="look at so many nearest documents of a query")
    keep: Positive = Field(default=7, description="keep the nearest so many that pass")
    below: Annotated[Number, Field(gt=0, le=2)] = Field(
        default=0.95,
        description="a document passes when its similarity is below this times the positive's",
    )
    encoder: Text | None = Field(
        default=None, description="the model that measures; by default the plan's own `model`"
    )


def _one_prompt(entry: Settings) -> Settings:
    if entry.prompt is not None and entry.instruction is not None:
        raise ValueError("`prompt` and `instruction` exclude each other")
    return entry


class Settings(BaseModel):
    """What a data set may say, its task may say for it, and else the plan."""

    model_config = STRICT

    batch_size: Positive | None = Field(
        default=None, description="rows of a global batch, over all devices"
    )
    positives: Positive | None = Field(
        default=None, description="positives of every row, for losses that take several"
    )
    negatives: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="hard negatives of every row, at most"
    )
    prompt: PromptEntry | None = Field(
        default=None, description="`{query: ..., document: ...}`, what is put in front of texts"
    )
    instruction: Text | None = Field(
        default=None,
        description='short for `prompt: {query: "Instruct: <instruction>\\nQuery: ", document: '
        '""}`, as instruction-tuned embedding models have it',
    )
    loss: Annotated[LossEntry, BeforeValidator(_named)] | None = Field(
        default=None,
        description="a loss by its name, or `{name: ..., parameters: {...}}`; by default that of "
        "the kind",
    )
    mine: MineEntry | None = Field(
        default=None, description="mine hard negatives first: `{top: 50, keep: 7, below: 0.95}`"
    )


class TaskEntry(Settings):
    """What all data sets of a task have in common."""

    _prompts = model_validator(mode="after")(_one_prompt)


class DatasetEntry(Settings):
    """One file of rows."""

    path: Text = Field(
        description="a file of JSON Lines or Parquet, or a data set of the Hub (`org/name`, "
        "perhaps `@revision`); a relative path counts from the plan's own folder, then from the "
        "working directory",
    )
    kind: Kind = Field(description="what the rows ask of a model (see below)")
    task: Name | None = Field(
        default=None,
        description="the task that the data set belongs to, for `tasks`, schedules and members; "
        "by default its kind",
    )
    cluster: Name | None = Field(
        default=None, description="the cluster of data sets it belongs to, for `each: cluster`"
    )
    split: Text = Field(default="train", description="of a data set of the Hub")
    subset: Text | None = Field(
        default=None, description="of a data set of the Hub, its configuration"
    )
    columns: dict[str, Text] | None = Field(
        default=None,
        description="names of other columns, such as `{query: question, pos: answer}`",
    )

    _prompts = model_validator(mode="after")(_one_prompt)


class DirichletEntry(BaseModel):
    """Members with random mixtures of the data sets."""

    model_config = STRICT

    count: Positive = Field(description="so many members")
    alpha: Annotated[Number, Field(ge=0.001, le=1e6)] = Field(
        default=1.0, description="1: all mixtures are as likely; more: evener; less: more one-sided"
    )
    percent: Annotated[Number, Field(gt=0, le=100)] = Field(
        default=50.0, description="the size of each, in percent of all rows"
    )


RULES = ("ratio", "complement", "each", "dirichlet")
"""The keys of which a member has one: how its rows are chosen."""


def _percents(given: Any) -> Any:
    """A percentage, or one for each name.

    Raises:
        ValueError: when it is neither.
    """
    named = given if isinstance(given, dict) else {"": given}
    if not named:
        raise ValueError("must name a data set, such as {reviews: 40}")
    for name, percent in named.items():
        number = isinstance(percent, int | float) and not isinstance(percent, bool)
        if not number or not 0 < percent <= 100:
            what = f"of {name} " if name else ""
            message = f"{what}must be a number above 0 and at most 100, not {kind_of(percent)}"
            raise ValueError(message)
    return given


PERCENT_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}

Ratio = Annotated[
    float | dict[str, float],
    BeforeValidator(_percents),
    WithJsonSchema(
        {
            "anyOf": [
                PERCENT_SCHEMA,
                {"type": "object", "additionalProperties": PERCENT_SCHEMA, "minProperties": 1},
            ]
        }
    ),
]
"""A percentage of every data set, or of the named ones."""


class MemberEntry(BaseModel):
    """One member, or several made by one rule."""

    model_config = STRICT

    name: Name | None = Field(
        default=None,
        description="the name of its folder; by default `bag-20` for a ratio of 20, `bag-50-rest` "
        "for the complement of `bag-50`, and with `each` the name of the task, data set or cluster",
    )
    ratio: Ratio | None = Field(
        default=None,
        description="a random part of every data set, in percent; or of the named ones, and "
        "nothing of others: `{old: 40, new: 100}`",
    )
    complement: Text | None = Field(
        default=None, description="all rows that the member of this name does not have"
    )
    each: Literal["dataset", "task", "cluster"] | None = Field(
        default=None, description="a member for every data set, task, or cluster of data sets"
    )
    dirichlet: DirichletEntry | None = Field(
        default=None, description="members with random mixtures of the data sets"
    )
    datasets: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="only of these data sets"
    )
    tasks: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="only of the data sets of these tasks"
    )
    draw: Text | None = Field(
        default=None,
        description="draw by this name and not by the member's: members that draw by one name have "
        "nested parts, and a core that is drawn once stays the same in later plans",
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="another seed than the plan's, for its rows and their order"
    )
    epochs: Positive | None = Field(
        default=None, description="another number of epochs than the plan's"
    )
    weight: Number | None = Field(
        default=None, description="its weight in the merge; by default what `weights` says"
    )
    merge: bool = Field(
        default=True, description="`false`: train it to compare with, and leave it out of the merge"
    )
    group: Text | None = Field(
        default=None, description="its group in the merge, for `delta_guided`"
    )
    checkpoints: (
        Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1)] | None
    ) = Field(
        default=None,
        description="merge the models after so many percent of its steps, such as "
        "`[60, 80, 100]`, and not only the last",
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="the member is the exponential mean of its weights over the steps, with "
        "this decay",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_number(cls, given: Any) -> Any:
        number = isinstance(given, int | float) and not isinstance(given, bool)
        return {"ratio": given} if number else given


def _some(given: Any) -> Any:
    """`true` for all defaults of an entry, `false` for none.

    Raises:
        ValueError: when it is neither, and no mapping.
    """
    if isinstance(given, bool):
        return {} if given else None
    if not isinstance(given, dict):
        raise ValueError(f"must be true, or such as {{r: 32, alpha: 32}}, not {kind_of(given)}")
    return given


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "boolean"})


class PlanFile(BaseModel):
    """A training plan: which members to train, on what, and how they are merged."""

    model_config = STRICT

    model: Text = Field(
        description="what all members start from: a folder, or a Hub id with an optional "
        "`@revision`; a relative path counts from the plan's own folder, then from the working "
        "directory"
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        default=None,
        description="how a bare transformer makes one vector of a text (`last` for decoders); a "
        "sentence-transformers model has its own",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="what all draws depend on, with the data set and the member"
    )
    output: Text | None = Field(
        default=None,
        description="the folder to write, counted from the working directory; "
        "`trained/<plan name>` by default",
    )
    data: Annotated[dict[Name, DatasetEntry], Field(min_length=1)] = Field(
        description="the data sets, by names of your choice"
    )
    tasks: dict[Text, TaskEntry] = Field(
        default_factory=dict, description="what all data sets of a task have in common"
    )
    members: Annotated[list[MemberEntry], Field(min_length=1)] = Field(
        default_factory=lambda: [MemberEntry(ratio=ratio) for ratio in (20, 40, 60, 80, 100)],
        description="the members: a number stands for `{ratio: NUMBER}`; by default BOOM's bags, "
        "`[20, 40, 60, 80, 100]`",
    )
    schedule: Annotated[OrderEntry, BeforeValidator(_named)] = Field(
        default_factory=lambda: OrderEntry(name="batch_shuffled"),
        description="the order of batches, by its name or as `{name: size_power, alpha: 0.5}`; by "
        "default `batch_shuffled`",
    )
    training: TrainingEntry = Field(
        default_factory=TrainingEntry, description="how every member is trained"
    )
    lora: Annotated[LoraEntry | None, BeforeValidator(_some)] = Field(
        default=None,
        description="`true`, or such as `{r: 32, alpha: 32}`: train a low-rank adapter",
        json_schema_extra=_or_boolean,
    )
    early_stop: EarlyStopEntry | None = Field(
        default=None,
        description="stop when a dev task does not become better, and keep the best weights",
    )
    weights: Literal["rows", "equal"] = Field(
        default="rows", description="what members weigh in the merge: their rows, or all alike"
    )
    merge: dict[str, Any] = Field(
        default_factory=lambda: {"merge_method": "multislerp"},
        description="the recipe that merges the members, without them (docs/recipe.md); `models` "
        "are merged beside them. By default `{merge_method: multislerp}`",
    )
    bad_rows: Annotated[Number, Field(ge=0, le=100)] = Field(
        default=1.0,
        description="leave out up to so many percent of a data set's rows that are bad, and tell "
        "of them; more is an error",
    )
