"""LoRA adapters as members: folded on the fly, exactly, and refused where they do not fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import boom_merge, changed_json, changed_tensors, files, listed, write_recipe
from lora import (
    ADAPTER,
    BERT_LINEAR,
    CONFIG,
    MODELS,
    adapt,
    plus,
    reference_fold,
    stored,
    ulp,
    values,
    variants,
    write_adapter,
)
from reference import Array, round_to
from safetensors.numpy import save_file
from tensor_folders import raw_bytes
from tiny_models import build_minilm, cast

import mergekit_embed
from mergekit_embed import CheckpointError
from mergekit_embed.checkpoint import FoldedTensor, NotFoundError, open_reference
from mergekit_embed.checkpoint.reference import split
from mergekit_embed.engine.reader import Reader

CASES = [(name, variant) for name, tiny in MODELS.items() for variant in variants(tiny)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny.build(root / name, seed=3) for name, tiny in MODELS.items()}


@pytest.fixture
def base(bases: Mapping[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(bases["bert"], tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    adapt(base, tmp_path / "lora", seed=1)
    return tmp_path / "lora"


def assert_close(got: Mapping[str, Array], want: Mapping[str, Array], dtype: str = "F32") -> None:
    """Within one unit in the last place of the stored type."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert (np.abs(round_to(array, dtype) - got[name]) <= ulp(array, dtype)).all(), name


def merged(output: Path, method: str, *models: str | Path, **more: Any) -> Path:
    """A merge of these models."""
    return mergekit_embed.merge(
        {"merge_method": method, "models": listed(*models), **more}, output
    ).path


