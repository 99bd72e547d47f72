"""CMA-ES: it finds what is planted, judges what would be merged, and continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergekit_embed import merge
from mergekit_embed.errors import RecipeError
from mergekit_embed.recipe import load
from mergekit_embed.search import search
from mergekit_embed.search.box import Box
from mergekit_embed.search.by_merging import Merger
from mergekit_embed.search.evolution import Evolving
from mergekit_embed.search.load import load_search
from mergekit_embed.search.specs import Evaluation, Point

from .scenes import Kill, KilledError, opened_scene, recipe_of

TIES = {"density": [0.1, 1.0], "lambda": [0.2, 2.0]}


def evolved(root: Path, method: str = "ties", **search: Any) -> Path:
    recipe = recipe_of(root, method, strategy="cma_es", **search)
    text = recipe.read_text()
    recipe.write_text(text.replace("  steps: 12\n", "").replace("  evaluate_every: 4\n", ""))
    return recipe


def test_it_finds_the_least_of_a_bowl() -> None:
    bounds = {"weight": (0.0, 2.0), "lambda": (0.0, 2.0)}
    start = Point(np.ones((1, 3)), np.ones(1), {"lambda": 0.3})
    strategy = Evolving(Box(bounds, start), 400, 0)
    planted = np.array([0.3, 1.4, 0.9, 1.2])
    best = np.inf
    while (proposal := strategy.propose()) is not None:
        own = np.append(proposal.point.weights[0], proposal.point.others["lambda"])
        assert (own >= 0).all()
        assert (own <= 2).all()
        value = float(((own - planted) ** 2 * [1, 10, 3, 5]).sum())
        best = min(best, value)
        strategy.tell(Evaluation(value))
    assert best < 1e-4


def test_it_asks_for_the_same_points_after_a_break() -> None:
    def values(strategy: Evolving, count: int, before: int = 0) -> list[float]:
        found = []
        for _ in range(count):
            proposal = strategy.propose()
            assert proposal is not None
            found.append(proposal.point.others["density"])
            np.random.random()  # somebody else draws too
            strategy.tell(Evaluation(float("nan") if before + len(found) == 5 else found[-1] ** 2))
        return found

    start = Point(np.ones((1, 3)), np.ones(1), {"density": 0.5})

    def fresh() -> Evolving:
        return Evolving(Box({"density": (0.1, 1.0), "lambda": (0.0, 1.0)}, start), 100, 3)

    whole = values(fresh(), 20)
    first = fresh()
    begun = values(first, 9)
    second = fresh()
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + values(second, 11, 9) == whole


def test_a_point_is_the_model_that_a_merge_there_gives(family_folder: Path) -> None:
    recipe = evolved(family_folder, parameters=TIES)
    with opened_scene(recipe) as (_, scene):
        merger = Merger(scene.plan, dict(scene.embedder.parameters()), "cpu")
        merger.stand(Point(np.ones((1, 3)), np.ones(1), {"density": 0.37, "lambda": 1.2}))
        plain = {
            "merge_method": "ties",
            "base_model": str(family_folder / "base"),
            "models": [{"model": str(family_folder / f"m{i}")} for i in (1, 2, 3)],
            "parameters": {"density": 0.37, "lambda": 1.2},
        }
        merged = merge(plain, family_folder / "plain").path
        wanted = load_file(merged / "model.safetensors")
        dense = load_file(merged / "2_Dense" / "model.safetensors")
        wanted |= {f"2_Dense/{name}": one for name, one in dense.items()}
        found = scene.position.flat()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], one) for name, one in wanted.items())


@pytest.mark.parametrize(
    ("method", "bounds"),
    [
        ("ties", TIES),
        ("task_arithmetic", {"weight": [-0.5, 1.5]}),
        ("multislerp", {"weight": [0.1, 2]}),
    ],
)
def test_what_it_finds_is_a_plain_recipe(
    family_folder: Path, method: str, bounds: dict[str, list[float]]
) -> None:
    recipe = evolved(family_folder, method, parameters=bounds, evaluations=14)
    found = search(recipe, family_folder / "out", device="cpu")
    judged = found.report["judged"]
    assert len(judged) == 14
    assert found.value == min(one["value"] for one in judged)
    plain = load(found.recipe)
    for name, (least, most) in bounds.items():
        values = (
            [m.parameters[name].scalar for m in plain.members]
            if name == "weight"
            else [plain.parameters[name].scalar]
        )
        assert all(least <= value <= most for value in values)
    merge(found.recipe, family_folder / "merged")


def test_an_interrupted_evolution_continues(family_folder: Path) -> None:
    recipe = evolved(family_folder, parameters=TIES, evaluations=12)
    whole = search(recipe, family_folder / "whole", device="cpu")

    with pytest.raises(KilledError):
        search(recipe, family_folder / "out", device="cpu", progress=Kill(label="point 7"))
    continued = search(recipe, family_folder / "out", device="cpu")
    assert continued.resumed == 7
    assert continued.report["judged"] == whole.report["judged"]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "search.parameters: cma_es needs"),
        ({"densty": [0, 1]}, 'search.parameters.densty: unknown parameter, did you mean "density"'),
        ({"density": [0.5, 0.5]}, "search.parameters.density: the least, 0.5, is not below"),
        ({"density": [0.5, 1.5]}, "search.parameters.density: must be at most 1"),
        ({"density": [0.5]}, "search.parameters.density: "),
        ({"normalize": [0, 1]}, "search.parameters.normalize: unknown parameter"),
    ],
)
def test_bounds_that_are_wrong_are_told(
    tmp_path: Path, bounds: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_search(evolved(tmp_path, parameters=bounds))
    assert message in str(caught.value)
