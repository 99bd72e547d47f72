"""Members in groups: merged within each group first, and then the groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import reference
from reference import check_numerics
from tensor_folders import (
    SHAPES,
    Tensors,
    largest,
    random_model,
    raw_bytes,
    read_folder,
    stored,
    write_folder,
)

import mergekit_embed
from mergekit_embed.checkpoint import places
from mergekit_embed.errors import PlanError, RecipeError
from mergekit_embed.methods import Gram, available
from mergekit_embed.recipe.reference import json_schema

GROUPS = ["retrieval", "similarity", "retrieval", None, "similarity"]
WEIGHTS = [0.3, 1.0, 1.9, 0.7, 2.2]
MEMBERS = range(len(GROUPS))


class Zoo:
    """A base and five fine-tunes that went different ways."""

    def __init__(self, root: Path, dtype: str):
        self.dtype = dtype
        base = random_model(0)
        self.base = stored(base, dtype)
        self.members = [
            stored(random_model(seed + 1, around=base, scale=0.01 * (seed + 1)), dtype)
            for seed in MEMBERS
        ]
        self.base_path = write_folder(root / "base", self.base, dtype)
        self.paths = [
            write_folder(root / f"m{i}", member, dtype) for i, member in enumerate(self.members)
        ]

    def recipe(self, **more: Any) -> dict[str, Any]:
        models: list[dict[str, Any]] = []
        for path, weight, group in zip(self.paths, WEIGHTS, GROUPS, strict=True):
            model = {"model": str(path), "parameters": {"weight": weight}}
            models.append(model if group is None else {**model, "group": group})
        common = {"merge_method": "delta_guided", "base_model": str(self.base_path)}
        return {**common, "models": models, **more}


@pytest.fixture(scope="module", params=["F32", "BF16"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp(request.param), request.param)


def merged_twice(members: Sequence[Sequence[Any]], base: Sequence[Any], gamma: float) -> list[Any]:
    """Tensors of one vector: every group merged to a model, and these models merged."""
    found, weights = [], []
    for own in ([0, 2], [1, 4], [3]):
        ours = [WEIGHTS[k] for k in own]
        found.append(
            reference.delta_guided_grouped([members[k] for k in own], base, ours, gamma=gamma)
        )
        weights.append(sum(ours))
    return reference.delta_guided_grouped(found, base, weights, gamma=gamma)


def by_row(zoo: Zoo, name: str, gamma: float) -> Any:
    base = zoo.base[name]
    width = base.shape[-1] if base.shape else 1
    rows = [model[name].reshape(-1, width) for model in (*zoo.members, zoo.base)]
    merged = [
        merged_twice([[table[i]] for table in rows[:-1]], [rows[-1][i]], gamma)[0]
        for i in range(len(rows[-1]))
    ]
    return np.array(merged).reshape(base.shape)


@pytest.mark.parametrize("gamma", [1.0, -1.0, 2.5])
@pytest.mark.parametrize("unit", ["row", "tensor", "layer", "model"])
def test_groups_are_merged_as_if_each_had_been_merged_by_itself_first(
    unit: str, gamma: float, zoo: Zoo, tmp_path: Path
) -> None:
    recipe = zoo.recipe(granularity=unit, parameters={"gamma": gamma})
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    vectors: dict[str, list[str]] = {}
    for name, place in places(SHAPES).items():
        key = {"tensor": name, "row": name, "layer": place.group}.get(unit, "all")
        vectors.setdefault(key, []).append(name)
    exact: Tensors = {}
    for names in vectors.values():
        if unit == "row":
            exact[names[0]] = by_row(zoo, names[0], gamma)
            continue
        members = [[member[name] for name in names] for member in zoo.members]
        merged = merged_twice(members, [zoo.base[name] for name in names], gamma)
        exact |= dict(zip(names, merged, strict=True))
    result = read_folder(tmp_path / "out")
    for name in SHAPES:
        magnitude = largest([zoo.base, *zoo.members], name)
        check_numerics(result[name], exact[name], zoo.dtype, magnitude)


def test_one_pass_gives_what_two_merges_give(zoo: Zoo, tmp_path: Path) -> None:
    """The same through folders, as far as the folder between them rounds."""
    stages = []
    for group in ("retrieval", "similarity"):
        own = [m for m in zoo.recipe()["models"] if m.get("group") == group]
        weight = sum(m["parameters"]["weight"] for m in own)
        first = {**zoo.recipe(out_dtype="float64"), "models": own}
        mergekit_embed.merge(first, tmp_path / group, device="cpu")
        stages.append({"model": str(tmp_path / group), "parameters": {"weight": weight}})
    lone = {"model": str(zoo.paths[3]), "parameters": {"weight": WEIGHTS[3]}}
    two = {**zoo.recipe(out_dtype="float64"), "models": [*stages, lone]}
    mergekit_embed.merge(two, tmp_path / "two", device="cpu")
    mergekit_embed.merge(zoo.recipe(out_dtype="float64"), tmp_path / "one", device="cpu")
    one, other = read_folder(tmp_path / "one"), read_folder(tmp_path / "two")
    for name in SHAPES:
        assert np.allclose(one[name], other[name], rtol=0, atol=1e-13), name


def test_groups_of_one_change_nothing(zoo: Zoo, tmp_path: Path) -> None:
    grouped = zoo.recipe()
    for index, model in enumerate(grouped["models"]):
        model["group"] = f"only {index}"
    alone = zoo.recipe()
    for model in alone["models"]:
        model.pop("group", None)
    mergekit_embed.merge(grouped, tmp_path / "grouped", device="cpu")
    mergekit_embed.merge(alone, tmp_path / "alone", device="cpu")
    assert raw_bytes(tmp_path / "grouped") == raw_bytes(tmp_path / "alone")


def test_merging_a_model_with_itself_in_groups_gives_its_bytes(zoo: Zoo, tmp_path: Path) -> None:
    recipe = zoo.recipe()
    for model in recipe["models"]:
        model["model"] = str(zoo.paths[0])
    mergekit_embed.merge(recipe, tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(zoo.paths[0])


def grouped(deltas: list[list[float]], groups: list[int], **more: Any) -> Any:
    vectors = np.array(deltas)
    options = {"weight": np.ones(len(deltas)), **more}
    method = available()["delta_guided"].function
    return method(Gram(vectors @ vectors.T), groups=np.array(groups), **options)


def test_a_group_that_cancels_takes_no_part_where_short_ways_count_most() -> None:
    step = 0.1
    third = [-step * (1 + 2**-52), 0.0]  # what rounding leaves of a delta of zero
    found = grouped([[step, 0.0], third, [0.0, 1.0]], [0, 0, 1], gamma=-1.0)
    assert np.array_equal(found, [0.0, 0.0, 1.0])


def test_a_group_without_weight_takes_no_part() -> None:
    weight = np.array([0.0, 0.0, 2.0])
    found = grouped([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [0, 0, 1], weight=weight, gamma=-1.0)
    assert np.array_equal(found, [0.0, 0.0, 1.0])


def test_a_group_of_deltas_of_zero_leaves_the_others_their_share() -> None:
    found = grouped([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [0, 0, 1])
    assert np.array_equal(found, [0.0, 0.0, 1.0])
    assert np.array_equal(grouped([[0.0], [0.0]], [0, 0]), [0.0, 0.0])


MODELS: list[dict[str, Any]] = [
    {"model": "a", "group": "x"},
    {"model": "b", "group": "x"},
    {"model": "c"},
]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"merge_method": "linear", "models": MODELS},
            "models[0].group: linear knows no groups; delta_guided does",
        ),
        (
            {"models": [*MODELS, {"model": "base", "group": "x"}]},
            "models[3].group: the base is where deltas start from, and is in no group",
        ),
        ({"models": MODELS, "granularity": "element"}, "models[0].group: a group is measured as"),
        ({"models": [{"model": "a", "group": ""}]}, "models[0].group: must not be empty"),
        ({"models": [{"model": "a", "group": 3}]}, "models[0].group: must be text, not 3"),
        ({"models": [{"model": "a", "grup": "x"}]}, 'unknown key, did you mean "group"?'),
    ],
)
def test_groups_that_make_no_sense_are_refused(recipe: dict[str, Any], message: str) -> None:
    whole = {"merge_method": "delta_guided", "base_model": "base", **recipe}
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.load_recipe(whole)
    assert message in str(caught.value)


def test_the_schema_knows_which_method_has_groups() -> None:
    common = {"base_model": "base", "models": MODELS}
    jsonschema.validate({"merge_method": "delta_guided", **common}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"merge_method": "linear", **common}, json_schema())


def test_the_l1_norm_is_refused_for_groups_before_anything_is_read(
    zoo: Zoo, tmp_path: Path
) -> None:
    recipe = zoo.recipe(parameters={"norm": "l1"})
    with pytest.raises(PlanError, match="groups cannot be measured by `norm: l1`"):
        mergekit_embed.plan(recipe, tmp_path / "out")
