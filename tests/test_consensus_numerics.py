"""Whole merges by the elementwise methods, against the float64 references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_consensus as reference
from helpers import merged_within_limits
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

WEIGHTS = [0.3, 1.0, 1.9]
SEED = 7

Expected = Callable[[Sequence[Any], Any, str], Any]


def _drawn(function: Any, **options: Any) -> Expected:
    def expected(members: Sequence[Any], base: Any, name: str) -> Any:
        return function(members, base, WEIGHTS, **options, seed=SEED, tensor=name)

    return expected


THREE = [0.4, 0.4, 0.4]
EPSILON = [0.15, 0.15, 0.15]

CASES: dict[str, tuple[dict[str, Any], int, Expected]] = {
    # name: (parameters, members, reference of one tensor)
    "dare_linear": ({"density": 0.4}, 3, _drawn(reference.dare, densities=THREE)),
    "dare_linear exact": (
        {"density": 0.4, "rescale": "exact", "lambda": 0.5},
        3,
        _drawn(reference.dare, densities=THREE, rescale="exact", lam=0.5),
    ),
    "dare_linear means": (
        {"density": 0.4, "normalize": True, "rescale": False},
        3,
        _drawn(reference.dare, densities=THREE, rescale=False, normalize=True),
    ),
    "dare_ties": ({"density": 0.4}, 3, _drawn(reference.dare, densities=THREE, vote=True)),
    "della_linear": (
        {"density": 0.4},
        3,
        _drawn(reference.della, densities=THREE, epsilons=EPSILON, normalize=False, vote=False),
    ),
    "della": (
        {"density": 0.4, "lambda": 1.5},
        3,
        _drawn(
            reference.della,
            densities=THREE,
            epsilons=EPSILON,
            normalize=True,
            vote=True,
            lam=1.5,
        ),
    ),
    "breadcrumbs": (
        {"density": 0.4, "gamma": 0.05},
        3,
        lambda m, b, n: reference.breadcrumbs(m, b, WEIGHTS, THREE, [0.05] * 3),
    ),
    "breadcrumbs whole": (
        {},
        3,
        lambda m, b, n: reference.breadcrumbs(m, b, WEIGHTS, [1.0] * 3, [0.01] * 3),
    ),
    "breadcrumbs_ties": (
        {"density": 0.4, "gamma": 0.0, "rescale": True, "normalize": True},
        3,
        lambda m, b, n: reference.breadcrumbs(
            m, b, WEIGHTS, THREE, [0.0] * 3, rescale=True, normalize=True, vote=True
        ),
    ),
    "sce": ({"select_topk": 0.5}, 3, lambda m, b, n: reference.sce(m, b, select_topk=0.5)),
    "sce whole": (
        {"normalize": True},
        3,
        lambda m, b, n: reference.sce(m, b, normalize=True),
    ),
    "median": ({}, 3, lambda m, b, n: reference.median(m)),
    "median of two": ({}, 2, lambda m, b, n: reference.median(m)),
    "trimmed_mean": (
        {"trim": 0.34},
        3,
        lambda m, b, n: reference.trimmed_mean(m, trim=0.34),
    ),
    "nearswap": ({"t": 0.001}, 1, lambda m, b, n: reference.nearswap(m[0], b, 0.001)),
    "arcee_fusion": ({}, 1, lambda m, b, n: reference.arcee_fusion(m[0], b)),
    "ram": ({"epsilon": 0.001}, 3, lambda m, b, n: reference.ram(m, b, epsilon=0.001)),
    "ramplus_tl": (
        {"epsilon": 0.002},
        3,
        lambda m, b, n: reference.ramplus_tl(m, b, epsilon=0.002),
    ),
}

UNWEIGHTED = ("sce", "median", "trimmed_mean", "nearswap", "arcee_fusion", "ram", "ramplus_tl")
BASELESS = ("median", "trimmed_mean")


class Zoo:
    """A base and three fine-tunes of it, stored as one type."""

    def __init__(self, root: Path, dtype: str):
        self.dtype = dtype
        base = random_model(0)
        self.base = stored(base, dtype)
        self.members = [stored(random_model(seed, around=base), dtype) for seed in (1, 2, 3)]
        self.base_path = write_folder(root / "base", self.base, dtype)
        self.paths = [
            write_folder(root / f"member{i}", member, dtype)
            for i, member in enumerate(self.members)
        ]


@pytest.fixture(scope="module", params=["F32", "BF16", "F64"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp(request.param), request.param)


def recipe_for(name: str, paths: Sequence[Path], base: Path) -> dict[str, Any]:
    parameters, _, _ = CASES[name]
    method = name.split(" ")[0]
    models: list[dict[str, Any]] = [{"model": str(path)} for path in paths]
    if method not in UNWEIGHTED:
        for model, weight in zip(models, WEIGHTS, strict=False):
            model["parameters"] = {"weight": weight}
    recipe = {"merge_method": method, "models": models, "parameters": parameters, "seed": SEED}
    return recipe if method in BASELESS else {**recipe, "base_model": str(base)}


@pytest.mark.parametrize("name", CASES)
def test_every_method_equals_its_float64_reference(name: str, zoo: Zoo, tmp_path: Path) -> None:
    _, count, expected = CASES[name]
    mergekit_embed.merge(
        recipe_for(name, zoo.paths[:count], zoo.base_path), tmp_path / "out", device="cpu"
    )
    result = read_folder(tmp_path / "out")
    inputs: list[Tensors] = [zoo.base, *zoo.members[:count]]
    for tensor in SHAPES:
        members = [member[tensor] for member in zoo.members[:count]]
        if not SHAPES[tensor] or 0 not in SHAPES[tensor]:
            exact = expected(members, zoo.base[tensor], tensor)
            check_numerics(result[tensor], exact, zoo.dtype, largest(inputs, tensor))


@pytest.mark.parametrize("name", CASES)
def test_a_base_merged_with_itself_comes_back(name: str, zoo: Zoo, tmp_path: Path) -> None:
    _, count, _ = CASES[name]
    paths = [zoo.base_path] * count
    if name.split(" ")[0] not in BASELESS:  # the base listed twice would be no member
        paths = [write_folder(tmp_path / f"copy{i}", zoo.base, zoo.dtype) for i in range(count)]
    mergekit_embed.merge(recipe_for(name, paths, zoo.base_path), tmp_path / "out", device="cpu")
    assert raw_bytes(tmp_path / "out") == raw_bytes(zoo.base_path)


WHOLE = {
    "dare_linear": {"density": 1.0},
    "della_linear": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
}


@pytest.mark.parametrize("method", WHOLE)
def test_at_density_1_a_sum_is_task_arithmetic(method: str, zoo: Zoo, tmp_path: Path) -> None:
    models = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(zoo.paths, WEIGHTS, strict=True)
    ]
    recipe = {"models": models, "base_model": str(zoo.base_path)}
    sparse = {**recipe, "merge_method": method, "parameters": WHOLE[method]}
    mergekit_embed.merge(sparse, tmp_path / "sparse", device="cpu")
    mergekit_embed.merge(
        {**recipe, "merge_method": "task_arithmetic"}, tmp_path / "whole", device="cpu"
    )
    one, other = read_folder(tmp_path / "sparse"), read_folder(tmp_path / "whole")
    for tensor in SHAPES:
        check_numerics(
            one[tensor], other[tensor], zoo.dtype, largest([zoo.base, *zoo.members], tensor)
        )


RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.mark.parametrize("name", [*RANDOM, "arcee_fusion", "sce", "ramplus_tl"])
def test_neither_chunks_nor_threads_show_in_the_bytes(
    name: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, count, _ = CASES[name]
    recipe = recipe_for(name, zoo.paths[:count], zoo.base_path)
    merged_within_limits(monkeypatch, recipe, tmp_path)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_draws_other_elements(name: str, zoo: Zoo, tmp_path: Path) -> None:
    recipe = recipe_for(name, zoo.paths, zoo.base_path)
    for seed in (1, 2):
        mergekit_embed.merge({**recipe, "seed": seed}, tmp_path / str(seed), device="cpu")
    one, other = read_folder(tmp_path / "1"), read_folder(tmp_path / "2")
    name = "embeddings.word_embeddings.weight"
    assert np.mean(one[name] != other[name]) > 0.3


@pytest.mark.parametrize("name", RANDOM)
def test_a_member_in_another_place_draws_other_elements(
    name: str, zoo: Zoo, tmp_path: Path
) -> None:
    parameters, _, _ = CASES[name]
    recipe = {
        "merge_method": name,
        "base_model": str(zoo.base_path),
        "parameters": {**parameters, "rescale": False},
        "seed": SEED,
    }
    twice = [{"model": str(zoo.paths[0])}, {"model": str(zoo.paths[0])}]
    mergekit_embed.merge({**recipe, "models": twice}, tmp_path / "out", device="cpu")
    tensor = "embeddings.word_embeddings.weight"
    moved = (read_folder(tmp_path / "out")[tensor] != zoo.base[tensor]).mean()
    assert moved > 0.5  # two draws of 0.4 together; one alone would move 0.4


def merged_of(recipe: dict[str, Any], members: Sequence[Any], base: Any, root: Path) -> Any:
    """One float64 tensor merged by the package."""
    name = "encoder.layer.0.output.dense.weight"
    models = [
        {"model": str(write_folder(root / f"member{i}", {name: member}, "F64"))}
        for i, member in enumerate(members)
    ]
    start = str(write_folder(root / "base", {name: base}, "F64"))
    whole = {**recipe, "models": models, "base_model": start}
    mergekit_embed.merge(whole, root / "out", device="cpu")
    return read_folder(root / "out")[name]


def test_sce_keeps_all_elements_that_vary_alike(tmp_path: Path) -> None:
    # 0, 1 and 3 in all six orders have one variance, 14 / 9: all six places tie for the largest
    columns = np.array(list(permutations((0.0, 1.0, 3.0)))).T
    recipe = {"merge_method": "sce", "parameters": {"select_topk": 0.01}}
    result = merged_of(recipe, list(columns), np.zeros(6), tmp_path)
    np.testing.assert_allclose(result, [4 / 3] * 6, rtol=1e-13)


def test_arcee_fusion_decides_small_changes_as_exact_arithmetic_does(tmp_path: Path) -> None:
    # The importances, times 2e24, are 59.8 119.6, 2.0 0, 5.3 0 and 24.9 13.8, the threshold 57.8.
    base = np.array([[0, 0.25], [0.5, 0.75], [-0.75, 0.25], [0.75, -0.5]])
    member = base + 1e-8 * np.array([[-3, 6], [2, 0], [3, 0], [9, 5]])
    result = merged_of({"merge_method": "arcee_fusion"}, [member], base, tmp_path)
    assert np.argwhere(result != base).tolist() == [[0, 0], [0, 1]]
