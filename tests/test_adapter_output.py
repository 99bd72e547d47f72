"""Adapters of one base that become one adapter: as PEFT loads it, against float64 references."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import reference
import torch
from helpers import (
    LINEAGE,
    boom_merge,
    changed_json,
    changed_tensors,
    files,
    listed,
    siblings,
    write_recipe,
)
from lora import (
    ADAPTER,
    BERT_LINEAR,
    CONFIG,
    MODELS,
    adapt,
    plus,
    reference_fold,
    stored,
    values,
    write_adapter,
)
from reference import Array, round_to
from safetensors.numpy import load_file, save_file
from tiny_models import build_minilm
from transformers import AutoModel, GPT2Config, GPT2Model

import mergekit_embed
from mergekit_embed import AdapterResult, OutputError, OutputExistsError
from mergekit_embed.dtypes import DType
from mergekit_embed.engine import adapters
from mergekit_embed.engine.adapter_folder import narrowed
from mergekit_embed.engine.staging import Staging

WEIGHTS = [1.0, 0.25, 2.0, 0.6, 1.3]


@dataclass(frozen=True)
class Bag:
    """A base, adapters of it that differ in all that adapters can differ in, and what each is."""

    base: Path
    adapters: tuple[Path, ...]

    @property
    def members(self) -> list[str]:
        return [plus(self.base, adapter) for adapter in self.adapters]

    @property
    def folded(self) -> list[dict[str, Array]]:
        return [reference_fold(self.base, adapter) for adapter in self.adapters]

    def recipe(self, method: str, weights: Sequence[float] = (), **more: Any) -> dict[str, Any]:
        """A recipe for one adapter; the base is named where the method wants one."""
        models = [{"model": member} for member in self.members]
        for model, weight in zip(models, weights, strict=False):
            model["parameters"] = {"weight": weight}
        based = {} if method in {"linear", "ema", "passthrough"} else {"base_model": str(self.base)}
        return {"merge_method": method, "models": models, "adapter_output": True} | based | more

    def first(self, count: int) -> Bag:
        return Bag(self.base, self.adapters[:count])


@pytest.fixture(scope="module", params=list(MODELS))
def bag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bag:
    tiny = MODELS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    base = tiny.build(root / "base", seed=3)
    options: list[dict[str, Any]] = [
        {"target_modules": tiny.linear},
        {
            "target_modules": [*tiny.linear, tiny.embedding],
            "r": 3,
            "rank_pattern": {tiny.pattern: 2},
            "alpha_pattern": {tiny.pattern: 5},
        },
        {"target_modules": tiny.linear, "modules_to_save": [tiny.save], "use_rslora": True},
        {"target_modules": tiny.linear[:1], "r": 7, "lora_alpha": 1},
        {"target_modules": tiny.linear, "bias": "lora_only", "r": 1},
    ]
    for seed, option in enumerate(options):
        adapt(base, root / f"lora{seed}", seed, **option)
    return Bag(base, tuple(root / f"lora{seed}" for seed in range(len(options))))


@pytest.fixture
def bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bag:
    """A base and two adapters in the working directory: `base`, `lora0`, `lora1`."""
    base = build_minilm(tmp_path / "base", seed=3)
    adapt(base, tmp_path / "lora0", seed=0)
    adapt(base, tmp_path / "lora1", seed=1, r=3)
    monkeypatch.chdir(tmp_path)
    return Bag(Path("base"), (Path("lora0"), Path("lora1")))


def made(recipe: Mapping[str, Any], output: Path, **more: Any) -> AdapterResult:
    result = mergekit_embed.merge(recipe, output, **more)
    assert isinstance(result, AdapterResult)
    assert siblings(output.absolute()) == []
    assert sorted(path.name for path in output.iterdir()) == [CONFIG, ADAPTER, LINEAGE]
    lineage = (output / LINEAGE).stat().st_size
    assert result.bytes_written == sum(map(len, files(output).values())) + lineage
    return result


def with_peft(base: Path, adapter: Path) -> dict[str, Array]:
    """What PEFT makes of base and adapter, in float64."""
    model = AutoModel.from_pretrained(base, dtype=torch.float64)
    loaded = peft.PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    state = loaded.merge_and_unload().state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def rounding(adapter: Path, dtype: str = "F32") -> dict[str, Array]:
    """The most that one rounding of each stored number can change an element of the model.

    A keeps its bits in float32, and B is rounded; in a narrower type both are.
    """
    unit = {"F32": 2.0**-24, "BF16": 2.0**-8}[dtype]
    found = {
        n.removeprefix("base_model.model."): a for n, (_, a) in stored(adapter / ADAPTER).items()
    }
    bounds: dict[str, Array] = {}
    for name, array in found.items():
        if "lora_" not in name:
            bounds[name.replace(".base_layer", "")] = unit * np.abs(array)
    for name, a in found.items():
        if ".lora_A" in name or ".lora_embedding_A" in name:
            product = np.abs(found[name.replace("_A", "_B")]) @ np.abs(a)
            product = product.T if "embedding" in name else product
            tensor = f"{name.split('.lora_')[0]}.weight"
            factor = unit if dtype == "F32" else 2.1 * unit
            bounds[tensor] = bounds.get(tensor, 0.0) + factor * product
    return bounds


def assert_is(
    base: Path, adapter: Path, want: Mapping[str, Array], dtype: str = "F32", changes: int = 4
) -> None:
    """PEFT's model is the reference, but for one rounding of what is stored."""
    got, bounds = with_peft(base, adapter), rounding(adapter, dtype)
    changed = 0
    for name, array in values(base).items():
        if np.abs(want[name] - array).max() > 1e-12:
            assert name in bounds, f"{name} is changed and not stored"
            changed += 1
        worst = np.abs(got[name] - want[name]) - 1.001 * bounds.get(name, 0.0)
        assert worst.max() < 1e-13, (name, worst.max())
    assert changed >= changes


