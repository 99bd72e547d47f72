"""A recipe as a model that runs: the weights of what `merge` writes, and nothing is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Family
from helpers import files, listed
from sentence_transformers import SentenceTransformer
from tiny_models import (
    build_minilm,
    build_modernbert,
    build_qwen3,
    build_t5_encoder,
    build_xlm_roberta,
    cast,
    perturb,
    shard,
    to_pickle,
)

import mergekit_embed
from mergekit_embed.errors import CheckpointError, RecipeError, UsageError

Build = Callable[[Path], Path]

MADE: dict[str, Build] = {
    "minilm with a dense layer": lambda path: build_minilm(path, 0, dense=True, position_ids=True),
    "modernbert": lambda path: build_modernbert(path, 0),
    "xlm-roberta": lambda path: build_xlm_roberta(path, 0),
    "qwen3 in bf16": lambda path: cast(build_qwen3(path, 0), "bfloat16"),
    "t5": lambda path: build_t5_encoder(path, 0),
    "sharded": lambda path: shard(build_minilm(path, 0), 20_000),
    "pickled": lambda path: to_pickle(build_minilm(path, 0)),
}


def state(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", MADE)
def test_a_loaded_recipe_has_the_weights_of_the_merged_folder(name: str, tmp_path: Path) -> None:
    base = MADE[name](tmp_path / "base")
    member = perturb(base, tmp_path / "m1", 1) if name != "pickled" else MADE[name](tmp_path / "m1")
    recipe = {"merge_method": "linear", "models": listed(base, member)}
    before = files(tmp_path)
    loaded = mergekit_embed.load(recipe, device="cpu")
    assert files(tmp_path) == before
    merged = mergekit_embed.merge(recipe, tmp_path / "merged")
    written = SentenceTransformer(str(merged.path), device="cpu")
    ours, theirs = state(loaded), state(written)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert tensor.dtype == ours[key].dtype
        assert torch.equal(tensor, ours[key]), key
    texts = ["a fast brown fox", "the map of the world"]
    assert (loaded.encode(texts) == written.encode(texts)).all()


def recipes(family: Family) -> dict[str, dict[str, Any]]:
    """Recipes whose result has other files, or other tensors, than any of the members."""
    base, (one, other, third) = str(family.base), map(str, family.members)
    inner = {"merge_method": "linear", "models": listed(one, other)}
    first = {"sources": [{"model": one, "layer_range": [0, 1]}]}
    second = {"sources": [{"model": other, "layer_range": [1, 2]}]}
    return {
        "nested": {
            "merge_method": "slerp",
            "models": [{"model": inner}, {"model": third}],
            "parameters": {"t": 0.3},
        },
        "layers": {"merge_method": "passthrough", "slices": [first, second, first]},
        "deltas": {"merge_method": "ties", "base_model": base, "models": listed(one, other)},
        "tokens": {
            "merge_method": "linear",
            "models": listed(one, other),
            "tokenizer_source": "union",
            "pad_to_multiple_of": 64,
        },
        "stretched": {
            "merge_method": "linear",
            "models": listed(one, other),
            "post": [{"extend_positions": 100}, {"temp_scale": 1.3}, {"cast": "bfloat16"}],
        },
    }


@pytest.mark.parametrize("name", ["nested", "layers", "deltas", "tokens", "stretched"])
def test_so_it_has_where_the_result_is_no_members_shape(
    name: str, family: Family, tmp_path: Path
) -> None:
    recipe = recipes(family)[name]
    written = SentenceTransformer(
        str(mergekit_embed.merge(recipe, tmp_path / "merged").path), device="cpu"
    )
    ours, theirs = state(mergekit_embed.load(recipe, device="cpu")), state(written)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert tensor.dtype == ours[key].dtype
        assert torch.equal(tensor, ours[key]), key


def test_the_type_of_the_weights_can_be_chosen(family: Family) -> None:
    recipe = {"merge_method": "linear", "models": listed(*family.members)}
    loaded = mergekit_embed.load(recipe, device="cpu", dtype="bfloat16")
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}


def test_the_folder_that_it_is_made_from_is_gone(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recipe = {"merge_method": "linear", "models": listed(*family.members)}
    mergekit_embed.load(recipe, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_members_are_read_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_embed import loading

    ran = []
    real = loading.run

    def spy(*arguments: Any) -> Any:
        ran.append(real(*arguments))
        return ran[-1]

    monkeypatch.setattr(loading, "run", spy)
    recipe = {"merge_method": "linear", "models": listed(*family.members)}
    mergekit_embed.load(recipe, device="cpu")
    assert len(ran) == 1
    plan = loading.planned(recipe)
    assert ran[0].bytes_read <= plan.bytes_in


def test_a_tensor_that_the_model_holds_otherwise_is_no_silent_zero(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_embed import loading

    real = loading.stored_names

    def without_one(*arguments: Any) -> tuple[dict[str, str], list[str]]:
        keys, unknown = real(*arguments)
        name = next(name for name in keys if name.endswith("query.weight"))
        del keys[name]
        return keys, [*unknown, name]

    monkeypatch.setattr(loading, "stored_names", without_one)
    with pytest.raises(CheckpointError, match=r"query\.weight under another name or shape"):
        mergekit_embed.load({"merge_method": "linear", "models": listed(*family.members)})


def test_what_gives_no_model_is_refused(family: Family) -> None:
    models = listed(*family.members)
    adapter = {
        "merge_method": "linear",
        "models": listed("base+a", "base+b"),
        "adapter_output": True,
    }
    with pytest.raises(UsageError, match="makes an adapter"):
        mergekit_embed.load(adapter)
    searched = {
        "merge_method": "linear",
        "models": models,
        "search": {"data": {"a": {"path": "a.jsonl", "kind": "retrieval"}}},
    }
    with pytest.raises(RecipeError, match="boom-search"):
        mergekit_embed.load(searched)