# --- the fold -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_folded_model_is_what_peft_merges(
    name: str, variant: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    tiny, base = MODELS[name], bases[name]
    options = {"target_modules": tiny.linear} | variants(tiny)[variant]
    adapted = adapt(base, tmp_path / "lora", seed=2, **options)
    out = merged(tmp_path / "out", "passthrough", plus(base, tmp_path / "lora"))
    # In float32 PEFT's own sums are off by more than 1 ulp where W and B A cancel.
    state = adapted.double().merge_and_unload().state_dict()
    got = values(out)
    assert_close(got, {n: state[n].numpy() for n in got})
    exact = reference_fold(base, tmp_path / "lora")
    assert any((got[n] != array).any() for n, array in values(base).items())
    for tensor, array in exact.items():
        # The reference sums in another order: both are nearest but for ties within 2^-45.
        assert np.mean(got[tensor] == round_to(array, "F32")) > 0.99, tensor
        assert (np.abs(got[tensor] - array) <= 0.501 * ulp(array, "F32")).all(), tensor


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_in_bfloat16_the_fold_is_rounded_once(
    name: str, variant: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    tiny = MODELS[name]
    base = shutil.copytree(bases[name], tmp_path / "base")
    cast(base, "bfloat16")
    adapt(base, tmp_path / "lora", 2, **({"target_modules": tiny.linear} | variants(tiny)[variant]))
    out = merged(tmp_path / "out", "passthrough", plus(base, tmp_path / "lora"))
    exact = reference_fold(base, tmp_path / "lora")
    for tensor, (dtype, array) in stored(out / "model.safetensors").items():
        assert dtype == "BF16", "the type of the model's own tensor is kept"
        assert np.mean(array == round_to(exact[tensor], "BF16")) > 0.9999, tensor
        assert (np.abs(array - exact[tensor]) <= 0.501 * ulp(exact[tensor], "BF16")).all(), tensor


def test_a_pickled_adapter_is_read_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    want = raw_bytes(merged(tmp_path / "a", "passthrough", plus(base, adapter)))
    from safetensors.torch import load_file

    torch.save(load_file(adapter / ADAPTER), adapter / "adapter_model.bin")
    (adapter / ADAPTER).unlink()
    assert raw_bytes(merged(tmp_path / "b", "passthrough", plus(base, adapter))) == want


def test_an_adapter_of_the_sentence_transformer_fits_too(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=0, dense=True)
    dense = stored(base / "2_Dense" / "model.safetensors")["linear.weight"][1]
    generator = np.random.default_rng(0)
    query = "0.auto_model.encoder.layer.0.attention.self.query"
    tensors = {}
    for module, shape in ((query, (32, 32)), ("2.linear", dense.shape)):
        for side, size in (("A", (2, shape[1])), ("B", (shape[0], 2))):
            factor = generator.standard_normal(size).astype(np.float32)
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = factor
    adapter = write_adapter(tmp_path / "lora", tensors, r=2, lora_alpha=4)
    out = merged(tmp_path / "out", "passthrough", plus(base, adapter), out_dtype="float64")
    got = stored(out / "2_Dense" / "model.safetensors")["linear.weight"][1]
    a, b = (tensors[f"base_model.model.2.linear.lora_{s}.weight"].astype(float) for s in "AB")
    np.testing.assert_allclose(got, dense + 2 * (b @ a), rtol=1e-14, atol=1e-14)


def test_a_layer_that_stores_in_before_out_is_folded_transposed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    generator = np.random.default_rng(1)
    weight, a, b = (generator.standard_normal(s) for s in ((6, 10), (3, 6), (10, 3)))
    save_file({"h.0.mlp.c_fc.weight": weight}, model / "model.safetensors")
    name = "base_model.model.h.0.mlp.c_fc.lora_"
    adapter = write_adapter(
        tmp_path / "lora",
        {f"{name}A.weight": a, f"{name}B.weight": b},
        r=3,
        lora_alpha=3,
        fan_in_fan_out=True,
    )
    got = values(merged(tmp_path / "out", "passthrough", plus(model, adapter)))
    np.testing.assert_allclose(got["h.0.mlp.c_fc.weight"], weight + (b @ a).T, rtol=1e-14)


# --- adapters in merges -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("multislerp", {}), ("ties", {"density": 0.5}), ("linear", {}), ("dare_linear", {})],
)
def test_members_with_adapters_merge_as_the_folded_folders_do(
    method: str, parameters: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"target_modules": [*BERT_LINEAR, "word_embeddings"], "r": 3},
        {"modules_to_save": ["pooler.dense"], "use_rslora": True},
    ]
    together, folded = [], []
    for seed, option in enumerate(options):
        adapt(base, tmp_path / f"lora{seed}", seed=seed, **option)
        together.append(plus(base, tmp_path / f"lora{seed}"))
        whole = tmp_path / f"folded{seed}"
        merged(whole, "passthrough", together[-1], out_dtype="float64")
        folded.append(whole)
    more = {"base_model": str(base), "parameters": parameters}
    got = merged(tmp_path / "a", method, *together, **more, out_dtype="float32")
    want = merged(tmp_path / "b", method, *folded, **more, out_dtype="float32")
    assert_close(values(got), values(want))
    assert raw_bytes(got) == raw_bytes(want), "nothing is rounded between the fold and the merge"


def test_the_base_may_have_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = plus(base, adapter)
    adapt(base, tmp_path / "other", seed=5)
    other = plus(base, tmp_path / "other")
    out = merged(tmp_path / "out", "task_arithmetic", other, base_model=own)
    folded = merged(tmp_path / "folded", "passthrough", other)
    assert_close(values(out), values(folded))


def test_the_model_without_its_adapter_is_not_told_to_be_the_base_itself(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": listed(plus(base, adapter)),
    }
    assert mergekit_embed.merge(recipe, tmp_path / "out").notes == ()