# --- the sum ------------------------------------------------------------------------------

Reference = Callable[[Sequence[Array], Array, Sequence[float]], Array]

METHODS: dict[str, tuple[str, dict[str, Any], Reference]] = {
    "task arithmetic": (
        "task_arithmetic",
        {"lambda": 0.4},
        lambda x, b, w: reference.task_arithmetic(x, b, w, lam=0.4),
    ),
    "linear": ("linear", {}, lambda x, b, w: reference.linear(x, w)),
    "multislerp": ("multislerp", {}, lambda x, b, w: reference.multislerp(x, w, b)),
    "delta guided": (
        "delta_guided",
        {"gamma": 0.7, "norm": "rms"},
        lambda x, b, w: reference.delta_guided(x, b, w, 0.7, "rms"),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_peft_makes_of_it_what_merging_the_folded_members_gives(
    name: str, bag: Bag, tmp_path: Path
) -> None:
    method, parameters, merged = METHODS[name]
    recipe = bag.recipe(method, WEIGHTS, parameters=parameters)
    result = made(recipe, tmp_path / "out")
    folded, base = bag.folded, values(bag.base)
    want = {n: merged([member[n] for member in folded], base[n], WEIGHTS) for n in base}
    assert_is(bag.base, result.path, want)
    assert result.kept == 1.0
    wholes = {part.name for part in result.parts if part.form == "whole"}
    assert wholes
    for part in result.parts:
        if part.form == "whole" or part.name not in wholes:
            energy = np.sum((want[part.name] - base[part.name]) ** 2)
            assert part.energy == pytest.approx(energy, rel=1e-9), part.name


def test_two_members_and_the_geometry_of_their_deltas(bag: Bag, tmp_path: Path) -> None:
    two = bag.first(2)
    folded, base = two.folded, values(bag.base)
    stock = made(two.recipe("model_stock"), tmp_path / "stock")
    want = {n: reference.model_stock([m[n] for m in folded], base[n]) for n in base}
    assert_is(bag.base, stock.path, want)
    arc = made(two.recipe("nuslerp", [0.3, 0.9]), tmp_path / "arc")
    want = {n: reference.nuslerp(*(m[n] for m in folded), 0.3, 0.9, base[n]) for n in base}
    assert_is(bag.base, arc.path, want)


@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_a_layer_or_the_model_is_one_vector(granularity: str, bag: Bag, tmp_path: Path) -> None:
    recipe = bag.recipe("multislerp", WEIGHTS, granularity=granularity)
    result = made(recipe, tmp_path / "out")
    folded, base = bag.folded, values(bag.base)

    def group(name: str) -> str:
        found = re.search(r"layers?\.(\d+)\.", name)
        outside = "embeddings" if "embed" in name else "head"
        return "all" if granularity == "model" else found[1] if found else outside

    want: dict[str, Array] = {}
    for own in {group(name) for name in base}:
        names = [name for name in base if group(name) == own]

        def flat(tensors: Mapping[str, Array], names: list[str] = names) -> Array:
            return np.concatenate([tensors[name].ravel() for name in names])

        vector = reference.multislerp([flat(member) for member in folded], WEIGHTS, flat(base))
        ends = np.cumsum([base[name].size for name in names])[:-1]
        for name, part in zip(names, np.split(vector, ends), strict=True):
            want[name] = part.reshape(base[name].shape)
    assert_is(bag.base, result.path, want)


def test_as_a_member_it_is_the_merge_of_its_members(bag: Bag, tmp_path: Path) -> None:
    recipe = bag.recipe("delta_guided", WEIGHTS)
    adapter = made(recipe, tmp_path / "lora").path
    del recipe["adapter_output"]
    more = {"out_dtype": "float64"}
    whole = mergekit_embed.merge(recipe | more, tmp_path / "whole").path
    models = listed(plus(bag.base, adapter))
    again = mergekit_embed.merge(
        {"merge_method": "passthrough", "models": models} | more, tmp_path / "again"
    ).path
    bounds = rounding(adapter)
    for name, array in values(whole).items():
        missed = np.abs(values(again)[name] - array) - 1.001 * bounds.get(name, 0.0)
        assert missed.max() < 1e-13, name


def test_a_keeps_its_bits_and_b_takes_the_factor(bert: Bag, tmp_path: Path) -> None:
    result = made(bert.recipe("task_arithmetic", [0.3, -2.0]), tmp_path / "out")
    got = load_file(result.path / ADAPTER)
    first, second = (load_file(adapter / ADAPTER) for adapter in bert.adapters)
    config = json.loads((result.path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (7, 7, {})
    for name, array in got.items():
        if ".lora_A" in name:
            assert (array == np.concatenate([first[name], second[name]])).all()
        else:  # alpha is 6, of rank 4 and of rank 3
            scaled = [
                0.3 * 1.5 * first[name].astype(float),
                -2.0 * 2.0 * second[name].astype(float),
            ]
            assert (array == np.concatenate(scaled, axis=1).astype(np.float32)).all()


def test_what_needs_no_base_may_go_without_one(bert: Bag, tmp_path: Path) -> None:
    base, folded = values(bert.base), bert.folded
    recipe = bert.recipe("linear", [1.4, -0.4], parameters={"normalize": False})
    want = {n: reference.linear([m[n] for m in folded], [1.4, -0.4], False) for n in base}
    assert_is(bert.base, made(recipe, tmp_path / "a").path, want)
    recipe = bert.recipe("ema", parameters={"decay": 0.5}, base_model=str(bert.base))
    want = {n: reference.ema([m[n] for m in folded], 0.5) for n in base}
    assert_is(bert.base, made(recipe, tmp_path / "b").path, want)


def test_parameters_may_differ_from_tensor_to_tensor(bert: Bag, tmp_path: Path) -> None:
    recipe = bert.recipe("task_arithmetic")
    lam = [{"filter": "query", "value": [0.0, 1.0]}, {"value": 0.5}]
    result = made(recipe | {"parameters": {"lambda": lam}}, tmp_path / "out")
    base, want = values(bert.base), {}
    for name, array in base.items():
        share = float("layer.1" in name) if "query" in name else 0.5
        want[name] = array + share * sum(member[name] - array for member in bert.folded)
    assert_is(bert.base, result.path, want)


def test_members_of_a_group_are_merged_first(bert: Bag, tmp_path: Path) -> None:
    adapt(bert.base, Path("lora2"), seed=2)
    three = Bag(bert.base, (*bert.adapters, Path("lora2")))
    recipe = three.recipe("delta_guided")
    for model in recipe["models"][:2]:
        model["group"] = "one"
    result = made(recipe, tmp_path / "out")
    base, folded = values(bert.base), three.folded
    want = {}
    for name, array in base.items():
        inner = reference.delta_guided([m[name] for m in folded[:2]], array, [1.0, 1.0])
        want[name] = reference.delta_guided([inner, folded[2][name]], array, [2.0, 1.0])
    assert_is(bert.base, result.path, want)


def test_a_layer_that_stores_in_before_out(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    GPT2Model(config).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True}
    for seed in range(2):
        adapt(tmp_path / "base", tmp_path / f"lora{seed}", seed, **options, r=2 + seed)
    bag = Bag(tmp_path / "base", (tmp_path / "lora0", tmp_path / "lora1"))
    base = values(bag.base)
    members = [with_peft(bag.base, adapter) for adapter in bag.adapters]
    for output in (True, {"rank": 16}):
        recipe = bag.recipe("linear", adapter_output=output)
        got = with_peft(bag.base, made(recipe, tmp_path / "out", overwrite=True).path)
        for name, array in base.items():
            want = (members[0][name] + members[1][name]) / 2
            np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-8)
            assert ("c_attn.weight" in name or "wte" in name) == bool((want != array).any())


# --- the stored type ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_numbers_are_rounded_once(dtype: str) -> None:
    generator = np.random.default_rng(0)
    array = generator.standard_normal(20_000) * 10.0 ** generator.uniform(-12, 4, 20_000)
    halves = round_to(array, "BF16") * (1 + 2.0**-8)  # between two bfloat16
    hard = np.concatenate([array, halves, halves * (1 + 2.0**-40), halves * (1 - 2.0**-40)])
    hard = np.concatenate([hard, -hard, [0.0, -0.0, 2.0**-130, 2.0**-134, 2.0**-133 * 1.5]])
    hard = np.clip(hard, -60000, 60000)
    stored_as = narrowed(hard, DType[dtype])
    got = reference.float64_from_storage(stored_as.tobytes(), dtype, hard.shape)
    assert (got == round_to(hard, dtype)).all()


def test_what_bfloat16_cannot_hold_is_infinite() -> None:
    assert narrowed(np.array([1e39, -1e300, 3.4e38]), DType.BF16).tolist() == [
        0x7F80,
        0xFF80,
        0x7F80,
    ]


def test_factors_are_stored_as_out_dtype_says(bag: Bag, tmp_path: Path) -> None:
    recipe = bag.recipe("task_arithmetic", WEIGHTS, out_dtype="bfloat16")
    result = made(recipe, tmp_path / "out")
    assert {dtype for dtype, _ in stored(result.path / ADAPTER).values()} == {"BF16"}
    base, folded = values(bag.base), bag.folded
    want = {n: reference.task_arithmetic([m[n] for m in folded], base[n], WEIGHTS) for n in base}
    assert_is(bag.base, result.path, want, "BF16")


def test_members_in_float64_stay_so(bert: Bag, tmp_path: Path) -> None:
    with changed_tensors(bert.adapters[0], ADAPTER) as tensors:
        for name, array in tensors.items():
            tensors[name] = array.astype(np.float64) / 3
    result = made(bert.recipe("task_arithmetic"), tmp_path / "out")
    assert {dtype for dtype, _ in stored(result.path / ADAPTER).values()} == {"F64"}
    got = with_peft(bert.base, result.path)
    for name, array in values(bert.base).items():
        want = array + sum(member[name] - array for member in bert.folded)
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-14)


# --- cut off at a rank --------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 5])
def test_below_the_sum_of_the_ranks_it_is_the_nearest(rank: int, bag: Bag, tmp_path: Path) -> None:
    recipe = bag.recipe("task_arithmetic", WEIGHTS, adapter_output={"rank": rank})
    result = made(recipe, tmp_path / "out")
    base, folded = values(bag.base), bag.folded
    got = with_peft(bag.base, result.path)
    wholes = {part.name for part in result.parts if part.form == "whole"}
    total = kept = 0.0
    for part in result.parts:
        members = [member[part.name] for member in folded]
        delta = reference.task_arithmetic(members, base[part.name], WEIGHTS) - base[part.name]
        energy = np.sum(delta**2)
        if part.form == "lora" and part.name not in wholes:
            left, singular, right = np.linalg.svd(delta, full_matrices=False)
            nearest = (left[:, :rank] * singular[:rank]) @ right[:rank]
            share = np.sum(singular[:rank] ** 2) / np.sum(singular**2)
            own = sum(
                stored(adapter / ADAPTER)[name][1].shape[0]
                for adapter in bag.adapters
                for name in stored(adapter / ADAPTER)
                if re.match(rf".*{re.escape(part.name[:-7])}.lora_(embedding_)?A", name)
            )
            assert (part.rank, part.kept) == (min(rank, own), pytest.approx(share, rel=1e-9))
            np.testing.assert_allclose(
                got[part.name] - base[part.name], nearest, rtol=0, atol=3e-7 * singular[0]
            )
        if part.name not in wholes:
            assert part.energy == pytest.approx(energy, rel=1e-9)
        total, kept = total + part.energy, kept + part.energy * part.kept
    assert result.kept == pytest.approx(kept / total, rel=1e-12)
    assert 0.1 < result.kept < 1.0


def test_a_rank_that_holds_the_sum_changes_nothing(bag: Bag, tmp_path: Path) -> None:
    exact = made(bag.recipe("multislerp", WEIGHTS), tmp_path / "a").path
    roomy = bag.recipe("multislerp", WEIGHTS, adapter_output={"rank": 64})
    assert files(made(roomy, tmp_path / "b").path) == files(exact)


def test_a_rank_that_is_the_sum_cuts_nothing_off(bert: Bag) -> None:
    exact = files(made(bert.recipe("linear"), Path("a")).path)  # of rank 4 + 3
    assert files(made(bert.recipe("linear", adapter_output={"rank": 7}), Path("b")).path) == exact


def test_a_rank_over_the_size_of_a_matrix_is_that_size(bert: Bag, tmp_path: Path) -> None:
    for seed in (0, 1):
        adapt(bert.base, Path(f"lora{seed}"), seed, r=30)
    result = made(bert.recipe("linear", adapter_output={"rank": 50}), tmp_path / "out")
    assert {part.rank for part in result.parts} == {32}
    base, folded = values(bert.base), bert.folded
    got = with_peft(bert.base, result.path)
    for name in base:
        want = reference.linear([member[name] for member in folded], [1.0, 1.0])
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-6)
    assert result.kept == pytest.approx(1.0, abs=1e-12)


def test_adapters_that_cancel_leave_nothing(bert: Bag, tmp_path: Path) -> None:
    same = Bag(bert.base, (Path("lora0"), Path("lora0")))
    recipe = same.recipe("task_arithmetic", [1.0, -1.0], adapter_output={"rank": 2})
    got = with_peft(bert.base, made(recipe, tmp_path / "out").path)
    for name, array in values(bert.base).items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-14)


