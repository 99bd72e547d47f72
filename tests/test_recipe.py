"""Recipes: what is accepted, what each value means, and what is said of those that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import Family
from helpers import boom_merge, listed, write_recipe

from mergekit_embed import PlanError, Recipe, RecipeError
from mergekit_embed.dtypes import DType
from mergekit_embed.engine.planner import Planner
from mergekit_embed.engine.reader import Reader
from mergekit_embed.recipe import load
from mergekit_embed.recipe.reference import json_schema
from mergekit_embed.recipe.schema import parse_size


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load_text(text: str) -> Recipe:
    return load(write_recipe(Path("recipe.yaml"), text))


def problems_of(recipe: str | Path | Mapping[str, Any]) -> list[str]:
    """The lines of the error; a text is written to recipe.yaml first."""
    with pytest.raises(RecipeError) as caught:
        load_text(recipe) if isinstance(recipe, str) else load(recipe)
    return str(caught.value).splitlines()


# --- files that are no recipes ------------------------------------------------------------


def test_every_error_of_a_file_is_reported_in_one_go_in_the_order_of_the_file() -> None:
    found = problems_of("""
        merge_method: linear
        model_s: 3
        models:
          - model: ../m1
            parameters:
              weight: yes please
          - model: ../m2
            parameters:
              weigth: 0.5
          - modle: ../m3
          - model: ""
          - ../m5
          - model: [a]
        parameters:
          normalise: true
          normalize: maybe
        dtype: float8
        out_dtype: 3
        max_shard_size: 5 apples
        granularity: tensors
        pooling: bose
        allow_non_finite: 7
        extra_tensors: keep
        base_model: 5
        output: ""
    """)
    assert found == [
        'recipe.yaml:2:1: model_s: unknown key, did you mean "models"?',
        'recipe.yaml:6:15: models[0].parameters.weight: must be a number, not "yes please"',
        'recipe.yaml:9:7: models[1].parameters.weigth: unknown key, did you mean "weight"?',
        "recipe.yaml:10:5: models[2].model: is required and not there",
        'recipe.yaml:10:5: models[2].modle: unknown key, did you mean "model"?',
        "recipe.yaml:11:12: models[3].model: must not be empty",
        'recipe.yaml:12:5: models[4]: must be a mapping such as `{model: ./folder}`, not "../m5"',
        "recipe.yaml:13:12: models[5].model: must be text, not a list",
        'recipe.yaml:15:3: parameters.normalise: unknown key, did you mean "normalize"?',
        'recipe.yaml:16:14: parameters.normalize: must be true or false, not "maybe"',
        'recipe.yaml:17:8: dtype: must be one of float64, float32, float16, bfloat16, not "float8"',
        "recipe.yaml:18:12: out_dtype: must be text, not 3",
        'recipe.yaml:19:17: max_shard_size: must be a size such as "5GB" or "500MB", '
        'not "5 apples"',
        'recipe.yaml:20:14: granularity: must be "tensor", "layer", "model", "row" or "element", '
        'not "tensors"',
        'recipe.yaml:21:10: pooling: must be "same" or "base", not "bose"',
        "recipe.yaml:22:19: allow_non_finite: must be true or false, not 7",
        'recipe.yaml:23:16: extra_tensors: must be "error" or "drop", not "keep"',
        "recipe.yaml:24:13: base_model: must be text, not 5",
        "recipe.yaml:25:9: output: must not be empty",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [\n", "2:1: is not valid YAML: expected the node content, but found"),
        ("models:\n  - model: *b\n", "2:12: is not valid YAML: found undefined alias 'b'"),
        ("models:\n\t- model: a\n", "2:1: is not valid YAML: found character '\\t' that cannot"),
        ("seed: 1\nseed: 2\n", '2:1: is not valid YAML: found duplicate key "seed"'),
        ("models:\n  - model: a\n    model: b\n", "3:5: is not valid YAML: found duplicate key"),
        ("a: 1\n---\nb: 2\n", "2:1: is not valid YAML: but found another document"),
        ("a: 1\nb: c\0\n", "2:5: holds the character U+0000, which YAML forbids"),
    ],
    ids=["syntax", "alias", "tab", "key", "nested key", "documents", "character"],
)
def test_a_syntax_error_has_its_line_and_column(text: str, message: str) -> None:
    Path("broken.yaml").write_text(text)
    (problem,) = problems_of(Path("broken.yaml"))
    assert problem.startswith(f"broken.yaml:{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a recipe is a mapping with `merge_method:` and `models:`"),
        (b"# nothing but a comment\n", "is empty; a recipe is a mapping with"),
        (b"- model: a\n- model: b\n", "holds a list; a recipe is a mapping with"),
        (b"linear\n", 'holds "linear"; a recipe is a mapping with'),
        ("merge_method: café\n".encode("latin-1"), "is not a text file in UTF-8"),
    ],
    ids=["empty", "comment", "list", "word", "latin-1"],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, message: str) -> None:
    Path("file.yaml").write_bytes(content)
    (problem,) = problems_of(Path("file.yaml"))
    assert problem.startswith(f"file.yaml: {message}")


def test_a_folder_is_no_recipe() -> None:
    Path("folder.yaml").mkdir()
    expected = ["folder.yaml: is a folder; a recipe is a YAML file"]
    assert problems_of(Path("folder.yaml")) == expected


def test_a_missing_recipe_names_those_beside_it() -> None:
    Path("first.yaml").touch()
    Path("second.yml").touch()
    expected = ["third.yaml: there is no such recipe; beside it: first.yaml, second.yml"]
    assert problems_of(Path("third.yaml")) == expected


def test_the_order_of_problems_does_not_depend_on_the_name_of_the_file() -> None:
    lines = ["merge_method: linear", *[f"x{i}: {i}" for i in range(11)], "models: [{model: a}]"]
    for name in ("a.yamlish/recipe", "recipe.json", "c:d.yaml"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        places = [line.split(": ")[0] for line in problems_of(path)]
        assert places == [f"{name}:{line}:1" for line in range(2, 13)]


def test_a_byte_order_mark_and_windows_line_ends_are_harmless() -> None:
    text = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {wait: 1}\n"
    Path("recipe.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (problem,) = problems_of(Path("recipe.yaml"))
    assert problem.startswith("recipe.yaml:4:18: models[0].parameters.wait: unknown key")


def test_tags_make_no_objects() -> None:
    Path("recipe.yaml").write_text(
        "merge_method: !!python/object/apply:os.mkdir [made]\nmodels: [{model: a}]\n"
    )
    assert problems_of(Path("recipe.yaml")) == [
        "recipe.yaml:1:15: merge_method: must be text, not a list"
    ]
    assert not Path("made").exists()


# --- keys ---------------------------------------------------------------------------------


def test_what_is_required_is_asked_for() -> None:
    assert problems_of("dtype: float32\n") == [
        "recipe.yaml:1:1: merge_method: is required and not there",
        "recipe.yaml:1:1: models: is required and not there",
    ]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("[]", "2:9: models: must list at least one model"),
        ("", "3:1: models: must be a list, not nothing"),
        ("{model: a}", "2:9: models: must be a list, not a mapping"),
    ],
)
def test_models_are_a_list_of_at_least_one(models: str, message: str) -> None:
    assert problems_of(f"merge_method: linear\nmodels: {models}\n") == [f"recipe.yaml:{message}"]


def test_keys_are_text() -> None:
    assert problems_of("""
        merge_method: linear
        1: x
        models:
          - model: a
            parameters: {2: 3}
    """) == [
        "recipe.yaml:2:1: the key 1 must be text; put it in quotes",
        "recipe.yaml:5:18: models[0].parameters: the key 2 must be text; put it in quotes",
    ]


def test_a_parameter_outside_of_parameters_is_told_its_place() -> None:
    assert problems_of("""
        merge_method: linear
        lambda: 1
        models:
          - model: a
            weight: 0.5
    """) == [
        "recipe.yaml:2:1: lambda: unknown key; lambda is a parameter: put it under `parameters:`",
        "recipe.yaml:5:5: models[0].weight: unknown key; weight is a parameter: put it under "
        "`parameters:`",
    ]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("tise", 'unknown merge method, did you mean "ties"?'),
        ("multi_slerp", 'unknown merge method, did you mean "multislerp"?'),
        ("frankenstein", "unknown merge method; known: arcee_fusion, breadcrumbs, "),
    ],
)
def test_an_unknown_method_brings_a_suggestion(name: str, suggestion: str) -> None:
    (problem,) = problems_of(f"merge_method: {name}\nmodels: [{{model: a}}]\n")
    assert problem.startswith(f'recipe.yaml:1:15: merge_method: "{name}": {suggestion}')


def test_with_an_unknown_method_the_values_are_checked_all_the_same() -> None:
    found = problems_of("merge_method: tise\nmodels: [{model: a}]\nparameters: {t: [0, x]}\n")
    assert found[1:] == [
        'recipe.yaml:3:21: parameters.t[1]: a gradient holds numbers only, not "x"'
    ]


# --- parameters ---------------------------------------------------------------------------


def two_models(method: str, global_: str = "", own: str = "", more: str = "") -> str:
    """A recipe with a base on five lines; the parameters are on lines 4 and 5."""
    return (
        f"merge_method: {method}\nbase_model: a\nmodels:\n"
        f"  - {{model: a, parameters: {{{own}}}}}\n  - {{model: b}}\n"
        f"parameters: {{{global_}}}\n{more}"
    )


@pytest.mark.parametrize(
    ("method", "name", "value", "complaint"),
    [
        ("ties", "density", "1.5", "must be at most 1, not 1.5"),
        ("ties", "density", "[1, 0.5, -0.1]", "must be at least 0, not -0.1"),
        ("slerp", "t", "-0.1", "must be at least 0, not -0.1"),
        ("multislerp", "weight", "-1", "must be at least 0, not -1"),
        ("ema", "decay", "2", "must be at most 1, not 2"),
        ("linear", "weight", "much", 'must be a number, not "much"'),
        ("linear", "weight", '"0.5"', 'must be a number, not "0.5"'),
        ("linear", "weight", "true", "must be a number, not true"),
        ("linear", "weight", "null", "must be a number, not nothing"),
        ("linear", "weight", ".nan", "must be finite, not nan"),
        ("linear", "weight", "1e999", "must be finite, not inf"),
        ("linear", "normalize", "2", "must be true or false, not 2"),
        ("linear", "weight", "[]", "an empty list has no value"),
        (
            "linear",
            "weight",
            "{a: 1}",
            "must be a number, a list of numbers, or a list of {filter, value}",
        ),
        ("delta_guided", "norm", "l3", 'must be one of "l2", "l1", "rms", "relative", not "l3"'),
    ],
)
def test_a_value_out_of_range_or_of_the_wrong_kind_is_refused_at_its_place(
    method: str, name: str, value: str, complaint: str
) -> None:
    column = len(f"parameters: {{{name}: ") + 1
    assert problems_of(two_models(method, f"{name}: {value}")) == [
        f"recipe.yaml:6:{column}: parameters.{name}: {complaint}"
    ]


def test_a_parameter_of_the_method_does_not_belong_under_a_member() -> None:
    assert problems_of(two_models("ties", own="weight: 1, normalize: false")) == [
        "recipe.yaml:4:40: models[0].parameters.normalize: is one for the whole merge; move it to "
        "the top-level `parameters: {normalize: ...}`"
    ]


def test_slerp_asks_for_its_t() -> None:
    assert problems_of("merge_method: slerp\nmodels: [{model: a}, {model: b}]\n") == [
        "recipe.yaml:1:1: parameters: slerp needs `parameters: {t: ...}`: 0 gives the base (or "
        "first) model, 1 the other"
    ]


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (
            {"merge_method": "slerp", "models": listed("a", "b", "c"), "parameters": {"t": 0.5}},
            "models: slerp merges exactly 2 models, not 3",
        ),
        (
            {"merge_method": "nuslerp", "models": listed("a", "b"), "base_model": "b"},
            "models: nuslerp merges exactly 2 models beside the base, not 1",
        ),
        (
            {"merge_method": "passthrough", "models": listed("a", "b")},
            "models: passthrough merges exactly 1 model, not 2",
        ),
        (
            {"merge_method": "ties", "models": listed("a"), "base_model": "a"},
            "models: ties merges at least 1 model beside the base, not 0",
        ),
        (
            {"merge_method": "ties", "models": listed("a", "b")},
            "base_model: ties works on deltas and needs a base: the models' common start",
        ),
        (
            {"merge_method": "linear", "models": listed("a"), "granularity": "element"},
            "granularity: linear knows row, tensor, layer, model, not element",
        ),
        (
            {
                "merge_method": "ties",
                "models": listed("a"),
                "base_model": "b",
                "granularity": "row",
            },
            "granularity: ties knows tensor, not row",
        ),
    ],
    ids=["slerp", "nuslerp", "passthrough", "only the base", "no base", "element", "row"],
)
def test_a_recipe_that_does_not_suit_its_method_is_refused(
    recipe: dict[str, Any], complaint: str
) -> None:
    assert problems_of(recipe) == [f"recipe: {complaint}"]


def test_a_method_may_have_a_granularity_of_its_own() -> None:
    positioned = {"merge_method": "self_positioning", "models": listed("a"), "base_model": "b"}
    assert load(positioned).granularity == "model"
    assert load({**positioned, "granularity": "layer"}).granularity == "layer"
    assert load({"merge_method": "linear", "models": listed("a")}).granularity == "tensor"


@pytest.mark.parametrize("weight", [0, -0.5, [1, 0]])
def test_a_scalar_of_self_positioning_is_positive(weight: Any) -> None:
    models = [{"model": "a", "parameters": {"weight": weight}}, {"model": "b"}]
    recipe = {"merge_method": "self_positioning", "models": models, "base_model": "c"}
    least = min(weight) if isinstance(weight, list) else weight
    assert problems_of(recipe) == [
        f"recipe: models[0].parameters.weight: must be above 0, not {least:g}"
    ]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, json_schema())


# --- values that differ from tensor to tensor ---------------------------------------------


LINEAR = "merge_method: linear\nmodels: [{model: a}]\n"


def weights_of(value: str, tensor: str, depth: float = 0.0) -> float:
    recipe = load_text(
        f"merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: {value}}}"
    )
    (weight,) = recipe.values_for(tensor, depth)["weight"]
    return float(weight)


@pytest.mark.parametrize(
    ("anchors", "depth", "expected"),
    [
        ("[0, 1]", 0.25, 0.25),
        ("[0, 0.5, 0.3]", 0.5, 0.5),
        ("[0, 0.5, 0.3]", 0.75, 0.4),
        ("[0, 0.5, 0.3]", 1.0, 0.3),
        ("[7]", 0.3, 7.0),
    ],
)
def test_a_gradient_is_linear_between_its_anchors(
    anchors: str, depth: float, expected: float
) -> None:
    assert weights_of(anchors, "any", depth) == pytest.approx(expected, rel=1e-15)


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("pattern", "tensor", "matches"),
    [
        ("attention", QUERY, True),
        ("attention", "encoder.layer.1.output.dense.weight", False),
        ("encoder.layer.*.weight", QUERY, True),
        ("encoder.layer.*.bias", QUERY, False),
        ("layer.*.weight", QUERY, False),
        ("/layer\\.[01]\\.att/", QUERY, True),
        ("/^layer/", QUERY, False),
        ("2_Dense", "2_Dense/linear.weight", True),
        ("Attention", QUERY, False),
    ],
)
def test_a_filter_is_a_piece_a_glob_or_a_regular_expression(
    pattern: str, tensor: str, matches: bool
) -> None:
    value = f"[{{filter: '{pattern}', value: 2}}, {{value: 3}}]"
    assert weights_of(value, tensor) == (2 if matches else 3)


def test_the_first_filter_that_matches_counts_and_may_hold_a_gradient() -> None:
    value = "[{filter: query, value: [0, 4]}, {filter: layer, value: 9}, {value: 1}]"
    assert weights_of(value, QUERY, 0.25) == 1.0
    assert weights_of(value, "encoder.layer.0.output.bias", 0.25) == 9.0


def test_without_a_filter_that_matches_the_default_of_the_method_counts() -> None:
    assert weights_of("[{filter: query, value: 5}]", "pooler.bias") == 1.0


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("[{filter: /(/, value: 1}]", "[0].filter: is not a regular expression: missing )"),
        ('[{filter: "", value: 1}]', "[0].filter: a filter is a piece of a tensor's name, not"),
        ("[{filter: 3, value: 1}]", "[0].filter: a filter is a piece of a tensor's name, not 3"),
        (
            "[{value: 1}, {filter: a, value: 2}]",
            "[0]: has no filter and so hides the choices after it; put it last",
        ),
        ("[{filter: a, value: [{value: 1}]}]", "[0].value: filters cannot be nested"),
        ("[{filter: a}]", "[0]: must be {filter: PATTERN, value: V}, or {value: V} for the rest"),
        ("[1, {filter: a, value: 2}]", "[0]: must be {filter: PATTERN, value: V}, or"),
        ("[{filter: a, value: 1, also: 2}]", "[0]: must be {filter: PATTERN, value: V}, or"),
        ("[1, x]", '[1]: a gradient holds numbers only, not "x"'),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(value: str, complaint: str) -> None:
    (problem,) = problems_of(f"{LINEAR}parameters: {{weight: {value}}}\n")
    assert f": parameters.weight{complaint}" in problem


def test_a_member_s_own_value_wins_over_that_for_all_and_that_over_the_default() -> None:
    recipe = load_text("""
        merge_method: ties
        base_model: base
        models:
          - model: a
            parameters:
              weight: 3
              density: [{filter: query, value: 0.25}]
          - model: b
        parameters:
          weight: [{filter: bias, value: 2}]
          density: 0.5
    """)
    assert recipe.values_for("x.query.bias", 0)["weight"].tolist() == [3, 2]
    assert recipe.values_for("x.query.weight", 0)["weight"].tolist() == [3, 1]
    assert recipe.values_for("x.query.bias", 0)["density"].tolist() == [0.25, 0.5]
    assert recipe.values_for("x.key.bias", 0)["density"].tolist() == [0.5, 0.5]


# --- recipes of mergekit ------------------------------------------------------------------


def test_a_linear_recipe_of_mergekit_loads() -> None:
    recipe = load_text("""
        models:
          - model: acme/e5-legal
            parameters:
              weight: 1.0
          - model: acme/e5-medical
            parameters:
              weight: 0.3
          - model: acme/e5-finance
            parameters:
              weight: 0.5
        merge_method: linear
        dtype: float16
    """)
    assert [member.reference for member in recipe.members] == [
        "acme/e5-legal",
        "acme/e5-medical",
        "acme/e5-finance",
    ]
    assert recipe.values_for("any", 0.0)["weight"].tolist() == [1.0, 0.3, 0.5]
    assert recipe.dtype is DType.F16


def test_a_ties_recipe_of_mergekit_loads_and_its_listed_base_is_no_member() -> None:
    recipe = load_text("""
        models:
          - model: acme/e5-base
            # no parameters necessary for base model
          - model: acme/e5-legal
            parameters:
              density: [1, 0.7, 0.1] # density gradient
              weight: 1.0
          - model: acme/e5-medical
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1] # weight gradient
          - model: acme/e5-finance
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        merge_method: ties
        base_model: acme/e5-base
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
    """)
    assert [m.reference for m in recipe.members] == [
        "acme/e5-legal",
        "acme/e5-medical",
        "acme/e5-finance",
    ]
    assert [m.place for m in recipe.members] == [("models", 1), ("models", 2), ("models", 3)]
    values = recipe.values_for("encoder.layer.11.mlp.Wi.weight", 1.0)
    assert values["density"].tolist() == [0.1, 0.5, 0.33]
    assert values["weight"].tolist() == [1.0, 1.0, 0.5]
    assert values["normalize"] is True
    assert recipe.values_for("embeddings.weight", 0.0)["weight"].tolist() == [1.0, 0.0, 0.0]


def test_a_slerp_recipe_of_mergekit_loads_and_begins_with_its_base() -> None:
    recipe = load_text("""
        models:
          - model: acme/e5-legal
          - model: acme/e5-base
        merge_method: slerp
        base_model: acme/e5-base
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5 # fallback for rest of tensors
        dtype: bfloat16
    """)
    assert [m.reference for m in recipe.members] == ["acme/e5-base", "acme/e5-legal"]
    assert recipe.values_for("layers.3.self_attn.q_proj.weight", 0.25)["t"] == 0.5
    assert recipe.values_for("layers.3.mlp.up_proj.weight", 1.0)["t"] == 0.0
    assert recipe.values_for("embed_tokens.weight", 0.0)["t"] == 0.5
    assert recipe.dtype is DType.BF16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """
            models:
              - model: acme/e5-legal
                parameters:
                  weight: 0.6
              - model: acme/e5-medical
                parameters:
                  weight: 0.4
            merge_method: multislerp
            base_model: acme/e5-base
            parameters:
              normalize_weights: false
              eps: 1e-8
            dtype: bfloat16
            """,
            {"weight": [0.6, 0.4], "normalize_weights": False, "eps": 1e-8},
        ),
        (
            """
            base_model: acme/e5-base
            models:
              - model: acme/e5-legal
                parameters:
                  weight: 0.5
              - model: acme/e5-medical
                parameters:
                  weight: -0.25
            merge_method: task_arithmetic
            parameters:
              normalize: false
              lambda: 1.1
              int8_mask: true
            tokenizer_source: base
            dtype: bfloat16
            out_dtype: bfloat16
            """,
            {"weight": [0.5, -0.25], "normalize": False, "lambda": 1.1},
        ),
        (
            """
            models:
              - model: acme/e5-legal
              - model: acme/e5-medical
            base_model: acme/e5-base
            merge_method: model_stock
            parameters:
              filter_wise: true
            dtype: bfloat16
            """,
            {"filter_wise": True},
        ),
        (
            """
            models:
              - model: acme/e5-legal
                parameters:
                  weight: [0.7, 0.3]
              - model: acme/e5-medical
                parameters:
                  weight: 0.3
            merge_method: nuslerp
            parameters:
              nuslerp_flatten: false
              nuslerp_row_wise: true
            dtype: bfloat16
            """,
            {"weight": [0.7, 0.3], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        ),
    ],
    ids=["multislerp", "task_arithmetic", "model_stock", "nuslerp"],
)
def test_other_recipes_of_mergekit_load(text: str, expected: dict[str, Any]) -> None:
    values = load_text(text).values_for("any", 0.0)
    for name, value in expected.items():
        found = values[name]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value


def test_keys_without_a_value_are_as_good_as_absent() -> None:
    recipe = load_text("""
        merge_method: linear
        models:
          - model: acme/e5-legal
            parameters:
        base_model:
        parameters:
        dtype:
        out_dtype:
        tokenizer_source:
    """)
    assert recipe.values_for("any", 0.0)["weight"].tolist() == [1.0]
    assert (recipe.base, recipe.dtype) == (None, None)


def test_dtype_is_what_is_stored_unless_out_dtype_says_otherwise() -> None:
    models = {"merge_method": "linear", "models": listed("a")}
    assert load(models).dtype is None
    assert load({**models, "dtype": "bfloat16"}).dtype is DType.BF16
    assert load({**models, "dtype": "bfloat16", "out_dtype": "float32"}).dtype is DType.F32


# --- sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("2GiB", 2 * 2**30),
        ("1.5 kb", 1500),
        (" 3MiB ", 3 * 2**20),
        ("123", 123),
        (5e9, 5 * 10**9),
        (1, 1),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | float, size: int) -> None:
    assert parse_size(text) == size
    assert load({**SMALL, "max_shard_size": text}).max_shard_size == size


SMALL: dict[str, Any] = {"merge_method": "linear", "models": listed("a")}


@pytest.mark.parametrize("text", ["", "GB", "five GB", "5TB", "inf", "nan", True, None, ["5GB"]])
def test_what_is_no_size_is_refused(text: Any) -> None:
    (problem,) = problems_of({**SMALL, "max_shard_size": text})
    expected = 'recipe: max_shard_size: must be a size such as "5GB" or "500MB", not '
    assert problem.startswith(expected)


@pytest.mark.parametrize("text", [0, -5, "0.5", "-1GB"])
def test_a_file_has_at_least_one_byte(text: Any) -> None:
    (problem,) = problems_of({**SMALL, "max_shard_size": text})
    assert problem.startswith("recipe: max_shard_size: must be at least 1 byte, not ")


# --- recipes from Python ------------------------------------------------------------------


def test_a_mapping_is_a_recipe_and_its_errors_name_the_path() -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "a"}, {"model": "b", "parameters": {"weigth": 1}}],
    }
    expected = ['recipe: models[1].parameters.weigth: unknown key, did you mean "weight"?']
    assert problems_of(recipe) == expected


def test_a_mapping_may_hold_paths_tuples_and_numpy_numbers() -> None:
    recipe = load(
        {
            "merge_method": "linear",
            "models": (
                {"model": Path("a"), "parameters": {"weight": np.float32(0.5)}},
                {"model": "b", "parameters": {"weight": (0, 1)}},
            ),
            "parameters": {"normalize": np.bool_(False)},
        }
    )
    assert [member.reference for member in recipe.members] == ["a", "b"]
    values = recipe.values_for("any", 0.75)
    assert values["weight"].tolist() == [0.5, 0.75]
    assert values["normalize"] is False


def test_a_loaded_recipe_is_taken_as_it_is() -> None:
    recipe = load(SMALL)
    assert load(recipe) is recipe
    assert recipe.name == "recipe"
    assert load_text(LINEAR).name == "recipe"


# --- what only the models can tell --------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "own", "global_", "place", "complaint"),
    [
        ("linear", [1, -1], {}, "2:9", "models: the weights (1, -1) sum to zero"),
        ("task_arithmetic", [1, -1], {"normalize": True}, "2:9", "models: the weights (1, -1)"),
        ("linear", [0, 0], {}, "2:9", "models: the weights (0, 0) sum to zero"),
        ("multislerp", None, {"weight": 0}, "4:13", "parameters: the weights (0, 0) sum to zero"),
        ("ties", [0.1, -0.1], {"density": 0.5}, "2:9", "models: the weights (0.1, -0.1) sum to"),
        ("delta_guided", [0, 0], {}, "2:9", "models: the weights are all zero"),
    ],
)
def test_weights_that_cancel_are_refused_before_any_weight_is_read(
    method: str,
    own: list[float] | None,
    global_: dict[str, Any],
    place: str,
    complaint: str,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Reader, "read", read)
    first, second = (
        f"{{model: {path}" + (f", parameters: {{weight: {weight}}}" if own else "") + "}"
        for path, weight in zip(family.members, own or [1, 1], strict=False)
    )
    text = f"merge_method: {method}\nmodels: [{first}, {second}]\nbase_model: {family.base}\n"
    text += f"parameters: {global_}\n"
    recipe = load_text(text)
    with pytest.raises(PlanError) as caught:
        Planner().plan(recipe, Path("out"))
    assert str(caught.value).startswith(f"recipe.yaml:{place}: {complaint}")
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == "1 problem; nothing was touched"
    assert not Path("out").exists()


def test_weights_that_cancel_in_one_layer_only_name_a_tensor_of_it(family: Family) -> None:
    one, other, _ = family.members
    recipe = load(
        {
            "merge_method": "linear",
            "models": [
                {"model": one, "parameters": {"weight": 1}},
                {"model": other, "parameters": {"weight": [1, -1]}},
            ],
        }
    )
    with pytest.raises(PlanError, match=r"sum to zero .*\(for encoder\.layer\.1\..*\)"):
        Planner().plan(recipe, Path("out"))


def test_every_model_that_is_not_there_is_named_in_one_go() -> None:
    Path("here").mkdir()
    write_recipe(
        Path("here/recipe.yaml"),
        """
        merge_method: ties
        models:
          - model: ./nowhere
          - model: acme/neither
        base_model: ../no/where/else
        """,
    )
    with pytest.raises(RecipeError) as caught:
        Planner().plan(load(Path("here/recipe.yaml")), Path("out"))
    first, second, third = str(caught.value).splitlines()
    assert first == (
        "here/recipe.yaml:3:12: models[0].model: there is no folder here/nowhere or nowhere"
    )
    assert second.startswith(
        "here/recipe.yaml:4:12: models[1].model: there is no folder here/acme/neither or "
        "acme/neither; acme/neither is not in the Hub's cache and HF_HUB_OFFLINE is set"
    )
    assert third.startswith("here/recipe.yaml:5:13: base_model: there is no folder here/../no/")
