"""What the keys of a recipe file are, and which values they take."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..dtypes import FLOAT_NAMES
from .values import kind_of

Same = Literal["same", "base"]


def parse_size(text: str | float) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or a plain number.

    Raises:
        ValueError: when it is none of these, or under 1 byte.
    """
    units = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    size_text = str(text).strip().lower()
    unit = next((u for u in sorted(units, key=len, reverse=True) if size_text.endswith(u)), "")
    number = size_text.removesuffix(unit).strip() if unit else size_text
    try:
        size = int(float(number) * units.get(unit, 1))
    except (ValueError, OverflowError):
        raise ValueError(f'must be a size such as "5GB" or "500MB", not {kind_of(text)}') from None
    if size < 1:
        raise ValueError(f"must be at least 1 byte, not {kind_of(text)}")
    return size


def known_dtype(name: str | None) -> str:
    """The name of a float type, as it is.

    Raises:
        ValueError: when it is none.
    """
    if name not in FLOAT_NAMES:
        raise ValueError(f"must be one of {', '.join(FLOAT_NAMES)}, not {kind_of(name)}")
    return name


def _model(given: Any) -> Any:
    """A model's name, or a recipe in its place.

    Raises:
        PydanticCustomError: when it is neither, or empty.
    """
    if not isinstance(given, str | dict):
        raise PydanticCustomError("string_type", "must be text")
    if not given:
        raise PydanticCustomError("string_too_short", "must not be empty")
    return given


IN_PLACE = {"type": "object", "title": "Recipe"}
"""Stands for the schema of a whole recipe, to which pydantic cannot refer."""

ModelName = Annotated[
    str | dict[str, Any],
    BeforeValidator(_model),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, IN_PLACE]}),
]
"""What stands for a model; a recipe in its place is validated as one by itself."""


class ModelEntry(BaseModel):
    """One member of the merge."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ModelName = Field(
        description="a folder, a Hub id with an optional `@revision`, or the YAML file of another "
        "recipe, and perhaps `+` and a PEFT LoRA adapter; relative paths count from the recipe's "
        "own folder, then from the working directory. Or a whole recipe in its place",
    )
    parameters: dict[str, Any] | None = Field(
        default=None, description="parameters of this member, such as `weight`"
    )
    group: str | None = Field(
        default=None,
        min_length=1,
        description="name of a group, for `delta_guided`: the members of a group are merged first, "
        "then the groups. A member without one is a group of its own",
    )
    statistics: str | None = Field(
        default=None,
        min_length=1,
        description="for `fisher` and `regmean`: the folder that `boom stats` wrote of this "
        "member; a relative one counts as that of a model",
    )


class SliceSource(ModelEntry):
    """Some layers of one model."""

    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="the first layer, counted from 0, and the one after the last"
    )

    @field_validator("layer_range")
    @classmethod
    def _ascending(cls, layers: list[int]) -> list[int]:
        if not 0 <= layers[0] < layers[1]:
            raise ValueError(
                f"must be the first layer and the one after the last, such as [0, 12], not {layers}"
            )
        return layers


class SliceEntry(BaseModel):
    """Consecutive layers of the result, merged from as many layers of each source."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    sources: Annotated[list[SliceSource], Field(min_length=1)] = Field(
        description="the layers that are merged with each other"
    )


class EditEntry(BaseModel):
    """One edit of the merged weights; an entry has exactly one of the keys."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        json_schema_extra={"minProperties": 1, "maxProperties": 1},
    )

    temp_scale: Annotated[float, Field(json_schema_extra={"exclusiveMinimum": 0})] | None = Field(
        default=None,
        description="divide the attention's logits by this temperature, folded into the weights "
        "that make the queries; below 1 sharpens, above 1 flattens",
    )
    cast: str | None = Field(default=None, description="stored type of the result, as `out_dtype`")
    extend_positions: Annotated[int, Field(ge=2, le=2**24)] | None = Field(
        default=None,
        description="stretch the table of learned positions, linearly interpolated, so that texts "
        "may have this many tokens",
    )

    @field_validator("temp_scale", mode="before")
    @classmethod
    def _temperature(cls, given: Any) -> float:
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if not number or not 0.0 < given <= sys.float_info.max:
            raise ValueError(f"must be a number above 0, such as 0.9, not {kind_of(given)}")
        return float(given)

    @field_validator("extend_positions", mode="before")
    @classmethod
    def _positions(cls, given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, int):
            raise ValueError(f"must be a whole number, such as 1024, not {kind_of(given)}")
        return given

    @field_validator("cast")
    @classmethod
    def _cast(cls, name: str | None) -> str:
        return known_dtype(name)

    @model_validator(mode="after")
    def _exactly_one(self) -> EditEntry:
        if len(self.model_fields_set) != 1:
            raise ValueError("must be one edit, such as {temp_scale: 0.9}; give others entries")
        return self


class AdapterEntry(BaseModel):
    """How the adapters of one base become one adapter."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    rank: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="most singular values that are kept of the sum for every matrix; by default "
        "all factors are kept, side by side, and the sum is exact",
    )

    @field_validator("rank", mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, int):
            raise ValueError(f"must be a whole number, such as 16, not {kind_of(given)}")
        return given


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "boolean"})


class TokenizerEntry(BaseModel):
    """The vocabulary of the result."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    source: str | None = Field(
        default=None, min_length=1, description="as the top-level `tokenizer_source`"
    )
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="as the top-level `pad_to_multiple_of`"
    )


REPOSITORY = re.compile(r"[\w.{}-]{1,96}/[\w.{}-]{1,96}", re.ASCII)
"""OWNER/NAME; braces, since `{name}` may stand for the recipe's name."""