# --- names --------------------------------------------------------------------------------


def st_adapter(path: Path, base: Path, seed: int, *, dense: bool) -> Path:
    """An adapter of the whole SentenceTransformer, as PEFT names its modules."""
    generator = np.random.default_rng(seed)
    modules = {"0.auto_model.encoder.layer.0.attention.self.query": (32, 32)}
    if dense:
        weight = load_file(base / "2_Dense" / "model.safetensors")["linear.weight"]
        modules["2.linear"] = weight.shape
    tensors = {}
    for module, (out, into) in modules.items():
        for side, shape in (("A", (2, into)), ("B", (out, 2))):
            factor = generator.standard_normal(shape).astype(np.float32)
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = factor
    return write_adapter(path, tensors, r=2, lora_alpha=2)


def test_adapters_of_the_sentence_transformer_keep_its_names(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=0, dense=True)
    adapters = [st_adapter(tmp_path / f"l{i}", base, i, dense=True) for i in range(2)]
    bag = Bag(base, tuple(adapters))
    recipe = bag.recipe("multislerp")
    file = write_recipe(tmp_path / "recipe.yaml", recipe)
    ran = boom_merge(file, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert f'PeftModel.from_pretrained(SentenceTransformer("{base}"), ' in ran.out
    names = {name.split(".lora_")[0] for name in load_file(tmp_path / "out" / ADAPTER)}
    assert names == {
        "base_model.model.0.auto_model.encoder.layer.0.attention.self.query",
        "base_model.model.2.linear",
    }
    del recipe["adapter_output"]
    whole = mergekit_embed.merge(recipe, tmp_path / "whole").path
    again = mergekit_embed.merge(
        {"merge_method": "passthrough", "models": listed(plus(base, tmp_path / "out"))},
        tmp_path / "again",
    ).path
    for part in ("", "2_Dense"):
        want, got = (load_file(model / part / "model.safetensors") for model in (whole, again))
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-6)


