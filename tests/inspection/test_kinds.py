"""Members of every kind are looked at: recipes, adapters, layers put together, other names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Family
from helpers import write_recipe
from lora import adapt, plus
from tensor_folders import read_folder

import mergekit_embed
from mergekit_embed.errors import RecipeError
from mergekit_embed.inspect import inspect, models, recipe

from .conftest import Scene

pytestmark = pytest.mark.usefixtures("cache")


def vector(folder: Path, names: list[str]) -> np.ndarray:
    tensors = read_folder(folder)
    return np.concatenate([tensors[name].ravel() for name in names])


def test_a_member_that_is_a_recipe_is_its_result(scene: Scene, tmp_path: Path) -> None:
    inner = write_recipe(tmp_path / "inner.yaml", {**scene.recipe("ties"), "out_dtype": "float32"})
    mergekit_embed.merge(inner, tmp_path / "inner")
    facts = inspect(models([str(inner), str(scene.members[0])], str(scene.base)))
    names = [tensor.name for tensor in facts.tensors]
    delta = vector(tmp_path / "inner", names) - vector(scene.base, names)
    assert facts.model.lengths[0] == pytest.approx(np.linalg.norm(delta), rel=1e-12)


def test_layers_put_together_belong_to_the_members_that_have_them(scene: Scene) -> None:
    first, second = map(str, scene.members[:2])
    slices = [
        {"sources": [{"model": first, "layer_range": [0, 1]}]},
        {"sources": [{"model": second, "layer_range": [1, 2]}]},
    ]
    facts = inspect(recipe({"merge_method": "passthrough", "slices": slices}))
    by_layer = {part.name: part.lengths for part in facts.by("layer")}
    assert by_layer["encoder.layer.0"][0] > 0 == by_layer["encoder.layer.0"][1]
    assert by_layer["encoder.layer.1"][1] > 0 == by_layer["encoder.layer.1"][0]


def test_an_adapter_is_looked_at_as_it_is_merged(family: Family, tmp_path: Path) -> None:
    adapt(family.base, tmp_path / "adapter", seed=1, target_modules=["query"])
    folded = plus(family.base, tmp_path / "adapter")
    facts = inspect(models([folded], str(family.base)), rank=True)
    moved = [tensor for tensor in facts.tensors if tensor.gram[0, 0] > 0]
    assert moved and all("query.weight" in tensor.name for tensor in moved)
    for tensor in moved:
        assert tensor.rank is not None and 1 < tensor.rank[0] <= 4, "no more than the adapter's"


def test_components_are_told_apart(family: Family) -> None:
    facts = inspect(models([str(one) for one in family.members], str(family.base)))
    assert {part.name for part in facts.by("component")} == {"transformer", "2_Dense"}
    assert "2_Dense: head" in {part.name for part in facts.by("layer")}


def test_a_recipe_for_an_adapter_is_refused(family: Family) -> None:
    wanted = {
        "merge_method": "linear",
        "base_model": str(family.base),
        "models": [{"model": f"{family.base}+a"}],
        "adapter_output": {"rank": 4},
    }
    with pytest.raises(RecipeError, match="boom-inspect inspects models"):
        inspect(recipe(wanted))
