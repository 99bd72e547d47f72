"""The difference of two models as a LoRA adapter: exact at full rank, and honest below."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from click.testing import CliRunner
from helpers import WEIGHTS, changed_tensors, files, listed, siblings
from safetensors.numpy import load_file
from tiny_models import build_minilm, build_modernbert, build_qwen3, build_t5_encoder, perturb
from transformers import AutoModel, GPT2Config, GPT2Model

import mergekit_embed
from mergekit_embed import OutputExistsError, PlanError, extract_lora
from mergekit_embed.cli.boom import boom
from mergekit_embed.engine import low_rank
from mergekit_embed.engine.low_rank import Factors, truncated, truncated_tall
from mergekit_embed.engine.staging import Staging

Builder = Callable[..., Path]


def build_gpt2(path: Path, seed: int) -> Path:
    """A bare GPT-2, whose linear layers store (in, out)."""
    GPT2Model(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ).save_pretrained(path)
    return path


def pair(build: Builder, root: Path) -> tuple[Path, Path]:
    """A fine-tune in which every float tensor differs, and its base."""
    base = build(root / "base", seed=1)
    return perturb(base, root / "tuned", 2), base


def folded(base: Path, adapter: Path, output: Path) -> dict[str, np.ndarray]:
    """What boom-merge makes of the model with the adapter."""
    recipe = {"merge_method": "passthrough", "models": listed(f"{base}+{adapter}")}
    return load_file(mergekit_embed.merge(recipe, output).path / WEIGHTS)


def with_peft(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What PEFT makes of it."""
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapter))
    state = model.merge_and_unload().state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize(
    "build", [build_minilm, build_qwen3, build_modernbert, build_gpt2], ids=lambda b: b.__name__
)
def test_at_full_rank_the_model_comes_back(build: Builder, tmp_path: Path) -> None:
    tuned, base = pair(build, tmp_path)
    done = extract_lora(tuned, base, tmp_path / "lora", rank=10_000)
    want = load_file(tuned / WEIGHTS)
    got, loaded = folded(base, done.path, tmp_path / "out"), with_peft(base, done.path)
    assert {part.name for part in done.parts} == want.keys() == got.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-7, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(loaded[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    assert done.kept == pytest.approx(1.0, abs=1e-12)
    assert done.notes == ()


def test_boom_merge_and_peft_agree_below_full_rank(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    done = extract_lora(tuned, base, tmp_path / "lora", rank=4)
    loaded = with_peft(base, done.path)
    for name, array in folded(base, done.path, tmp_path / "out").items():
        np.testing.assert_allclose(loaded[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_energy_is_that_of_the_singular_values(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    done = extract_lora(tuned, base, tmp_path / "lora", rank=4)
    mine, theirs = (load_file(model / WEIGHTS) for model in (tuned, base))
    got = folded(base, done.path, tmp_path / "out")
    total = kept = 0.0
    for part in done.parts:
        delta = mine[part.name].astype(float) - theirs[part.name].astype(float)
        squares = np.sum(delta**2)
        share = 1.0
        if delta.ndim == 2:
            singular = np.linalg.svd(delta, compute_uv=False)
            share = np.sum(singular[:4] ** 2) / np.sum(singular**2)
            assert (part.form, part.rank) == ("lora", min(4, *delta.shape))
        assert part.energy == pytest.approx(squares, rel=1e-9)
        assert part.kept == pytest.approx(share, rel=1e-9)
        missed = np.sum((got[part.name].astype(float) - mine[part.name]) ** 2)
        assert 1 - missed / squares == pytest.approx(share, abs=1e-5), (
            "what is told is what is kept"
        )
        total, kept = total + squares, kept + share * squares
    assert done.kept == pytest.approx(kept / total, rel=1e-9)
    assert 0.1 < done.kept < 0.9


def test_what_is_equal_is_not_stored(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=1)
    tuned = shutil.copytree(base, tmp_path / "tuned")
    name = "encoder.layer.0.attention.self.query.weight"
    with changed_tensors(tuned) as tensors:
        tensors[name][:2] += 0.5
    done = extract_lora(tuned, base, tmp_path / "lora", rank=8)
    assert [(part.name, part.form, part.kept) for part in done.parts] == [(name, "lora", 1.0)]
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["target_modules"] == [name.removesuffix(".weight")]
    assert (config["modules_to_save"], config["bias"]) == (None, "none")
    assert len(load_file(done.path / "adapter_model.safetensors")) == 2


def test_a_saved_module_takes_those_along_that_peft_takes_for_it(tmp_path: Path) -> None:
    base = build_qwen3(tmp_path / "base", seed=1)
    tuned = shutil.copytree(base, tmp_path / "tuned")
    with changed_tensors(tuned) as tensors:
        tensors["norm.weight"] += 0.5
        tensors["layers.0.mlp.up_proj.weight"][0] += 0.5
    done = extract_lora(tuned, base, tmp_path / "lora", rank=1)
    loaded = with_peft(base, done.path)
    for name, array in load_file(tuned / WEIGHTS).items():
        np.testing.assert_allclose(loaded[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_peft_cannot_load_is_left_out_and_told(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=1, dense=True)
    tuned = perturb(base, tmp_path / "tuned", 2)
    done = extract_lora(tuned, base, tmp_path / "lora", rank=2)
    left = [part for part in done.parts if part.form == "left out"]
    assert [part.name for part in left] == ["2_Dense/linear.bias", "2_Dense/linear.weight"]
    assert all(part.kept == 0.0 and part.energy > 0.0 for part in left)
    assert len(done.notes) == 1 and done.notes[0].startswith("2 tensors that differ are left out")


def test_an_embedding_that_is_called_a_bias_is_one(tmp_path: Path) -> None:
    tuned, base = pair(build_t5_encoder, tmp_path)
    done = extract_lora(tuned, base, tmp_path / "lora", rank=10_000)
    stored = load_file(done.path / "adapter_model.safetensors")
    assert any("relative_attention_bias.lora_embedding_A" in name for name in stored)
    got = folded(base, done.path, tmp_path / "out")
    for name, array in load_file(tuned / WEIGHTS).items():
        np.testing.assert_allclose(got[name], array, rtol=2e-7, atol=1e-8, err_msg=name)


# --- tables that are much longer than wide ------------------------------------------------


def spectrum(rows: int, columns: int, singular: np.ndarray) -> np.ndarray:
    """A matrix with these singular values."""
    generator = np.random.default_rng(0)
    count = len(singular)
    left, right = (np.linalg.qr(generator.standard_normal((n, count)))[0] for n in (rows, columns))
    return (left * singular) @ right.T


def assert_same_factors(got: Factors, want: Factors, largest: float) -> None:
    """Up to the sign of each pair of vectors, to the rounding of float64 on the largest value."""
    assert got.rank == want.rank
    assert got.energy == pytest.approx(want.energy, rel=1e-13)
    assert got.kept == pytest.approx(want.kept, rel=1e-13)
    product, wanted = got.left @ got.right, want.left @ want.right
    np.testing.assert_allclose(product, wanted, rtol=0, atol=1e-13 * largest)
    sign = np.sign(np.sum(got.right * want.right, axis=1))
    np.testing.assert_allclose(got.right, want.right * sign[:, None], rtol=0, atol=1e-7)
    np.testing.assert_allclose(got.left, want.left * sign, rtol=0, atol=1e-7)


@pytest.mark.parametrize("block", [7, 40, 1000])
@pytest.mark.parametrize(
    "singular",
    [np.linspace(1.0, 2.0, 24), 10.0 ** -np.arange(0.0, 10.0), np.array([3.0, 2.0, 1.0])],
    ids=["flat", "steep", "of low rank"],
)
def test_block_by_block_the_factors_are_those_of_the_whole(
    singular: np.ndarray, block: int
) -> None:
    matrix = spectrum(500, 24, singular)

    def blocks() -> list[np.ndarray]:
        return [matrix[top : top + block] for top in range(0, 500, block)]

    for rank in {1, 3, len(singular)}:
        got = truncated_tall(blocks, 500, rank)
        assert_same_factors(got, truncated(matrix, rank), singular[0])
    whole = truncated_tall(blocks, 500, 24)
    np.testing.assert_allclose(whole.left @ whole.right, matrix, rtol=0, atol=1e-13)
    assert np.isfinite(whole.left).all() and np.abs(whole.left).max() < 10


def test_directions_that_are_rounding_alone_do_not_blow_up() -> None:
    matrix = np.outer(np.random.default_rng(0).standard_normal(500), np.ones(24))
    got = truncated_tall(lambda: np.split(matrix, 10), 500, 24)
    assert np.abs(got.left).max() < 10, "a division by the root of a vanishing value overflows"
    np.testing.assert_allclose(got.left @ got.right, matrix, rtol=0, atol=1e-13)


@pytest.mark.parametrize("build", [build_minilm, build_gpt2], ids=lambda b: b.__name__)
def test_an_adapter_is_the_same_however_its_matrices_are_cut(
    build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, base = pair(build, tmp_path)
    whole = folded(base, extract_lora(tuned, base, tmp_path / "a", rank=4).path, tmp_path / "x")
    monkeypatch.setattr(low_rank, "TALL", 1)
    monkeypatch.setattr(low_rank, "BLOCK_ELEMENTS", 64)
    cut = folded(base, extract_lora(tuned, base, tmp_path / "b", rank=4).path, tmp_path / "y")
    assert whole.keys() == cut.keys()
    for name, array in whole.items():
        np.testing.assert_allclose(cut[name], array, rtol=2e-7, atol=1e-8, err_msg=name)


ROWS, COLUMNS = 300_000, 256


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (COLUMNS, ROWS)], ids=["tall", "wide"])
def test_a_table_of_300_mb_is_factored_in_less_memory_than_it_takes(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    size = 4 * ROWS * COLUMNS
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"embeddings.word_embeddings.weight": entry}).encode()
    generator = np.random.default_rng(0)
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "bert"}')
        with (tmp_path / name / WEIGHTS).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for _ in range(100 if name == "tuned" else 0):
                file.write(generator.standard_normal(size // 400, dtype=np.float32).tobytes())
            file.truncate(8 + len(header) + size)  # the base is zero, a hole in the file
    command = (
        "import sys; from mergekit_embed import extract_lora; "
        "from mergekit_embed.engine.merge import peak_memory; "
        "done = extract_lora('tuned', 'base', 'lora', rank=4); print(done.kept, peak_memory())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    kept, peak = map(float, ran.stdout.split())
    assert 4 / COLUMNS < kept < 5 / COLUMNS, "of noise, every direction has about the same share"
    assert peak < 280 * 10**6, "in float64, the table alone takes 614 MB"


# --- where it is written ------------------------------------------------------------------


def test_overwrite_replaces_an_adapter_and_nothing_else(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    target = tmp_path / "lora"
    extract_lora(tuned, base, target, rank=2)
    old = files(target)
    with pytest.raises(OutputExistsError, match="holds an adapter already; pass --overwrite"):
        extract_lora(tuned, base, target, rank=3)
    assert files(target) == old
    assert extract_lora(tuned, base, target, rank=3, overwrite=True).rank == 3
    assert files(target).keys() == old.keys() and files(target) != old
    model = shutil.copytree(base, tmp_path / "model")
    before = files(model)
    with pytest.raises(OutputExistsError, match="holds files that are not an adapter"):
        extract_lora(tuned, base, model, overwrite=True)
    assert files(model) == before


def test_two_extractions_to_one_place_do_not_mix(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    with (
        Staging(tmp_path / "lora", lambda: None),
        pytest.raises(mergekit_embed.OutputError, match="another run is writing to it"),
    ):
        extract_lora(tuned, base, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    assert siblings(tmp_path / "lora") == []


def test_an_extraction_that_fails_leaves_the_old_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    extract_lora(tuned, base, tmp_path / "lora", rank=2)
    old = files(tmp_path / "lora")

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(mergekit_embed.OutputError, match="the disk is full"):
        extract_lora(tuned, base, tmp_path / "lora", rank=3, overwrite=True)
    assert files(tmp_path / "lora") == old
    assert siblings(tmp_path / "lora") == []


# --- what is refused ----------------------------------------------------------------------


def refused(error: type[Exception], match: str, *arguments: Any) -> None:
    """Nothing is written."""
    root = Path(arguments[0]).parent
    before = files(root)
    with pytest.raises(error, match=match):
        extract_lora(*arguments)
    assert files(root) == before
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_equal_models_are_refused(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=1)
    refused(PlanError, "have the same matrices; there is nothing", base, base, tmp_path / "lora")


def test_models_of_other_shapes_are_refused(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=1)
    other = build_minilm(tmp_path / "other", seed=1, hidden_size=16)
    refused(PlanError, r"has shape \[16\], \[32\] in ", other, base, tmp_path / "lora")


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    refused(OutputExistsError, "base: holds .*base, which it is made from", tuned, base, base)


def test_a_tensor_that_is_not_finite_is_told(tmp_path: Path) -> None:
    tuned, base = pair(build_minilm, tmp_path)
    with changed_tensors(tuned) as tensors:
        tensors["pooler.dense.weight"][0, 0] = np.nan
    match = "tuned: tensor pooler.dense.weight holds not-a-number"
    refused(mergekit_embed.NonFiniteError, match, tuned, base, tmp_path / "lora")


# --- the command --------------------------------------------------------------------------


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(boom, ["extract-lora", *map(str, arguments)])


def test_the_command_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(build_minilm, tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = command("tuned", "base", "-r", "4")
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["tensor", "as", "rank", "kept"]
    query = next(line for line in lines if "layer.0.attention.self.query.weight" in line).split()
    assert query[1:3] == ["lora", "4"] and query[4] == "%"
    assert lines[-3].startswith("in all ")
    assert lines[-2].startswith("extracted 39 tensors into adapters/tuned   ")
    assert lines[-1] == 'model: "base+adapters/tuned"'
    assert sorted(p.name for p in Path("adapters/tuned").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_command_speaks_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(build_minilm, tmp_path)
    monkeypatch.chdir(tmp_path)
    told = json.loads(command("tuned", "base", "-r", "4", "-o", "lora", "--json").stdout)
    assert (told["status"], told["output"], told["rank"]) == ("done", "lora", 4)
    assert told["bytes_written"] == sum(p.stat().st_size for p in Path("lora").iterdir())
    assert {"name", "form", "rank", "energy", "kept"} == told["tensors"][0].keys()
    again = command("tuned", "base", "-o", "lora", "--json")
    assert again.exit_code == 2
    assert json.loads(again.stdout)["kind"] == "OutputExistsError"
    replaced = command("tuned", "base", "-r", "2", "-o", "lora", "--overwrite", "--json")
    assert (replaced.exit_code, json.loads(replaced.stdout)["rank"]) == (0, 2)


def test_a_model_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command("./nowhere", "./base")
    assert ran.exit_code == 2
    assert ran.stderr == "error: there is no folder nowhere\n"