def test_names_of_different_models_become_those_of_the_bare_transformer(bert: Bag) -> None:
    st_adapter(Path("st"), bert.base, 7, dense=False)
    mixed = Bag(bert.base, (bert.adapters[0], Path("st")))
    result = made(mixed.recipe("task_arithmetic"), Path("out"))
    assert result.notes == (
        "the adapters were trained on Transformers with other names; the result is for the bare "
        "one, as AutoModel loads it",
    )
    query = "encoder.layer.0.attention.self.query"
    factors = load_file(Path("st", ADAPTER))
    name = f"base_model.model.0.auto_model.{query}.lora_"
    learned = factors[f"{name}B.weight"].astype(float) @ factors[f"{name}A.weight"].astype(float)
    want = reference_fold(bert.base, bert.adapters[0])
    want[f"{query}.weight"] = want[f"{query}.weight"] + learned
    assert_is(bert.base, result.path, want)


def test_modules_under_names_of_different_models_are_refused(tmp_path: Path) -> None:
    base = build_minilm(tmp_path / "base", seed=0, dense=True)
    adapt(base, tmp_path / "bare", seed=0)
    st_adapter(tmp_path / "st", base, 1, dense=True)
    mixed = Bag(base, (tmp_path / "bare", tmp_path / "st"))
    with pytest.raises(mergekit_embed.PlanError, match="under names of different models"):
        mergekit_embed.merge(mixed.recipe("task_arithmetic"), tmp_path / "out")


