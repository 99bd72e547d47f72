"""What the keys of a recipe file are, and which values they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

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


class ModelEntry(BaseModel):
    """One member of the merge."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(
        min_length=1,
        description="a folder, or a Hub id with an optional `@revision`, and perhaps `+` and a "
        "PEFT LoRA adapter, likewise; a relative folder counts from the recipe's own folder, then "
        "from the working directory",
    )
    parameters: dict[str, Any] | None = Field(
        default=None, description="parameters of this member, such as `weight`"
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
    base_model: str | None = Field(
        default=None,
        min_length=1,
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
    seed: int = Field(
        default=0,
        ge=0,
        description="what random methods draw from, with the tensor, the member and the element",
    )
    granularity: Literal["tensor", "layer", "model", "row", "element"] = Field(
        default="tensor",
        description="what counts as one vector when lengths and angles are measured",
    )
    tokenizer_source: Literal["base", "union"] | None = Field(
        default=None,
        description="`base`: accept members whose tokenizers cut text differently, and take the "
        "base's (or first member's). Members must give every token the same number whatever it "
        "says, so that `union` is the vocabulary of each",
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

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, name: str | None) -> str | None:
        from ..dtypes import FLOAT_NAMES

        if name is not None and name not in FLOAT_NAMES:
            raise ValueError(f"must be one of {', '.join(FLOAT_NAMES)}, not {kind_of(name)}")
        return name

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _known_size(cls, size: Any) -> Any:
        parse_size(size)
        return size
