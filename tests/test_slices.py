"""Layers of models put together: mergekit's `slices`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import mergekit_embed
from mergekit_embed.errors import PlanError, RecipeError

QUERY = "encoder.layer.{}.attention.self.query.weight"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of six layers and two fine-tunes."""
    root = tmp_path_factory.mktemp("deep")
    tiny_models.build_minilm(root / "base", 0, dense=True, layers=6)
    for seed in (1, 2):
        tiny_models.perturb(root / "base", root / f"member{seed}", seed, scale=0.1)
    return root


def source(path: Path, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    found = {"model": str(path), "layer_range": [start, stop]}
    return {**found, "parameters": parameters} if parameters else found


def tensors(path: Path) -> dict[str, Any]:
    return {name: values for name, (_, values) in tiny_models.read_tensors(path).items()}


def test_mergekits_slerp_of_all_layers_is_the_merge_of_whole_models(
    deep: Path, tmp_path: Path
) -> None:
    parameters = {"t": [{"filter": "attention", "value": [0, 1]}, {"value": 0.5}]}
    common = {
        "merge_method": "slerp",
        "base_model": str(deep / "member1"),
        "parameters": parameters,
        "dtype": "float32",
    }
    sliced = [{"sources": [source(deep / f"member{i}", 0, 6) for i in (1, 2)]}]
    whole = [{"model": str(deep / f"member{i}")} for i in (1, 2)]
    mergekit_embed.merge({**common, "slices": sliced}, tmp_path / "sliced")
    mergekit_embed.merge({**common, "models": whole}, tmp_path / "whole")
    one, other = tensors(tmp_path / "sliced"), tensors(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_dropping_layers_keeps_the_others_and_tells_the_configuration(
    deep: Path, tmp_path: Path
) -> None:
    slices = [{"sources": [source(deep / "base", layer, layer + 1)]} for layer in (0, 2, 5)]
    mergekit_embed.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    base, out = tensors(deep / "base"), tensors(tmp_path / "out")
    for position, layer in enumerate((0, 2, 5)):
        assert np.array_equal(out[QUERY.format(position)], base[QUERY.format(layer)])
    assert QUERY.format(3) not in out
    assert np.array_equal(out["2_Dense/linear.weight"], base["2_Dense/linear.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert np.isfinite(tiny_models.embed(tmp_path / "out", ["a quick brown fox"])).all()


def test_models_are_stacked_with_the_ends_of_the_first_and_the_last(
    deep: Path, tmp_path: Path
) -> None:
    slices = [
        {"sources": [source(deep / "member1", 0, 4)]},
        {"sources": [source(deep / "member2", 2, 6)]},
    ]
    mergekit_embed.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    first, second, out = (
        tensors(path) for path in (deep / "member1", deep / "member2", tmp_path / "out")
    )
    assert np.array_equal(out[QUERY.format(3)], first[QUERY.format(3)])
    assert np.array_equal(out[QUERY.format(4)], second[QUERY.format(2)])
    assert np.array_equal(out[QUERY.format(7)], second[QUERY.format(5)])
    word = "embeddings.word_embeddings.weight"
    assert np.array_equal(out[word], first[word])
    dense = "2_Dense/linear.weight"
    assert np.array_equal(out[dense], second[dense])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 8
    assert tiny_models.embed(tmp_path / "out", ["a quick brown fox"]).shape[0] == 1


def test_deltas_start_from_the_layers_that_the_base_is_listed_with(
    deep: Path, tmp_path: Path
) -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(deep / "base"),
        "slices": [
            {
                "sources": [
                    source(deep / "base", 1, 3),
                    source(deep / "member1", 0, 2, weight=0.5),
                    source(deep / "member2", 3, 5, weight=2.0),
                ]
            }
        ],
    }
    mergekit_embed.merge(recipe, tmp_path / "out")
    base, one, two, out = (
        tensors(path)
        for path in (deep / "base", deep / "member1", deep / "member2", tmp_path / "out")
    )
    for layer in (0, 1):
        origin = base[QUERY.format(layer + 1)]
        deltas = 0.5 * (one[QUERY.format(layer)] - origin)
        deltas = deltas + 2.0 * (two[QUERY.format(layer + 3)] - origin)
        assert np.allclose(out[QUERY.format(layer)], origin + deltas, atol=1e-7)


def test_lists_of_layers_in_the_configuration_follow(tmp_path: Path) -> None:
    tiny_models.build_qwen3(tmp_path / "qwen", 0, layers=4)
    config = json.loads((tmp_path / "qwen" / "config.json").read_text())
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({**config, "layer_types": kinds}))
    slices = [
        {"sources": [source(tmp_path / "qwen", 0, 1)]},
        {"sources": [source(tmp_path / "qwen", 2, 4)]},
    ]
    mergekit_embed.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert config["num_hidden_layers"] == 3


def test_layers_that_are_not_there_are_refused(deep: Path, tmp_path: Path) -> None:
    beyond = [{"sources": [source(deep / "base", 4, 9)]}]
    with pytest.raises(PlanError, match=r"slices\[0\]: .*base has no layer 6; it has 6, from 0"):
        mergekit_embed.plan({"merge_method": "passthrough", "slices": beyond}, tmp_path / "out")
    other = [{"sources": [source(deep / "base", 0, 4), source(deep / "member1", 3, 7)]}]
    with pytest.raises(PlanError, match=r"member1 lacks 16 tensors \(encoder.layer.6."):
        mergekit_embed.plan({"merge_method": "linear", "slices": other}, tmp_path / "out")


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([], "must list at least one"),
        ([{"sources": []}], "must list at least one"),
        ([{"sources": [{"model": "a"}]}], "layer_range: is required"),
        ([{"sources": [{"model": "a", "layer_range": [3, 3]}]}], "such as [0, 12], not [3, 3]"),
        ([{"sources": [{"model": "a", "layer_range": [0]}]}], "layer_range"),
        ([{"sources": [{"model": "a", "layer_range": [0, "x"]}]}], "must be a whole number"),
        (
            [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 2]},
                        {"model": "b", "layer_range": [0, 3]},
                    ]
                }
            ],
            "as many layers of each model, not 2 and 3",
        ),
    ],
)
def test_slices_that_make_no_sense_are_refused(slices: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.load_recipe({"merge_method": "linear", "slices": slices})
    assert message in str(caught.value)


def test_models_and_slices_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="models: is required and not there"):
        mergekit_embed.load_recipe({"merge_method": "linear"})
    both = {"models": [{"model": "a"}], "slices": [{"sources": [source(Path("a"), 0, 1)]}]}
    with pytest.raises(RecipeError, match="slices: and `models` exclude each other"):
        mergekit_embed.load_recipe({"merge_method": "linear", **both})