# --- what is refused ----------------------------------------------------------------------


def refused(recipe: Mapping[str, Any], told: str) -> None:
    """Exit code 2, the reason, and nothing touched."""
    write_recipe(Path("recipe.yaml"), recipe)
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert told in ran.err
    assert files(Path()) == before
    assert siblings(Path("out").absolute()) == []


@pytest.mark.parametrize(
    ("method", "more", "told"),
    [
        ("ties", {}, "merge_method: ties decides element by element, which gives no sum of"),
        ("sce", {}, "boom extract-lora"),
        ("median", {}, "Leave `adapter_output` out, and make an adapter of the merged model"),
        ("karcher", {}, "merge_method: karcher measures whole weights"),
        ("slerp", {"parameters": {"t": 0.5}}, "merge_method: slerp measures whole weights"),
        ("multislerp", {"base_model": None}, "base_model: multislerp measures whole weights"),
        ("nuslerp", {"base_model": None}, "set it, so that it merges what was learned"),
        ("delta_guided", {"granularity": "row"}, "granularity: a row of its own coefficients"),
        ("delta_guided", {"granularity": "element"}, "granularity: a element of its own"),
        ("delta_guided", {"parameters": {"norm": "l1"}}, "an L1 length does not follow from the"),
        ("model_stock", {"parameters": {"filter_wise": True}}, "every row with coefficients of"),
        ("nuslerp", {"parameters": {"nuslerp_flatten": False}}, "every row with coefficients"),
        ("linear", {"parameters": {"normalize": False}}, "sum to 2, which scales the base too"),
        ("delta_guided", {"parameters": {"weight": 0}}, "the weights are all zero"),
        ("linear", {"post": [{"temp_scale": 0.9}]}, "post[0]: edits need whole weights"),
        ("linear", {"allow_non_finite": True}, "allow_non_finite: an adapter that is not finite"),
        ("linear", {"adapter_output": {"rank": 0}}, "adapter_output.rank: must be at least 1"),
        ("linear", {"adapter_output": {"rank": 1.5}}, "rank: must be a whole number, such as 16"),
        ("linear", {"adapter_output": {"rnak": 4}}, 'unknown key, did you mean "rank"?'),
        ("linear", {"adapter_output": 16}, "must be true, or a rank such as {rank: 16}, not 16"),
        ("linear", {"base_model": "other"}, "base is not other; adapters become one only if"),
        ("linear", {"models": listed("base", "base+lora0")}, "models[0].model: names no adapter"),
        ("linear", {"models": listed("base+lora0", "other+lora1")}, "other is not base"),
        ("linear", {"models": listed("base+lora0", "base+no")}, "models[1].model: there is no"),
        ("task_arithmetic", {"base_model": None}, "task_arithmetic works on deltas and needs"),
    ],
)
def test_what_is_no_sum_of_adapters_is_refused(
    method: str, more: dict[str, Any], told: str, bert: Bag
) -> None:
    build_minilm(Path("other"), seed=4)
    recipe = bert.recipe(method) | more
    refused({key: value for key, value in recipe.items() if value is not None}, told)


def test_slices_are_refused(bert: Bag) -> None:
    sources = [{"model": member, "layer_range": [0, 1]} for member in bert.members]
    recipe = {"merge_method": "linear", "slices": [{"sources": sources}], "adapter_output": True}
    refused(recipe, "slices: an adapter changes the layers that its base has")


