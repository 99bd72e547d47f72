"""Real models of several architectures, from folder to folder to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from reference import check_numerics, multislerp

import mergekit_embed

SENTENCES = ["a quick brown fox", "the lake in the mountain", "books"]

PREPARE: dict[str, Callable[[Path], object]] = {
    "as saved": lambda path: None,
    "bfloat16": lambda path: tiny_models.cast(path, "bfloat16"),
    "sharded": lambda path: tiny_models.shard(path, 40_000),
    "pickled": lambda path: tiny_models.to_pickle(path),
}


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two fine-tunes of it, and nothing else; one for each architecture."""
    root = tmp_path_factory.mktemp(request.param)
    options = {"dense": True} if request.param in {"minilm", "t5_encoder"} else {}
    tiny_models.ARCHITECTURES[request.param](root / "base", 0, **options)
    for seed in (1, 2):
        tiny_models.perturb(root / "base", root / f"member{seed}", seed, scale=0.1)
    return root


def _copy(source: Path, target: Path, prepare: str) -> Path:
    tiny_models.perturb(source, target, 0, scale=0.0)
    PREPARE[prepare](target)
    return target


@pytest.mark.parametrize("prepare", PREPARE)
def test_a_merge_of_one_embeds_as_that_member(prepare: str, family: Path, tmp_path: Path) -> None:
    member = _copy(family / "member1", tmp_path / "member", prepare)
    recipe = {"merge_method": "linear", "models": [{"model": str(member)}]}
    mergekit_embed.merge(recipe, tmp_path / "out")
    ours = tiny_models.embed(tmp_path / "out", SENTENCES)
    assert np.array_equal(ours, tiny_models.embed(member, SENTENCES))
    assert np.abs(ours).max() > 0


def test_a_weight_of_one_beside_zeros_gives_the_member_embeddings(
    family: Path, tmp_path: Path
) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(family / "member1"), "parameters": {"weight": 1}},
            {"model": str(family / "member2"), "parameters": {"weight": 0}},
        ],
    }
    mergekit_embed.merge(recipe, tmp_path / "out")
    ours = tiny_models.embed(tmp_path / "out", SENTENCES)
    assert np.array_equal(ours, tiny_models.embed(family / "member1", SENTENCES))


@pytest.mark.parametrize("prepare", PREPARE)
def test_every_layout_merges_to_the_reference(prepare: str, family: Path, tmp_path: Path) -> None:
    paths = {
        name: _copy(family / name, tmp_path / name, prepare) for name in ("member1", "member2")
    }
    recipe = {
        "merge_method": "multislerp",
        "base_model": str(family / "base"),
        "models": [{"model": str(path)} for path in paths.values()],
        "out_dtype": "float32",
    }
    mergekit_embed.merge(recipe, tmp_path / "out")
    merged = tiny_models.read_tensors(tmp_path / "out")
    base = tiny_models.read_tensors(family / "base")
    members = [tiny_models.read_tensors(path) for path in paths.values()]
    assert merged.keys() == base.keys()
    for name, (dtype, values) in merged.items():
        inputs = [member[name][1] for member in members]
        exact = multislerp(inputs, [1.0, 1.0], base=base[name][1])
        check_numerics(values, exact, dtype, np.max(np.abs([*inputs, base[name][1]]), axis=0))
    assert tiny_models.embed(tmp_path / "out", SENTENCES).shape[0] == len(SENTENCES)


def test_a_merged_model_is_sharded_and_loads(family: Path, tmp_path: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(family / name)} for name in ("member1", "member2")],
        "max_shard_size": "40kB",
    }
    mergekit_embed.merge(recipe, tmp_path / "sharded")
    mergekit_embed.merge({**recipe, "max_shard_size": "5GB"}, tmp_path / "single")
    shards = sorted((tmp_path / "sharded").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    one, other = (tiny_models.read_tensors(tmp_path / name) for name in ("sharded", "single"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name][1], other[name][1]) for name in one)
    assert np.array_equal(
        tiny_models.embed(tmp_path / "sharded", SENTENCES),
        tiny_models.embed(tmp_path / "single", SENTENCES),
    )


def test_transformers_loads_the_result_as_it_loads_a_member(family: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(family / name)} for name in ("member1", "member2")],
    }
    mergekit_embed.merge(recipe, tmp_path / "out")
    model, told = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    _, expected = AutoModel.from_pretrained(family / "member1", output_loading_info=True)
    assert told["missing_keys"] == expected["missing_keys"]
    assert told["unexpected_keys"] == expected["unexpected_keys"]
    assert type(model).__name__ != "AutoModel"
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(SENTENCES[0])["input_ids"]
    assert tokens == AutoTokenizer.from_pretrained(family / "base")(SENTENCES[0])["input_ids"]
