"""A grid of models, and several recipes, in one run that reads every input once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import boom_merge, listed, set_limits, write_recipe
from tensor_folders import random_model, raw_bytes, stored, write_folder

import mergekit_embed
from mergekit_embed import RecipeError, UsageError, merge, merge_many

BASE = random_model(0)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A base and four members, here."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("base"), stored(BASE, "BF16"), "BF16")
    for number in range(1, 5):
        member = stored(random_model(number, BASE), "BF16")
        write_folder(Path(f"m{number}"), member, "BF16", shards=number)
    return [f"m{number}" for number in range(1, 5)]


def grid(models: list[str], method: str = "ties", **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "base_model": "base", "models": listed(*models)} | more


def input_bytes(*folders: str) -> int:
    """Bytes of all stored tensors."""
    return sum(len(raw) for folder in folders for raw in raw_bytes(Path(folder)).values())


def test_a_sweep_is_a_model_for_every_combination(models: list[str]) -> None:
    sweep = {"density": [0.2, 0.5, 0.8], "lambda": [0.8, 1.0]}
    results = merge_many(grid(models, sweep=sweep), "all")
    names = [f"density-{d}_lambda-{scale}" for d in (0.2, 0.5, 0.8) for scale in (0.8, 1.0)]
    assert [result.path for result in results] == [Path("all") / name for name in names]
    for density in sweep["density"]:
        for scale in sweep["lambda"]:
            alone = grid(models, parameters={"density": density, "lambda": scale})
            merge(alone, f"alone/{density}-{scale}")
            assert raw_bytes(Path(f"alone/{density}-{scale}")) == raw_bytes(
                Path(f"all/density-{density}_lambda-{scale}")
            )


@pytest.mark.parametrize("keep", [0, 2**40])
def test_eight_recipes_read_every_input_byte_once(
    models: list[str], monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """Without memory for what was read too, where one pass is enough."""
    set_limits(monkeypatch, keep=keep)
    weights = [[{"model": m, "parameters": {"weight": w}} for m in models] for w in range(1, 8)]
    recipes = [{"merge_method": "linear", "models": listed(*models)}]
    recipes += [{"merge_method": "linear", "models": members} for members in weights]
    recipes += [{"merge_method": "median", "models": listed(*models)}]
    if keep:
        recipes += [grid(models, method) for method in ("ties", "multislerp", "della", "sce")]
    loaded = [
        write_recipe(Path(f"recipe-{index}.yaml"), recipe) for index, recipe in enumerate(recipes)
    ]
    results = merge_many(loaded, "all")
    read = {result.bytes_read for result in results}
    assert read == {input_bytes(*models, *(["base"] if keep else []))}
    for path, recipe in zip(loaded, recipes, strict=True):
        merge(recipe, f"alone/{path.stem}")
        assert raw_bytes(Path(f"all/{path.stem}")) == raw_bytes(Path(f"alone/{path.stem}"))


@pytest.mark.parametrize("method", ["ties", "multislerp", "breadcrumbs", "sce", "della"])
def test_a_sweep_takes_no_more_passes_than_one_of_its_models(
    models: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    set_limits(monkeypatch, keep=0)
    (alone,) = merge_many([grid(models, method)], "alone")
    sweep = {"models[1].parameters.weight": [0.25, 0.5, 1.0, 2.0]}
    results = merge_many(grid(models, method, sweep=sweep), "all")
    assert len(results) == 4
    assert {result.bytes_read for result in results} == {alone.bytes_read}


def test_granularity_of_the_whole_model_is_measured_once_for_all(models: list[str]) -> None:
    recipe = grid(models, "multislerp", granularity="model")
    alone = merge(recipe, "alone")
    sweep = {"models[0].parameters.weight": [0.5, 1.0, 2.0]}
    results = merge_many(recipe | {"sweep": sweep}, "all")
    assert results[0].bytes_read == alone.bytes_read
    assert raw_bytes(Path("all/models-0-weight-1.0")) == raw_bytes(Path("alone"))


def test_anything_can_be_swept(models: list[str]) -> None:
    sweep = {"merge_method": ["ties", "dare_ties"], "seed": [1, 2], "density": [[0.2, 0.9]]}
    results = merge_many(grid(models, sweep=sweep), "all")
    assert [result.path.name for result in results] == [
        f"merge_method-{method}_seed-{seed}_density-0.2-0.9"
        for method in ("ties", "dare_ties")
        for seed in (1, 2)
    ]
    ties, again, dare, other = (raw_bytes(result.path) for result in results)
    assert ties == again
    assert dare != other


def test_a_nested_recipe_is_merged_once_for_all_points(models: list[str]) -> None:
    inner = {"merge_method": "slerp", "models": listed("m1", "m2"), "parameters": {"t": 0.3}}
    recipe = {
        "merge_method": "linear",
        "models": [{"model": inner}, *listed("m3")],
        "sweep": {"models[1].parameters.weight": [0.5, 1.0, 2.0]},
    }
    results = merge_many(recipe, "all")
    assert {result.bytes_read for result in results} == {input_bytes("m1", "m2", "m3")}
    recipe.pop("sweep")
    merge(recipe, "alone")
    assert raw_bytes(Path("all/models-1-weight-1.0")) == raw_bytes(Path("alone"))


def test_the_command_sweeps(models: list[str]) -> None:
    write_recipe(Path("grid.yaml"), grid(models, sweep={"density": [0.2, 0.8]}))
    ran = boom_merge("grid.yaml", "--json")
    assert ran.code == 0
    done = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["point"] for one in done] == ["density-0.2", "density-0.8"]
    assert [one["output"] for one in done] == [
        "merged/grid/density-0.2",
        "merged/grid/density-0.8",
    ]
    ran = boom_merge("grid.yaml", "--overwrite")
    assert ran.code == 0
    assert ran.last.startswith("2 models in one run")
    assert ran.last.endswith("read once")
    again = boom_merge("grid.yaml", "-o", "elsewhere", "--dry-run")
    assert again.code == 0
    assert "elsewhere/density-0.8" in again.out
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("sweep", "where", "message"),
    [
        ("{densty: [0.2]}", "5:9", 'did you mean "density"?'),
        ("{density: []}", "5:18", "must list the values to try"),
        ("{density: 0.5}", "5:18", "must list the values to try"),
        ("{density: [0.2, 0.2]}", "5:24", "is there twice"),
        ("{density: [0.2, 1.5]}", "5:24", "parameters.density: must be at most 1"),
        ("{'models[7].parameters.weight': [1]}", "5:9", "is no parameter"),
        ("{output: [a, b]}", "5:9", "is no parameter"),
        ("3", "5:8", "must name values to try"),
    ],
)
def test_a_wrong_sweep_is_told_where_it_is(
    models: list[str], sweep: str, where: str, message: str
) -> None:
    Path("recipe.yaml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        f"  [{{model: m1}}, {{model: m2}}]\nsweep: {sweep}\n"
    )
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.load_recipes("recipe.yaml")
    (problem,) = caught.value.problems
    assert problem.where == f"recipe.yaml:{where}"
    assert message in problem.message


def test_a_huge_grid_is_refused(models: list[str]) -> None:
    sweep = {"density": [i / 100 for i in range(1, 90)], "lambda": list(range(1, 90))}
    with pytest.raises(RecipeError, match="7,921 models"):
        mergekit_embed.load_recipes(grid(models, sweep=sweep))


def test_one_model_is_wanted_and_a_sweep_is_given(models: list[str]) -> None:
    recipe = grid(models, sweep={"density": [0.2, 0.8]})
    with pytest.raises(RecipeError, match="merge_many"):
        merge(recipe, "out")
    nested = {"merge_method": "passthrough", "models": [{"model": recipe}]}
    with pytest.raises(RecipeError, match="cannot have a sweep"):
        merge(nested, "out")


def test_outputs_within_each_other_are_refused(models: list[str]) -> None:
    soup = {"merge_method": "linear", "models": listed(*models)}
    with pytest.raises(UsageError, match="another `output`"):
        merge_many([soup | {"output": "out"}, soup | {"output": "out/inner"}])


def test_when_one_fails_no_output_is_touched(models: list[str]) -> None:
    broken = random_model(9)
    broken["encoder.layer.2.scale"] = broken["encoder.layer.2.scale"] * float("nan")
    write_folder(Path("broken"), broken, "F32")
    soup = {"merge_method": "linear", "models": listed(*models)}
    merge(soup, "all/first")
    before = raw_bytes(Path("all/first"))
    write_recipe(Path("first.yaml"), soup | {"dtype": "float32"})
    write_recipe(Path("second.yaml"), {"merge_method": "linear", "models": listed("broken", "m1")})
    with pytest.raises(mergekit_embed.NonFiniteError) as caught:
        merge_many(["first.yaml", "second.yaml"], "all", overwrite=True)
    assert caught.value.recipe == "second.yaml"
    assert raw_bytes(Path("all/first")) == before
    assert [path.name for path in Path("all").iterdir()] == ["first"]