def test_a_base_that_would_be_scaled_where_no_adapter_is(bert: Bag) -> None:
    weight = [{"filter": "pooler", "value": 1.0}, {"value": 0.5}]
    recipe = bert.recipe("linear", parameters={"normalize": False, "weight": weight})
    refused(recipe, "sum to 2, which scales the base too")
    refused(recipe, "(for pooler.dense.bias)")


def test_without_adapter_output_the_recipe_makes_a_model(bert: Bag) -> None:
    recipe = bert.recipe("linear", adapter_output=False)
    assert Path(mergekit_embed.merge(recipe, "out").path, "config.json").is_file()
    with pytest.raises(mergekit_embed.UsageError, match="plan it with `plan_adapter`"):
        mergekit_embed.plan(bert.recipe("linear"), "other")


def test_adapters_of_other_shapes_do_not_fit(bert: Bag) -> None:
    other = build_minilm(Path("other"), seed=4, hidden_size=16)
    adapt(other, Path("strange"), seed=0)
    ran = boom_merge(
        write_recipe(Path("r.yaml"), bert.recipe("linear") | {"models": listed("base+strange")})
    )
    assert ran.code == 1
    assert "strange: does not fit base" in ran.err and "(r.yaml:5:16)" in ran.err


def test_an_adapter_without_factors_is_refused(bert: Bag) -> None:
    bias = "base_model.model.pooler.dense.bias"
    write_adapter(Path("biases"), {bias: np.ones(32, np.float32)}, bias="all")
    recipe = bert.recipe("linear") | {"models": listed("base+biases")}
    refused(recipe, "no adapter has factors")


def test_a_copy_that_peft_saves_of_an_adapted_embedding_is_left_out(tmp_path: Path) -> None:
    base = MODELS["qwen3"].build(tmp_path / "base", seed=3)
    for seed in range(2):
        adapt(base, tmp_path / f"lora{seed}", seed, target_modules=["embed_tokens", "q_proj"])
    bag = Bag(base, (tmp_path / "lora0", tmp_path / "lora1"))
    copy = "base_model.model.embed_tokens.base_layer.weight"
    assert copy in load_file(bag.adapters[0] / ADAPTER), "else the test tests nothing"
    result = made(bag.recipe("multislerp"), tmp_path / "a")
    assert not [name for name in load_file(result.path / ADAPTER) if "lora_" not in name]
    with changed_tensors(bag.adapters[1], ADAPTER) as tensors:
        tensors[copy][0, 0] += 0.5
    result = made(bag.recipe("multislerp"), tmp_path / "b")
    assert copy in load_file(result.path / ADAPTER)
    was, folded = values(base), bag.folded
    want = {n: reference.multislerp([m[n] for m in folded], [1.0, 1.0], was[n]) for n in was}
    assert_is(base, result.path, want, changes=3)


def test_a_module_that_one_adapts_and_another_saves_is_both(bert: Bag) -> None:
    adapt(bert.base, Path("saving"), seed=2, modules_to_save=["pooler.dense"])
    adapt(bert.base, Path("adapting"), seed=3, target_modules=["pooler.dense", "query"])
    both = Bag(bert.base, (Path("saving"), Path("adapting")))
    base = values(bert.base)
    for method in ("linear", "multislerp"):
        result = made(both.recipe(method), Path(f"out-{method}"))
        merged = METHODS[method][2]
        want = {n: merged([m[n] for m in both.folded], base[n], [1.0, 1.0]) for n in base}
        assert_is(bert.base, result.path, want)
    forms = [part.form for part in result.parts if part.name == "pooler.dense.weight"]
    assert forms == ["lora", "whole"]


def test_a_saved_module_is_saved_with_all_its_tensors(bert: Bag) -> None:
    tensors = {"base_model.model.embeddings.LayerNorm.weight": np.ones(32, np.float32)}
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_"
    for side, shape in (("A", (2, 32)), ("B", (32, 2))):
        tensors[f"{name}{side}.weight"] = np.ones(shape, np.float32)
    config = {"r": 2, "lora_alpha": 2, "alpha_pattern": {}, "use_rslora": False}
    write_adapter(Path("norm"), tensors, **config)
    result = made(Bag(bert.base, (Path("norm"),)).recipe("task_arithmetic"), Path("out"))
    assert [part.name for part in result.parts] == [
        "embeddings.LayerNorm.bias",
        "embeddings.LayerNorm.weight",
        "encoder.layer.0.attention.self.query.weight",
    ]
    assert json.loads(Path("out", CONFIG).read_text())["modules_to_save"] == [
        "embeddings.LayerNorm"
    ]
    assert_is(bert.base, result.path, reference_fold(bert.base, Path("norm")), changes=2)


def test_a_saved_module_that_would_take_adapted_ones_along_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("base/config.json").write_text('{"model_type": "bert"}')
    square = np.eye(4, dtype=np.float32)
    save_file({"query.weight": square, "layer.query.weight": square}, "base/model.safetensors")
    name = "base_model.model.layer.query.lora_"
    factors = {f"{name}A.weight": square[:2], f"{name}B.weight": square[:, :2].copy()}
    whole = {"base_model.model.query.weight": square}
    write_adapter(Path("both"), factors | whole, r=2)
    recipe = {"merge_method": "linear", "models": listed("base+both"), "adapter_output": True}
    refused(recipe, "query cannot be saved whole: PEFT would take other modules for it too")