def test_layers_of_a_model_with_an_adapter_can_be_sliced(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    source = {"model": plus(base, adapter), "layer_range": [1, 2]}
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    got = values(mergekit_embed.merge(recipe, tmp_path / "out").path)
    want = values(merged(tmp_path / "whole", "passthrough", plus(base, adapter)))
    name = "attention.self.query.weight"
    assert (got[f"encoder.layer.0.{name}"] == want[f"encoder.layer.1.{name}"]).all()
    assert f"encoder.layer.1.{name}" not in got


def test_a_tensor_that_is_copied_is_folded_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    name = "encoder.layer.0.attention.self.query.weight"
    with changed_tensors(other) as tensors:
        del tensors[name]
    own = plus(base, adapter)
    got = merged(tmp_path / "out", "linear", own, other, missing_tensors="copy")
    want = merged(tmp_path / "whole", "passthrough", own)
    assert (values(got)[name] == values(want)[name]).all()


# --- references ---------------------------------------------------------------------------


def test_a_folder_with_a_plus_in_its_name_wins(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base+lora")
    out = merged(tmp_path / "out", "passthrough", tmp_path / "base+lora")
    assert raw_bytes(out) == raw_bytes(base)


@pytest.mark.parametrize(
    ("reference", "want"),
    [
        ("base", ("base", None)),
        ("base+lora", ("base", "lora")),
        ("c++/base+lora", ("c++/base", "lora")),
        ("base+c++/lora", ("base", "c++/lora")),
        ("org/model@main+org/lora", ("org/model@main", "org/lora")),
        ("base+", ("base", "")),
    ],
)
def test_the_plus_that_counts_has_models_on_both_sides(
    reference: str, want: tuple[str, str | None], tmp_path: Path
) -> None:
    for folder in ("base", "lora", "c++/base", "c++/lora"):
        (tmp_path / folder).mkdir(parents=True)
    assert split(reference, (tmp_path,)) == want


@pytest.mark.parametrize(
    "reference", ["base+nowhere/at/all", "base+", "base+lora/adapter_config.json"]
)
def test_an_adapter_that_is_not_there_is_told_with_its_place(
    reference: str, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(Path("recipe.yaml"), {"merge_method": "passthrough", "models": listed(reference)})
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2
    assert ran.err.startswith("recipe.yaml:5:16: models[0].model: ")


def test_an_adapter_named_as_a_model_says_how_to_name_it(adapter: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter.*as in `BASE\+ADAPTER`"):
        open_reference(str(adapter), (Path(),))


def test_a_merge_does_not_replace_the_adapter(base: Path, adapter: Path) -> None:
    before = files(adapter)
    with pytest.raises(mergekit_embed.OutputExistsError, match="one of the models to be merged"):
        merged(adapter, "passthrough", plus(base, adapter))
    assert files(adapter) == before


# --- memory and chunks --------------------------------------------------------------------

ROWS, COLUMNS, RANK = 3000, 700, 5


@pytest.fixture(params=["linear", "embedding"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FoldedTensor, Array]]:
    """A matrix that takes many chunks, as the package describes it, and its values."""
    generator = np.random.default_rng(0)
    name = "embeddings.word_embeddings"
    weight = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    save_file({f"{name}.weight": weight}, model / "model.safetensors")
    linear = request.param == "linear"
    sizes = {"A": (RANK, COLUMNS if linear else ROWS), "B": (ROWS if linear else COLUMNS, RANK)}
    a, b = (generator.standard_normal(sizes[side]).astype(np.float32) for side in "AB")
    ends = (
        ("lora_A.weight", "lora_B.weight") if linear else ("lora_embedding_A", "lora_embedding_B")
    )
    tensors = {f"base_model.model.{name}.{ends[0]}": a, f"base_model.model.{name}.{ends[1]}": b}
    adapter = write_adapter(tmp_path / "lora", tensors, r=RANK, lora_alpha=10)
    opened = open_reference(plus(model, adapter), (Path(),))
    tensor = opened.components["Transformer"].tensors[f"{name}.weight"]
    assert isinstance(tensor, FoldedTensor)
    product = b.astype(float) @ a.astype(float)
    yield tensor, weight + 2.0 * (product if linear else product.T)


def test_a_chunk_reads_its_own_rows_and_no_more(large: tuple[FoldedTensor, Array]) -> None:
    tensor, want = large
    with Reader() as reader:
        rows = 8
        start = 1000 * COLUMNS
        got = reader.read(tensor, start, start + rows * COLUMNS).view(np.float64)
        own = 4 * rows * COLUMNS + 4 * rows * RANK + 4 * COLUMNS * RANK
        assert reader.bytes_read == own
        reader.read(tensor, 0, rows * COLUMNS)
        assert reader.bytes_read == 2 * own - 4 * COLUMNS * RANK, "the columns' factor is kept"
    np.testing.assert_allclose(got, want[1000:1008].ravel(), rtol=1e-13, atol=1e-13)


def test_the_values_do_not_depend_on_the_chunks(large: tuple[FoldedTensor, Array]) -> None:
    tensor, want = large
    with Reader() as reader:
        whole = reader.read(tensor, 0, tensor.count).view(np.float64)
        np.testing.assert_allclose(whole, want.ravel(), rtol=1e-13, atol=1e-13)
        for size in (1, 99, 701, 65536, 1_000_003):
            for start in range(0, min(tensor.count, 4 * size), size):
                stop = min(start + size, tensor.count)
                part = reader.read(tensor, start, stop).view(np.float64)
                assert (part == whole[start:stop]).all(), (size, start)


# --- what is refused ----------------------------------------------------------------------


def refusal(base: Path, adapter: Path) -> str:
    """What opening the two says; nothing but a CheckpointError may come."""
    with pytest.raises(CheckpointError) as caught:
        open_reference(plus(base, adapter), (Path(),))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("use_dora", True, "`use_dora` is set"),
        ("lora_bias", True, "`lora_bias` is set"),
        ("trainable_token_indices", [1, 2], "`trainable_token_indices` is set"),
        ("layer_replication", [[0, 1]], "`layer_replication` is set"),
        ("peft_type", "IA3", "`peft_type` is 'IA3'; only LORA"),
        ("peft_type", "LOHA", "`peft_type` is 'LOHA'; only LORA"),
        ("peft_type", None, "`peft_type` is None; only LORA"),
        ("init_lora_weights", "pissa", "`init_lora_weights` is 'pissa'"),
        ("r", 0, "`r` must be a whole number from 1, not 0"),
        ("r", -1, "`r` must be a whole number from 1, not -1"),
        ("r", "8", "`r` must be a whole number from 1, not '8'"),
        ("r", True, "`r` must be a whole number from 1, not True"),
        ("lora_alpha", float("nan"), "`lora_alpha` must be a finite number, not nan"),
        ("lora_alpha", 10**400, "`lora_alpha` must be a finite number"),
        ("rank_pattern", {"query": 0}, "`rank_pattern.query` must be a whole number from 1"),
        ("rank_pattern", {"(": 3}, "`rank_pattern` has '(', which is no regular expression"),
        ("alpha_pattern", [1], "`alpha_pattern` must map names to numbers, not [1]"),
        ("use_rslora", "yes", "`use_rslora` must be true or false"),
        ("r", 5, "has shape [4, 32], not [5, 32] for rank 5 and a weight [32, 32]"),
        ("fan_in_fan_out", True, "not [4, 64] for rank 4 and a weight [64, 32]"),
    ],
)
def test_a_configuration_that_is_no_plain_sum_is_refused_by_its_key(
    key: str, value: Any, told: str, base: Path, adapter: Path
) -> None:
    with changed_json(adapter / CONFIG) as config:
        config[key] = value
    assert told in refusal(base, adapter)


def test_everything_that_does_not_fit_is_listed(base: Path, adapter: Path) -> None:
    start = "base_model.model.encoder.layer.0.attention.self"
    with changed_tensors(adapter, ADAPTER) as tensors:
        tensors[f"{start}.query.lora_A.weight"] = np.ones((4, 31), np.float32)
        tensors[f"{start}.value.lora_B.weight"] = np.ones((33, 4), np.float32)
        tensors["base_model.model.encoder.layer.7.output.dense.lora_A.weight"] = np.ones((4, 4))
        tensors["base_model.model.encoder.layer.7.output.dense.lora_B.weight"] = np.ones((4, 4))
        tensors["base_model.model.pooler.dense.lora_A.weight"] = np.ones((4, 32))
        tensors["base_model.model.pooler.dense.lora_magnitude_vector"] = np.ones(32)
        tensors["base_model.model.../../etc/passwd"] = np.ones(3)
        tensors["base_model.model.pooler.dense.bias"] = np.ones(3)
        tensors["base_model.model.embeddings.LayerNorm.weight"] = np.ones(32, np.int64)
        tensors["base_model.model.embeddings.LayerNorm.lora_A.weight"] = np.ones((4, 32))
        tensors["base_model.model.embeddings.LayerNorm.lora_B.weight"] = np.ones((32, 4))
    told = refusal(base, adapter)
    for part in (
        "self.query.lora_A.weight' has shape [4, 31], not [4, 32] for rank 4",
        "self.value.lora_B.weight' has shape [33, 4], not [32, 4] for rank 4",
        "layer.7.output.dense.lora_A.weight' belongs to no tensor",
        "'pooler.dense' has no lora_B beside the other factor",
        "lora_magnitude_vector' is no part of a plain LoRA",
        "passwd' belongs to no tensor",
        "pooler.dense.bias' has shape [3], the tensor [32]",
        "LayerNorm.weight' is I64, F32 there",
        "LayerNorm.lora_A.weight' has shape [4, 32], and its layer [32]: no linear layer",
    ):
        assert part in told


def test_an_adapter_of_a_tied_head_is_not_put_into_the_embeddings(
    bases: Mapping[str, Path], tmp_path: Path
) -> None:
    vocabulary = values(bases["qwen3"])["embed_tokens.weight"].shape[0]
    tensors = {
        "base_model.model.lm_head.lora_A.weight": np.ones((2, 32)),
        "base_model.model.lm_head.lora_B.weight": np.ones((vocabulary, 2)),
    }
    adapter = write_adapter(tmp_path / "lora", tensors, r=2)
    assert "lm_head.lora_A.weight' belongs to no tensor" in refusal(bases["qwen3"], adapter)


@pytest.mark.parametrize(
    ("breakage", "told"),
    [
        (lambda p: (p / CONFIG).unlink(), "is not a PEFT adapter: it holds no adapter_config.json"),
        (lambda p: (p / ADAPTER).unlink(), "holds no adapter_model.safetensors"),
        (lambda p: (p / CONFIG).write_text("[]"), "is not a JSON object"),
        (lambda p: (p / CONFIG).write_text("{"), "is not valid JSON"),
        (lambda p: (p / ADAPTER).write_bytes(b"\xff" * 40), "is truncated or not safetensors"),
        (lambda p: save_file({}, p / ADAPTER), "it holds no tensors"),
        (lambda p: (p / CONFIG).chmod(0o644) or (p / CONFIG).write_bytes(b"\0"), "not valid JSON"),
    ],
)
def test_a_broken_adapter_is_refused(
    breakage: Callable[[Path], Any], told: str, base: Path, adapter: Path
) -> None:
    breakage(adapter)
    assert told in refusal(base, adapter)


def test_a_path_in_the_configuration_is_not_followed(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    want = raw_bytes(merged(tmp_path / "a", "passthrough", plus(base, adapter)))
    with changed_json(adapter / CONFIG) as config:
        config["base_model_name_or_path"] = "../../nowhere"
    assert raw_bytes(merged(tmp_path / "b", "passthrough", plus(base, adapter))) == want


def test_a_factor_that_is_not_finite_is_told_by_the_model_and_tensor(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    name = "encoder.layer.0.attention.self.query"
    with changed_tensors(adapter, ADAPTER) as tensors:
        tensors[f"base_model.model.{name}.lora_A.weight"][0, 0] = np.inf
    with pytest.raises(mergekit_embed.NonFiniteError, match=re.escape(f"tensor {name}.weight")):
        merged(tmp_path / "out", "passthrough", plus(base, adapter))


def test_nothing_is_found_where_neither_side_exists() -> None:
    with pytest.raises(NotFoundError):
        open_reference("./no+where", (Path(),))
