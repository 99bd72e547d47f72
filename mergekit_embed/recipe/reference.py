"""The reference of recipes, made from the schema and the methods: for editors, and for people.

    python -m mergekit_embed.recipe.reference docs/recipe.md

writes the page; `boom schema` prints the JSON Schema.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..methods import Method, Parameter, available
from ..methods.registry import REQUIRED, spelled
from .schema import (
    IN_PLACE,
    AdapterEntry,
    EditEntry,
    ModelEntry,
    PublishEntry,
    RecipeFile,
    SliceSource,
)
from .tables import keys, table

BASE_WORDS = {
    "origin": "needed; deltas start from it",
    "optional origin": "optional; when given, the method works on deltas",
    "first member": "optional; the first of the two models",
    "files": "optional; gives only tokenizer, configuration and other files",
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with the parameters of each method."""
    schema = RecipeFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    methods = available()
    schema["properties"]["merge_method"]["enum"] = sorted(methods)
    schema["oneOf"] = [{"required": ["models"]}, {"required": ["slices"]}]
    schema["allOf"] = [
        {
            "if": {"properties": {"merge_method": {"const": name}}},
            "then": _method_schema(methods[name]),
        }
        for name in sorted(methods)
    ]
    _refer_to_root(schema)
    return schema


def _refer_to_root(node: Any) -> None:
    """Let what stands for a whole recipe refer to the schema itself."""
    for item in node.values() if isinstance(node, dict) else node:
        if item == IN_PLACE:
            assert isinstance(item, dict)
            item.clear()
            item["$ref"] = "#"
        elif isinstance(item, dict | list):
            _refer_to_root(item)


def _method_schema(method: Method) -> dict[str, Any]:
    every = {name: _value_schema(p) for name, p in method.parameters.items()}
    own = {name: every[name] for name, p in method.parameters.items() if p.per_member}
    hints = {"int8_mask": {"description": "of mergekit; without effect here"}}

    def parameters(properties: Mapping[str, Any]) -> dict[str, Any]:
        return {"properties": {**properties, **hints}, "additionalProperties": False}

    common = parameters(every)
    needed = [name for name, p in method.parameters.items() if p.default is REQUIRED]
    if needed:
        common["required"] = needed
    of_member: dict[str, Any] = {"parameters": parameters(own)}
    if not method.grouped:
        of_member["group"] = False
    items: dict[str, Any] = {"properties": of_member}
    if method.statistics is None:
        of_member["statistics"] = {"type": "null"}
    else:
        of_member["statistics"] = {"type": "string"}
        items["required"] = ["statistics"]
    members = {"items": items}
    slices = {"items": {"properties": {"sources": members}}}
    then: dict[str, Any] = {
        "properties": {
            "parameters": common,
            "models": members,
            "slices": slices,
            "granularity": {"enum": [*method.units, None]},
        }
    }
    required = (["base_model"] if method.base == "origin" else []) + (
        ["parameters"] if needed else []
    )
    return {**then, "required": required} if required else then