def test_adapters_that_stand_across_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("base/config.json").write_text('{"model_type": "gpt2"}')
    square = np.eye(4, dtype=np.float32)
    save_file({"h.0.c_fc.weight": square}, "base/model.safetensors")
    name = "base_model.model.h.0.c_fc.lora_"
    linear = {f"{name}A.weight": square[:2], f"{name}B.weight": square[:, :2].copy()}
    looked_up = {f"{name}embedding_A": square[:2], f"{name}embedding_B": square[:, :2].copy()}
    write_adapter(Path("one"), linear, r=2)
    write_adapter(Path("other"), linear, r=2, fan_in_fan_out=True)
    write_adapter(Path("third"), looked_up, r=2)
    recipe = {"merge_method": "linear", "adapter_output": True}
    refused(
        recipe | {"models": listed("base+one", "base+other")}, "do not agree on `fan_in_fan_out`"
    )
    refused(
        recipe | {"models": listed("base+one", "base+third")},
        "h.0.c_fc.weight is an embedding to one adapter and a linear layer to another",
    )


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (np.nan, "float32", r"base\+lora0: tensor encoder.layer.0.* holds not-a-number"),
        (1e13, "float16", "the merge overflows F16. Choose a wider `out_dtype`"),
    ],
)
@pytest.mark.parametrize("output", [True, {"rank": 2}], ids=["exact", "rank"])
def test_what_is_not_finite_is_told_and_not_written(
    output: Any, value: float, dtype: str, told: str, bert: Bag
) -> None:
    with changed_tensors(bert.adapters[0], ADAPTER) as tensors:
        for name, array in tensors.items():
            if "layer.0.attention.self.query.lora_B" in name:
                array[:] = value
    recipe = bert.recipe("multislerp", out_dtype=dtype, adapter_output=output)
    with pytest.raises(mergekit_embed.NonFiniteError, match=told):
        mergekit_embed.merge(recipe, "out")
    assert not Path("out").exists() and siblings(Path("out").absolute()) == []


def test_what_a_method_says_is_told_with_the_tensors(bert: Bag) -> None:
    with changed_tensors(bert.adapters[0], ADAPTER) as tensors:
        opposite = {n: -a if "lora_B" in n else a for n, a in tensors.items()}
    shutil.copytree("lora0", "opposite")
    with changed_tensors(Path("opposite"), ADAPTER) as tensors:
        tensors.update(opposite)
    two = Bag(bert.base, (Path("lora0"), Path("opposite")))
    (note,) = made(two.recipe("multislerp"), Path("out")).notes
    assert note.endswith("more tensors: the members' directions cancel; merged linearly instead")


# --- where it is written ------------------------------------------------------------------


def test_overwrite_replaces_an_adapter_and_nothing_else(bert: Bag) -> None:
    write_recipe(Path("recipe.yaml"), bert.recipe("linear"))
    assert boom_merge("recipe.yaml", "-o", "out").code == 0
    old = files(Path("out"))
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2
    assert ran.err.startswith("error: out: holds an adapter already; pass --overwrite")
    write_recipe(Path("recipe.yaml"), bert.recipe("task_arithmetic"))
    assert boom_merge("recipe.yaml", "-o", "out", "--overwrite").code == 0
    assert files(Path("out")).keys() == old.keys() and files(Path("out")) != old
    shutil.copytree("base", "model")
    for taken, told in (
        ("model", "holds files that are not an adapter"),
        ("lora0", "holds base+lora0, one of the models to be merged"),
        ("base/lora", "lies inside base, one of the models"),
    ):
        before = files(Path())
        ran = boom_merge("recipe.yaml", "-o", taken, "--overwrite")
        assert ran.code == 2 and told in ran.err
        assert files(Path()) == before


def test_a_model_does_not_replace_an_adapter(bert: Bag) -> None:
    made(bert.recipe("linear"), Path("out"))
    before = files(Path("out"))
    with pytest.raises(OutputExistsError, match="holds files that are not a model"):
        mergekit_embed.merge(bert.recipe("linear", adapter_output=False), "out", overwrite=True)
    assert files(Path("out")) == before


def test_two_merges_to_one_place_do_not_mix(bert: Bag) -> None:
    with (
        Staging(Path("out"), lambda: None),
        pytest.raises(OutputError, match="out: another run is writing to it"),
    ):
        mergekit_embed.merge(bert.recipe("linear"), "out")
    assert not Path("out").exists() and siblings(Path("out").absolute()) == []


KILLED = """
import os, signal, sys
import mergekit_embed
count, write = 0, os.pwrite
def killing(*arguments):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)
os.pwrite = killing
mergekit_embed.merge("recipe.yaml", "out", overwrite=True)
"""


def test_a_killed_merge_leaves_the_old_adapter_and_the_next_clears_up(bert: Bag) -> None:
    made(bert.recipe("task_arithmetic"), Path("out"))
    old = files(Path("out"))
    write_recipe(Path("recipe.yaml"), bert.recipe("linear"))
    for at in (1, 2, 7):
        ran = subprocess.run([sys.executable, "-c", KILLED, str(at)], check=False)
        assert ran.returncode == -signal.SIGKILL
        assert files(Path("out")) == old
        assert siblings(Path("out").absolute()) == [".out.lock", ".out.partial"]
    made(bert.recipe("linear"), Path("out"), overwrite=True)
    assert files(Path("out")) != old


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    yield


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_disk_that_is_too_small_is_told(option: list[str], bert: Bag) -> None:
    write_recipe(Path("recipe.yaml"), bert.recipe("linear"))
    ran = boom_merge("recipe.yaml", "-o", "out", *option)
    assert ran.code == 1 and "out: needs " in ran.err
    assert not Path("out").exists()


