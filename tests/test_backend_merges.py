"""Whole merges are the same to the byte with both backends, and whether the other one is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_consensus_numerics as consensus
import test_properties as properties
from helpers import BACKENDS, set_backend, set_limits
from reference import float64_from_storage
from tensor_folders import SHAPES, Tensors, random_model, raw_bytes, stored, write_folder
from test_properties import ENTRIES, LENGTHS, METHODS, edges, recipe_of

import mergekit_embed
from mergekit_embed.engine import order_statistics
from mergekit_embed.methods import available

DTYPES = ("BF16", "F32", "F16", "F64")


def merged(
    monkeypatch: pytest.MonkeyPatch, backend: str, recipe: Mapping[str, Any], root: Path
) -> dict[str, bytes]:
    """The tensors that a recipe makes with a backend."""
    with monkeypatch.context() as patch:
        set_backend(patch, backend)
        mergekit_embed.merge(recipe, root / backend)
    return raw_bytes(root / backend)


def check_same(monkeypatch: pytest.MonkeyPatch, recipe: Mapping[str, Any], root: Path) -> None:
    """Assert that both backends make the same tensors."""
    one, other = (merged(monkeypatch, backend, recipe, root) for backend in BACKENDS)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds are looked for by samples in small tensors too."""
    monkeypatch.setattr(order_statistics, "FEW", 300)
    monkeypatch.setattr(order_statistics, "SAMPLED", 128)


class Models:
    """Folders of a base and members around it, one for each of `dtypes`."""

    def __init__(self, root: Path, dtypes: tuple[str, ...], model: Tensors, members: list[Tensors]):
        self.base = write_folder(root / "base", stored(model, dtypes[-1]), dtypes[-1])
        self.members = [
            write_folder(root / f"m{i}", stored(member, dtypes[i]), dtypes[i])
            for i, member in enumerate(members)
        ]

    def recipe(self, name: str, **more: Any) -> dict[str, Any]:
        recipe = recipe_of(name, self.members[: ENTRIES[name].count], self.base)
        parameters = {**recipe["parameters"], **more.pop("parameters", {})}
        return {**recipe, **more, "parameters": parameters}


def models_of(root: Path, *dtypes: str) -> Models:
    base = random_model(0)
    members = [random_model(seed, around=base) for seed in (1, 2, 3)]
    return Models(root, dtypes if len(dtypes) > 1 else dtypes * 4, base, members)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_at_the_edges(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and values of all kinds: zeros with signs, subnormal and huge numbers, no elements."""
    members, base = edges([*properties.SHAPES, *properties.VALUES], dtype, ENTRIES[name].squares)
    models = Models(tmp_path, (dtype,) * 4, base, members)
    check_same(monkeypatch, models.recipe(name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_long_tensors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, base = edges(LENGTHS, "F32", ENTRIES[name].squares)
    models = Models(tmp_path, ("F32",) * 4, base, members)
    set_limits(monkeypatch, workers=2, keep=0)
    check_same(monkeypatch, models.recipe(name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float64"])
@pytest.mark.usefixtures("sampled")
def test_every_method_on_members_of_mixed_types(
    name: str, out_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(tmp_path, "BF16", "F64", "F16", "F32")
    check_same(monkeypatch, models.recipe(name, out_dtype=out_dtype), tmp_path)


GRANULARITIES = [
    (method.name, unit)
    for method in available().values()
    if method.family == "mixture" and method.geometry
    for unit in method.units
]


@pytest.mark.parametrize(("name", "granularity"), GRANULARITIES)
def test_every_granularity(
    name: str, granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(tmp_path, "BF16", "F32", "F32", "F32")
    check_same(monkeypatch, models.recipe(name, granularity=granularity), tmp_path)


VARIANTS: dict[str, dict[str, Any]] = {
    "model_stock": {"filter_wise": True},
    "nuslerp": {"nuslerp_flatten": False},
    "nuslerp by rows": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    "delta_guided": {"norm": "l1"},
    "linear": {"normalize": False},
    "ties": {"rescale": True},
    "ties as a sum": {"normalize": False, "lambda": 0.7},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("sampled")
def test_variants(
    variant: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models_of(tmp_path, dtype).recipe(variant.split()[0], parameters=VARIANTS[variant])
    check_same(monkeypatch, recipe, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", consensus.CASES)
@pytest.mark.usefixtures("sampled")
def test_variants_of_consensus(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, (_, count, _) = models_of(tmp_path, dtype), consensus.CASES[name]
    recipe = consensus.recipe_for(name, models.members[:count], models.base)
    check_same(monkeypatch, recipe, tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("name", [n for n in METHODS if available()[n].statistics is None])
@pytest.mark.usefixtures("sampled")
def test_what_is_not_finite(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged as it is, by the recipe's wish: the same numbers, and no number in the same places."""
    random = np.random.default_rng(0)
    base, members = random_model(0), [random_model(seed) for seed in (1, 2, 3)]
    for model in (base, *members):
        for tensor in model.values():
            if tensor.size > 1:
                tensor.flat[random.integers(tensor.size)] = random.choice([np.inf, -np.inf, np.nan])
    models = Models(tmp_path, (dtype,) * 4, base, members)
    recipe = models.recipe(name, allow_non_finite=True)
    one, other = (merged(monkeypatch, backend, recipe, tmp_path) for backend in BACKENDS)
    for tensor in SHAPES:
        found, same = (float64_from_storage(made[tensor], dtype) for made in (one, other))
        np.testing.assert_array_equal(found, same)
