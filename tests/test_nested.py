"""Members that are recipes: the bytes of the same merges by hand, through folders of float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import listed, set_limits, write_recipe
from tensor_folders import random_model, raw_bytes, stored, write_folder
from tiny_models import build_minilm

import mergekit_embed
from mergekit_embed import NonFiniteError, RecipeError, merge

BASE = random_model(0)


@pytest.fixture(params=["F32", "BF16", "F64"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A base and four members."""
    paths = {"base": write_folder(tmp_path / "base", stored(BASE, request.param), request.param)}
    for number in range(1, 5):
        member = stored(random_model(number, BASE), request.param)
        paths[f"m{number}"] = write_folder(tmp_path / f"m{number}", member, request.param)
    return {name: str(path) for name, path in paths.items()}


def inner_recipes(models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    two = listed(models["m1"], models["m2"])
    based = {"base_model": models["base"], "models": two}
    return {
        "linear": {"merge_method": "linear", "models": two},
        "slerp": {"merge_method": "slerp", "models": two, "parameters": {"t": 0.3}},
        "rows": {"merge_method": "multislerp", "models": two, "granularity": "row"},
        "model": {"merge_method": "multislerp", "models": two, "granularity": "model"},
        "columns": {
            "merge_method": "nuslerp",
            "models": two,
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        },
        "ties": {"merge_method": "ties", **based, "parameters": {"density": 0.4}},
        "della": {"merge_method": "della", **based, "parameters": {"density": 0.5}, "seed": 7},
        "arcee_fusion": {
            "merge_method": "arcee_fusion",
            "base_model": models["base"],
            "models": listed(models["m1"]),
        },
    }


def outer_recipes(first: Any, models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    members = [{"model": first}, *listed(models["m3"], models["m4"])]
    based = {"base_model": models["base"], "models": members}
    return {
        "linear": {"merge_method": "linear", "models": members},
        "multislerp": {"merge_method": "multislerp", **based},
        "layer": {"merge_method": "multislerp", **based, "granularity": "layer"},
        "ties": {"merge_method": "ties", **based, "parameters": {"density": 0.3}},
        "della_linear": {"merge_method": "della_linear", **based, "parameters": {"density": 0.6}},
    }


INNER = ["linear", "slerp", "rows", "model", "columns", "ties", "della", "arcee_fusion"]
OUTER = ["linear", "multislerp", "layer", "ties", "della_linear"]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_a_nested_recipe_gives_the_bytes_of_merges_by_hand(
    models: dict[str, str], tmp_path: Path, inner: str, outer: str
) -> None:
    within = inner_recipes(models)[inner]
    is_double = (Path(models["m1"]) / "model.safetensors").stat().st_size > 900_000
    wide = {"out_dtype": "float64" if is_double else "float32"}
    merge(within | wide, tmp_path / "by-hand")
    merge(outer_recipes(str(tmp_path / "by-hand"), models)[outer] | wide, tmp_path / "twice")
    merge(outer_recipes(within, models)[outer] | wide, tmp_path / "once")
    assert raw_bytes(tmp_path / "once") == raw_bytes(tmp_path / "twice")


@pytest.mark.parametrize("keep", [0, 2**40])
def test_what_is_kept_in_memory_does_not_show(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    recipe = outer_recipes(inner_recipes(models)["della"], models)["ties"]
    merge(recipe, tmp_path / "usual")
    set_limits(monkeypatch, blocks=1, keep=keep)
    merge(recipe, tmp_path / "other")
    assert raw_bytes(tmp_path / "usual") == raw_bytes(tmp_path / "other")


def test_three_deep_in_files_of_their_own(models: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "parts"
    folder.mkdir(parents=True)
    names = {name: str(Path(path).name) for name, path in models.items()}
    here = {name: f"../../{path}" for name, path in names.items()}
    write_recipe(folder / "deepest.yaml", inner_recipes(here)["slerp"])
    middle = {"merge_method": "linear", "models": listed("deepest.yaml", here["m3"])}
    write_recipe(folder / "middle.yml", middle)
    outer = {"merge_method": "linear", "models": listed("parts/middle.yml", f"../{names['m4']}")}
    write_recipe(tmp_path / "recipes" / "outer.yaml", outer)
    result = merge(tmp_path / "recipes" / "outer.yaml", tmp_path / "out")
    assert result.members == 2
    assert result.bytes_read == result.bytes_in
    deepest = inner_recipes(models)["slerp"]
    in_place = {"merge_method": "linear", "models": [{"model": deepest}, *listed(models["m3"])]}
    whole = {"merge_method": "linear", "models": [{"model": in_place}, *listed(models["m4"])]}
    merge(whole, tmp_path / "in-place")
    assert raw_bytes(tmp_path / "out") == raw_bytes(tmp_path / "in-place")


def test_the_base_may_be_a_recipe(models: dict[str, str], tmp_path: Path) -> None:
    base = {"merge_method": "linear", "models": listed(models["m1"], models["m2"])}
    members = {"merge_method": "task_arithmetic", "models": listed(models["m3"], models["m4"])}
    is_double = (Path(models["m1"]) / "model.safetensors").stat().st_size > 900_000
    wide = {"out_dtype": "float64" if is_double else "float32"}
    merge(base | wide, tmp_path / "base-by-hand")
    merge(members | wide | {"base_model": str(tmp_path / "base-by-hand")}, tmp_path / "twice")
    merge(members | wide | {"base_model": base}, tmp_path / "once")
    assert raw_bytes(tmp_path / "once") == raw_bytes(tmp_path / "twice")


def test_the_result_is_stored_as_the_nested_recipe_would_be(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        build_minilm(tmp_path / f"m{number}", number)
    paths = [str(tmp_path / f"m{number}") for number in (1, 2, 3)]
    inner = {"merge_method": "linear", "models": listed(*paths[:2]), "dtype": "bfloat16"}
    outer = {"merge_method": "linear", "models": [{"model": inner}, *listed(paths[2])]}
    merge(outer, tmp_path / "out")
    header = (tmp_path / "out" / "model.safetensors").read_bytes()[8:3000]
    assert b'"BF16"' in header
    assert b'"F32"' not in header
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "bfloat16" in {config.get("dtype"), config.get("torch_dtype")}


def test_layers_and_positions_of_a_nested_recipe_are_told(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for number in (1, 2, 3):
        build_minilm(tmp_path / f"m{number}", number, layers=3)
    paths = [str(tmp_path / f"m{number}") for number in (1, 2, 3)]
    sources = [{"model": path, "layer_range": [0, 2]} for path in paths[:2]]
    inner = {
        "merge_method": "linear",
        "slices": [{"sources": sources}],
        "post": [{"extend_positions": 100}],
    }
    merge(inner, tmp_path / "by-hand")
    outer: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": inner}]}
    merge(outer, tmp_path / "once")
    assert raw_bytes(tmp_path / "once") == raw_bytes(tmp_path / "by-hand")
    assert (tmp_path / "once/config.json").read_text() == (
        tmp_path / "by-hand/config.json"
    ).read_text()
    loaded = SentenceTransformer(str(tmp_path / "once"))
    assert loaded.max_seq_length == 100
    assert np.isfinite(loaded.encode(["the quick brown fox"])).all()


def test_what_is_wrong_in_a_nested_recipe_is_told_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text(
        "merge_method: linear\nmodels:\n  - model: nowhere/at-all/here\n    wait: 1\n"
    )
    (tmp_path / "outer.yaml").write_text(
        "merge_method: linear\nmodels:\n  - model: inner.yaml\n  - model: missing.yaml\n"
        "  - model: {merge_method: linea, models: [{model: x}]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.load_recipe(tmp_path / "outer.yaml")
    told = {
        (Path(p.where.partition(":")[0]).name, p.where.partition(":")[2]): p.message
        for p in caught.value.problems
    }
    assert "unknown key" in told["inner.yaml", "4:5"]
    assert "there is no recipe" in told["outer.yaml", "4:12"]
    assert 'models[2].model.merge_method: "linea"' in told["outer.yaml", "5:27"]


def test_a_recipe_made_of_itself_is_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        recipe = {"merge_method": "passthrough", "models": listed(f"{other}.yaml")}
        write_recipe(tmp_path / f"{name}.yaml", recipe)
    with pytest.raises(RecipeError, match=r"a\.yaml is made of itself"):
        mergekit_embed.load_recipe(tmp_path / "a.yaml")


def test_not_a_number_deep_inside_names_the_member(tmp_path: Path) -> None:
    broken = random_model(1)
    broken["encoder.layer.0.attention.self.query.bias"][3] = np.nan
    first = write_folder(tmp_path / "broken", broken, "F32")
    second = write_folder(tmp_path / "fine", random_model(2), "F32")
    inner = {"merge_method": "linear", "models": listed(first, second)}
    outer = {"merge_method": "linear", "models": [{"model": inner}, *listed(second)]}
    with pytest.raises(NonFiniteError, match=r"broken: tensor .*query\.bias"):
        merge(outer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