class PublishEntry(BaseModel):
    """Where the result is to be on the Hub."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    repository: str = Field(
        description="`OWNER/NAME`; `{name}` in it stands for the recipe's name, and its point's "
        "in a sweep"
    )
    private: bool = Field(default=False, description="make the repository private, if it is made")
    revision: str | None = Field(
        default=None, min_length=1, description="the branch, made if need be; by default `main`"
    )
    create_pr: bool = Field(
        default=False, description="propose the files as a pull request, and change nothing"
    )

    @field_validator("repository")
    @classmethod
    def _named(cls, name: str) -> str:
        if not REPOSITORY.fullmatch(name):
            raise ValueError(f"must be OWNER/NAME, not {kind_of(name)}")
        return name


class RecipeFile(BaseModel):
    """A recipe: which models to merge, and how."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    merge_method: str = Field(description="the name of the method (docs/methods.md)")
    models: Annotated[list[ModelEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="the members, whole; the base may be listed too, as mergekit's recipes do",
    )
    slices: Annotated[list[SliceEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="instead of `models`: the layers of the result, piece by piece. What is before "
        "the layers is merged from the models of the first slice, what is after from the last's",
    )
    base_model: ModelName | None = Field(
        default=None,
        description="the common initial checkpoint of the members; tokenizer, configuration and "
        "all other files come from it, or else from the first member",
    )
    parameters: dict[str, Any] | None = Field(
        default=None, description="parameters of the method, or of all members alike"
    )
    output: str | None = Field(
        default=None,
        min_length=1,
        description="the folder to write, counted from the working directory; "
        "`merged/<recipe name>` by default",
    )
    dtype: str | None = Field(
        default=None,
        description="stored type of the result where `out_dtype` says nothing (float32, float16, "
        "bfloat16, float64); arithmetic is in float64 whatever it says",
    )
    out_dtype: str | None = Field(
        default=None,
        description="stored type of the result; by default that of the base or the first member",
    )
    sweep: dict[str, list[Any]] | None = Field(
        default=None,
        description="values to try, for parameters by their name or for anything by its path "
        "(`models[0].parameters.weight`): a model for every combination, all in one run that reads "
        "every input once, each in a folder of its own in the output",
    )
    search: dict[str, Any] | None = Field(
        default=None,
        description="find the method's parameters on a probe set, then merge with what was found "
        "(docs/search.md)",
    )
    publish: PublishEntry | None = Field(
        default=None,
        description="where on the Hub the result goes when `boom-merge --publish` is run; without "
        "that option nothing is sent (docs/publishing-hub.md)",
    )
    post: Annotated[list[EditEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="edits of the merged weights, in order, before they are rounded and stored",
    )
    adapter_output: AdapterEntry | None = Field(
        default=None,
        description="`true`, or a rank such as `{rank: 16}`: write a LoRA adapter, not a model. "
        "The members are adapters of one base, `BASE+ADAPTER`",
        json_schema_extra=_or_boolean,
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="what random methods draw from, with the tensor, the member and the element",
    )
    granularity: Literal["tensor", "layer", "model", "row", "element"] | None = Field(
        default=None,
        description="what counts as one vector when lengths and angles are measured; by default "
        "`tensor`, unless the method's section names another",
    )
    tokenizer_source: str | None = Field(
        default=None,
        min_length=1,
        description="which tokens the result has, where tokenizers differ: those of the `base` (or "
        "first member), the `union` of all, or those of one of the recipe's models, by its name. "
        "Rows of embeddings are then merged by token (docs/tokenizers.md). Without it, a member "
        "with another tokenizer is an error",
    )
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None,
        description="zero rows are put behind the tables of token embeddings, up to a multiple of "
        "this number",
    )
    tokenizer: TokenizerEntry | None = Field(
        default=None,
        description="the same in mergekit's other form: `source` for `tokenizer_source`, and "
        "`pad_to_multiple_of`. Its `tokens` (a row of its own choice for each token) are not known",
    )
    pooling: Same = Field(
        default="same", description="`base`: accept members that pool differently"
    )
    normalisation: Same = Field(
        default="same", description="`base`: accept members that normalise differently"
    )
    prompts: Same = Field(default="same", description="`base`: accept members with other prompts")
    other_modules: Same = Field(
        default="same",
        description="`base`: accept members whose other modules (Dense, ...) are configured "
        "differently",
    )
    config: Same = Field(
        default="same", description="`base`: accept members whose config.json differs"
    )
    extra_tensors: Literal["error", "drop"] = Field(
        default="error",
        description="`drop`: leave out tensors that only some members have",
    )
    missing_tensors: Literal["error", "copy"] = Field(
        default="error",
        description="`copy`: take a tensor that some member lacks, unmerged, from the model that "
        "the other files come from",
    )
    allow_non_finite: bool = Field(
        default=False, description="let not-a-number and infinity through instead of stopping"
    )
    max_shard_size: str | int | float = Field(
        default="5GB", description="largest weight file; larger models are sharded"
    )

    @field_validator("adapter_output", mode="before")
    @classmethod
    def _known_output(cls, given: Any) -> Any:
        if isinstance(given, bool):
            return {} if given else None
        if not isinstance(given, dict):
            raise ValueError(f"must be true, or a rank such as {{rank: 16}}, not {kind_of(given)}")
        return given

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, name: str | None) -> str | None:
        return None if name is None else known_dtype(name)

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _known_size(cls, size: Any) -> Any:
        parse_size(size)
        return size