def _value_schema(parameter: Parameter) -> dict[str, Any]:
    scalar = _scalar_schema(parameter)
    one: list[dict[str, Any]] = [scalar]
    if parameter.type in {int, float} and parameter.choices is None:
        one.append({"type": "array", "items": scalar, "minItems": 1})
    choice = {
        "type": "object",
        "properties": {"filter": {"type": "string", "minLength": 1}, "value": {"anyOf": one}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {
        "description": parameter.help,
        "anyOf": [*one, {"type": "array", "items": choice, "minItems": 1}],
    }


def _scalar_schema(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices is not None:
        return {"enum": list(parameter.choices)}
    if parameter.type is bool:
        return {"enum": [True, False, 0, 1]}
    scalar: dict[str, Any] = {"type": "integer" if parameter.type is int else "number"}
    if parameter.minimum is not None:
        scalar["minimum"] = parameter.minimum
    if parameter.maximum is not None:
        scalar["maximum"] = parameter.maximum
    if parameter.above is not None:
        scalar["exclusiveMinimum"] = parameter.above
    return scalar


INTRODUCTION = """\
# Recipes

A recipe is a YAML file that says which models to merge and how. `boom-merge recipe.yaml` runs it;
`boom-merge recipe.yaml --dry-run` shows what it would do. mergekit's recipes for the methods below
run unchanged, unless they use keys that are not on this page (`chat_template`, `modules`, `name`,
`tokens` in `tokenizer`).

This page is made from the schema by `python -m mergekit_embed.recipe.reference docs/recipe.md`.
Editors that know JSON Schema complete and check recipes with `boom schema > recipe.schema.json` and
the first line `# yaml-language-server: $schema=recipe.schema.json`.

```yaml
merge_method: multislerp
base_model: ./minilm                   # the common start of the members
models:
  - model: ./minilm-legal              # a folder, or a Hub id such as org/name@revision
    parameters: {weight: 2.0}
  - model: ./minilm-medical            # weight 1.0
out_dtype: bfloat16
output: out/minilm-merged
```
"""

ADAPTERS = """\
```yaml
merge_method: ties                     # LoRA adapters, each folded into its model as it is read
base_model: ./qwen3
models:
  - model: ./qwen3+./adapters/legal
  - model: ./qwen3+org/medical-lora@v2
parameters: {density: 0.5}
```

`MODEL+ADAPTER` may stand wherever a recipe names a model. The adapter is a PEFT folder
(adapter_config.json and adapter_model.safetensors, or adapter_model.bin); its weights are folded in
chunk by chunk, `W + s B A` in float64, and not rounded before they are merged. `r`, `lora_alpha`,
`rank_pattern`, `alpha_pattern`, `use_rslora`, `fan_in_fan_out`, `modules_to_save`, `bias` and LoRA
on embeddings are followed; what is no such sum (DoRA, IA3, ...) and what does not fit the model is
refused. All other files come from the model. A folder with a `+` in its name is that folder.
"""

ADAPTER_OUTPUT = """\
`adapter_output: true` makes one adapter of several, and no model is written:

```yaml
merge_method: task_arithmetic          # the sum of what the adapters have learned
base_model: ./qwen3
models:
  - model: ./qwen3+./adapters/legal
    parameters: {weight: 0.7}
  - model: ./qwen3+./adapters/medical
    parameters: {weight: 0.5}
adapter_output: {rank: 16}             # true: all factors side by side, exact
```

What it computes, and which methods it knows: [methods.md](methods.md#adapters-into-one-adapter).
`adapter_output` is `true`, or a map with
"""

SLICES = """\
```yaml
merge_method: slerp                    # as mergekit's own example: all layers, two models
base_model: ./bert-legal
slices:
  - sources:
      - model: ./bert-legal
        layer_range: [0, 12]
      - model: ./bert-medical
        layer_range: [0, 12]
parameters:
  t: [0.2, 0.8]
```

```yaml
merge_method: passthrough              # every other layer of one encoder
slices:
  - sources: [{model: ./bert-legal, layer_range: [0, 1]}]
  - sources: [{model: ./bert-legal, layer_range: [2, 3]}]
  - sources: [{model: ./bert-legal, layer_range: [4, 5]}]
```

Within a slice, gradients run from its first layer to its last. config.json tells of the layers that
the result has.
"""

GROUPS = """\
```yaml
merge_method: delta_guided             # each group first, then the groups
base_model: ./minilm
models:
  - model: ./minilm-search
    group: retrieval
  - model: ./minilm-questions
    group: retrieval
  - model: ./minilm-paraphrases        # by itself
```

A group counts with the sum of its members' weights.
"""

STATISTICS = """\
```yaml
merge_method: regmean                  # weighs by what `boom stats` measured of each member
models:
  - model: ./minilm-legal
    statistics: stats/legal
  - model: ./minilm-medical
    statistics: stats/medical
```

```sh
boom stats ./minilm-legal --data legal.jsonl -o stats/legal
```
"""

EDITS = """\
```yaml
merge_method: linear
models:
  - model: ./minilm-legal
  - model: ./minilm-medical
post:
  - temp_scale: 0.9                    # long texts spread attention thin: sharpen it
  - extend_positions: 1024             # read longer texts; config.json is told
  - cast: bfloat16
```

An edit sees the merged numbers before they are rounded, in the same pass. What each changes, and in
which architectures: [methods.md](methods.md#edits-after-the-merge).
"""

TOKENIZERS = """\
```yaml
merge_method: linear
models:
  - model: ./minilm-legal              # has added tokens of its own
  - model: ./minilm-medical
tokenizer_source: union                # or base, or ./minilm-legal
pad_to_multiple_of: 64
```

Which row of which model stands for which token: [tokenizers.md](tokenizers.md).
"""

PUBLISH = """\
```yaml
merge_method: linear
models:
  - model: ./minilm-legal
  - model: ./minilm-medical
publish:
  repository: me/minilm-{name}         # `boom-merge recipe.yaml --publish` merges and pushes
  private: true
```

`publish` has these keys, and what they do is told in [publishing-hub.md](publishing-hub.md):
"""

VALUES = """\
## Values that differ from tensor to tensor

Every parameter takes one of

- a number (or true, false, a word): the same for every tensor;
- a list of numbers, a gradient: spread evenly from the first layer to the last, linear in between.
  What is outside the layers, before or after, counts as the first, as in mergekit;
- a list of `{filter: PATTERN, value: V}`, tried in order, the last one usually without a filter.
  A pattern is a piece of the tensor's name; or a glob when it holds `*`; or a regular expression
  between slashes. `V` may be a gradient.

```yaml
parameters:
  t:
    - filter: attention                # a piece of the name
      value: [0, 0.5, 1]               # rises with depth
    - filter: /LayerNorm\\.(weight|bias)$/
      value: 0.5
    - filter: 2_Dense/*
      value: 1
    - value: 0.3                       # everything else
```

A member's own value wins over that under the top-level `parameters`. Names are those of the base
(or the first member), with the module's folder in front where there is one:
`2_Dense/linear.weight`.
"""


def markdown() -> str:
    """docs/recipe.md."""
    parts = [
        INTRODUCTION,
        "## Keys\n",
        *table(("key", "value", "meaning"), keys(RecipeFile)),
        TOKENIZERS,
        "Each entry of `models`:\n",
        *table(("key", "value", "meaning"), keys(ModelEntry)),
        ADAPTERS,
        ADAPTER_OUTPUT,
        *table(("key", "value", "meaning"), keys(AdapterEntry)),
        "Each entry of `slices` has a list of `sources`, and each of these:\n",
        *table(("key", "value", "meaning"), keys(SliceSource)),
        SLICES,
        GROUPS,
        STATISTICS,
        "## Edits after the merge\n",
        "Each entry of `post` has one of these keys, and none is there twice:\n",
        *table(("key", "value", "meaning"), keys(EditEntry)),
        EDITS,
        "## On the Hub\n",
        PUBLISH,
        *table(("key", "value", "meaning"), keys(PublishEntry)),
        VALUES,
        "## Methods and their parameters\n",
        "What each computes, with sources: [methods.md](methods.md). Parameters marked * may be "
        "set for each member.\n",
    ]
    for name, method in sorted(available().items()):
        parts += _method(name, method)
    return "\n".join(parts).rstrip() + "\n"


def _method(name: str, method: Method) -> list[str]:
    count = "any number of models" if method.exactly is None else f"{method.exactly} model"
    count += "s" if method.exactly and method.exactly > 1 else ""
    usual = "" if method.granularity == "tensor" else f"; {method.granularity} by default"
    wants = f" Every member needs `statistics` ({method.statistics})." if method.statistics else ""
    lines = [
        f"### `{name}`\n",
        f"{method.summary} Merges {count}. `base_model`: {BASE_WORDS[method.base]}. "
        f"`granularity`: {', '.join(method.units)}{usual}.{wants}\n",
    ]
    rows = [
        (
            f"`{p.name}`{'*' if p.per_member else ''}",
            "required" if p.default is REQUIRED else spelled(p.default).strip('"'),
            _range(p),
            p.help,
        )
        for p in method.parameters.values()
    ]
    return [*lines, *table(("parameter", "default", "range", "meaning"), rows)]


def _range(parameter: Parameter) -> str:
    if parameter.choices is not None:
        return ", ".join(spelled(choice).strip('"') for choice in parameter.choices)
    if parameter.type is bool:
        return "true, false"
    low, high = parameter.minimum, parameter.maximum
    if parameter.above is not None:
        return f"above {parameter.above:g}" + ("" if high is None else f", {high:g} at most")
    if low is None and high is None:
        return "any"
    if high is None:
        return f"{low:g} or more"
    return f"{low:g} to {high:g}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
