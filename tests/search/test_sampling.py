"""Optuna: it finds what is planted, trades axes off, continues, and writes the whole front."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_embed import merge
from mergekit_embed.errors import RecipeError
from mergekit_embed.recipe import load
from mergekit_embed.search import search
from mergekit_embed.search.box import Box
from mergekit_embed.search.load import load_search
from mergekit_embed.search.sampling import Sampling, front
from mergekit_embed.search.specs import Evaluation, Point

from .scenes import DATA, Kill, KilledError, dev_folders, recipe_of, write_recipe

START = Point(np.ones((1, 2)), np.ones(1), {"lambda": 0.3})
BOUNDS = {"weight": (0.0, 2.0), "lambda": (0.0, 2.0)}


def test_it_finds_the_least_of_a_bowl() -> None:
    strategy = Sampling(Box(BOUNDS, START), 120, 0, {}, 1.0)
    planted = np.array([0.5, 1.5, 1.0])
    values = []
    while (proposal := strategy.propose()) is not None:
        own = np.append(proposal.point.weights[0], proposal.point.others["lambda"])
        assert (own >= 0).all()
        assert (own <= 2).all()
        values.append(float(((own - planted) ** 2).sum()))
        strategy.tell(Evaluation(values[-1]))
    assert values[0] == pytest.approx((0.5**2) + (0.5**2) + 0.7**2)  # the recipe's own point
    assert min(values) < 0.05


def test_it_asks_for_the_same_points_after_a_break() -> None:
    axes = {"a": ["x"], "b": ["y", "z"]}

    def told(strategy: Sampling, count: int, before: int = 0) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            proposal = strategy.propose()
            assert proposal is not None
            again = strategy.propose()
            assert again is not None
            assert again.point.equals(proposal.point)
            own = proposal.point.others["lambda"]
            found.append(own)
            broken = before + len(found) == 5
            tasks = {"x": own, "y": -own, "z": own**2}
            strategy.tell(Evaluation(float("nan") if broken else own, tasks=tasks))
        return found

    def fresh() -> Sampling:
        return Sampling(Box(BOUNDS, START), 100, 3, axes, -1.0)

    whole = told(fresh(), 24)
    first = fresh()
    begun = told(first, 13)
    second = fresh()
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + told(second, 11, 13) == whole


points = st.lists(
    st.none() | st.fixed_dictionaries({"a": st.integers(0, 5), "b": st.integers(0, 5)}),
    max_size=12,
)


@given(points, st.sampled_from([1.0, -1.0]))
def test_a_front_is_what_nothing_beats(found: list[dict[str, float] | None], sign: float) -> None:
    chosen = front(found, sign)
    axes = list(next((one for one in found if one), {}))
    known = {i: tuple(sign * one[axis] for axis in axes) for i, one in enumerate(found) if one}
    kept = {known[i] for i in chosen}
    assert len(kept) == len(chosen)
    for values in known.values():  # each is on the front, or beaten by one that is
        better = {
            v for v in known.values() if v != values and v[0] <= values[0] and v[1] <= values[1]
        }
        assert (values in kept) == (not better)
    assert [known[i] for i in chosen] == sorted(kept)


def traded(root: Path, **search: Any) -> Path:
    content = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": f"m{i}"} for i in (1, 2, 3)],
        "search": {
            "strategy": "optuna",
            "objective": "dev",
            "dev": dev_folders(root),
            "parameters": {"density": [0.1, 1.0], "lambda": [0.2, 2.0]},
            "axes": {"retrieval": ["found"], "similarity": ["pairs"]},
            "evaluations": 14,
            **search,
        },
    }
    return write_recipe(root / "traded.yaml", content)


def test_every_point_of_the_front_is_a_recipe(family_folder: Path) -> None:
    found = search(traded(family_folder), family_folder / "out", device="cpu")
    judged = found.report["judged"]
    assert len(judged) == 14
    assert found.value == min(one["value"] for one in judged)
    told = found.report["front"]
    assert told
    for one, following in pairwise(told):
        assert one["axes"]["retrieval"] > following["axes"]["retrieval"]
        assert one["axes"]["similarity"] < following["axes"]["similarity"]
    files = sorted((family_folder / "out" / "front").iterdir())
    assert [file.name for file in files] == [f"{i + 1}.yaml" for i in range(len(told))]
    for file, one in zip(files, told, strict=True):
        assert one["axes"] == {
            "retrieval": judged[one["point"]]["tasks"]["found"],
            "similarity": judged[one["point"]]["tasks"]["pairs"],
        }
        recipe = load(file)
        own = judged[one["point"]]["parameters"]
        assert recipe.parameters["density"].scalar == own["density"]
    merge(files[0], family_folder / "merged")


def test_axes_may_be_losses_of_the_probe_set(family_folder: Path) -> None:
    own = {"axes": {"a": ["retrieval"], "b": ["sts", "classification"]}, "evaluations": 4}
    recipe = traded(family_folder, objective="loss", data=DATA, batch_size=8, dev=[], **own)
    found = search(recipe, family_folder / "out", device="cpu")
    first = found.report["front"][0]
    tasks = found.report["judged"][first["point"]]["tasks"]
    assert first["axes"]["b"] == pytest.approx((tasks["sts"] + tasks["classification"]) / 2)
    assert first["axes"]["a"] == min(one["tasks"]["retrieval"] for one in found.report["judged"])


def test_an_interrupted_search_continues_to_the_same_front(family_folder: Path) -> None:
    recipe = traded(family_folder)
    whole = search(recipe, family_folder / "whole", device="cpu")

    with pytest.raises(KilledError):
        search(recipe, family_folder / "out", device="cpu", progress=Kill(label="point 12"))
    continued = search(recipe, family_folder / "out", device="cpu")
    assert continued.resumed == 12
    assert continued.report["judged"] == whole.report["judged"]
    assert continued.report["front"] == whole.report["front"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"axes": {"a": ["found"]}}, "search.axes: needs two axes or more"),
        (
            {"axes": {"a": ["fuond"], "b": ["pairs"]}},
            'search.axes.a[0]: unknown task, did you mean "found"',
        ),
        ({"parameters": {}}, "search.parameters: optuna needs"),
    ],
)
def test_axes_that_are_wrong_are_told(
    family_folder: Path, own: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_search(traded(family_folder, **own))
    assert message in str(raised.value)


def test_axes_are_of_optuna(family_folder: Path) -> None:
    recipe = recipe_of(family_folder, axes={"a": ["questions"], "b": ["similar"]})
    with pytest.raises(RecipeError, match=r"search.axes: is of the strategy optuna"):
        load_search(recipe)