# --- the command --------------------------------------------------------------------------


def test_a_dry_run_prints_modules_ranks_and_bytes(bert: Bag) -> None:
    adapt(bert.base, Path("lora1"), seed=1, r=3, target_modules=["query"], bias="lora_only")
    write_recipe(Path("recipe.yaml"), bert.recipe("linear", adapter_output={"rank": 5}))
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", "out", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert files(Path()) == before
    told = ran.out.splitlines()
    assert "      module  encoder.layer.0.attention.self.query.weight   rank 5 of 4 + 3" in told
    assert "      module  encoder.layer.0.intermediate.dense.weight   rank 4 = 4 + 0" in told
    assert "       whole  encoder.layer.0.attention.self.query.bias" in told
    assert "      member  base+lora1" in told
    facts = json.loads(boom_merge("recipe.yaml", "-o", "out", "--dry-run", "--json").out)
    assert facts["status"] == "planned" and facts["dtype"] == "F32"
    assert facts["modules"]["encoder.layer.1.attention.self.query.weight"] == 5
    assert boom_merge("recipe.yaml", "-o", "out").code == 0
    assert facts["bytes_out"] == Path("out", ADAPTER).stat().st_size
    assert facts["bytes_in"] > 0


def test_the_end_of_the_command_says_how_to_load_it(
    bert: Bag, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "peak_memory", lambda: 123_400_000)
    write_recipe(Path("recipe.yaml"), bert.recipe("linear"))
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    first, second, third = ran.out.splitlines()
    written = [*files(Path("out")).values(), Path("out", LINEAGE).read_bytes()]
    size = sum(map(len, written)) / 1e3
    assert re.fullmatch(
        rf"merged 2 adapters into out   {size:.0f} kB, \d+\.\d s, peak 123 MB, 6 modules of rank 7",
        first,
    )
    assert second == 'PeftModel.from_pretrained(AutoModel.from_pretrained("base"), "out")'
    assert third == 'model: "base+out"'
    namespace = {"PeftModel": peft.PeftModel, "AutoModel": AutoModel}
    assert isinstance(eval(second, namespace), peft.PeftModel)


def test_a_cut_is_told_tensor_by_tensor(bert: Bag) -> None:
    write_recipe(Path("recipe.yaml"), bert.recipe("linear", adapter_output={"rank": 2}))
    lines = boom_merge("recipe.yaml", "-o", "out").out.splitlines()
    assert lines[0].split() == ["tensor", "as", "rank", "kept"]
    query = next(line for line in lines if "layer.0.attention.self.query.weight" in line).split()
    assert query[1:3] == ["lora", "2"] and 0 < float(query[3]) < 100
    assert lines[-4].startswith("in all ")
    told = json.loads(boom_merge("recipe.yaml", "-o", "other", "--json").out)
    assert told["status"] == "done" and math.isclose(
        told["kept"], float(lines[-4].split()[2]) / 100, abs_tol=6e-4
    )
    assert len(told["tensors"]) == 6
    assert boom_merge("recipe.yaml", "-o", "third", "-q").out == ""


def test_recipes_of_models_and_adapters_may_run_together(bert: Bag) -> None:
    write_recipe(Path("one.yaml"), bert.recipe("linear"))
    write_recipe(Path("whole.yaml"), bert.recipe("linear", adapter_output=False))
    ran = boom_merge("one.yaml", "whole.yaml", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    assert Path("out/one", ADAPTER).is_file() and Path("out/whole/config.json").is_file()


def test_a_relative_base_counts_from_the_recipe(bert: Bag) -> None:
    Path("recipes").mkdir()
    recipe = bert.recipe("linear") | {"models": listed("../base+../lora0")}
    result = mergekit_embed.merge(write_recipe(Path("recipes/r.yaml"), recipe), "out")
    with (result.path / CONFIG).open() as file:
        assert (Path(json.load(file)["base_model_name_or_path"]) / "config.json").is_file()


def test_the_task_of_the_members_is_kept(bert: Bag) -> None:
    for adapter in bert.adapters:
        with changed_json(adapter / CONFIG) as config:
            config["task_type"] = "FEATURE_EXTRACTION"
    made(bert.recipe("linear"), Path("out"))
    assert json.loads(Path("out", CONFIG).read_text())["task_type"] == "FEATURE_EXTRACTION"


def test_the_plan_is_an_upper_estimate_and_reads_no_weight(bert: Bag) -> None:
    from mergekit_embed.recipe import load

    planned = mergekit_embed.plan_adapter(load(bert.recipe("multislerp")), "out")
    assert planned.bytes_in == sum(
        array.nbytes for adapter in bert.adapters for array in load_file(adapter / ADAPTER).values()
    )
    assert sorted(path.name for path in Path().iterdir()) == ["base", "lora0", "lora1"]
    assert {target.rank for target in planned.modules} == {7}
    assert len(planned.modules) == 2 * len(BERT_LINEAR)
