"""Numbers that are none, or too large: in members, adapters, statistics; merged by every family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import listed
from lora import write_adapter
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from tensor_folders import write_statistics

from .attack import NAME, TABLE, WEIGHTS, Ground, changed, tensors

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"parameters": {"t": 0.5}, "base_model": "good"},
    "task_arithmetic": {"base_model": "good"},
    "multislerp": {},
    "karcher": {},
    "model_stock": {"base_model": "good"},
    "ties": {"parameters": {"density": 0.5}, "base_model": "good"},
    "dare_linear": {"parameters": {"density": 0.5}, "base_model": "good"},
    "sce": {"parameters": {"select_topk": 0.5}, "base_model": "good"},
}

BITS = {
    # what it is: the float32 number by its bits
    "quiet NaN": 0x7FC00000,
    "signalling NaN": 0x7F800001,
    "NaN with a message": 0x7FDEADBE,
    "negative NaN": 0xFFC00000,
    "infinity": 0x7F800000,
    "minus infinity": 0xFF800000,
}


def spoil(folder: Path, bits: int, dtype: torch.dtype = torch.float32) -> None:
    """Put a number into the model's query weights, which are stored as this type."""
    path = folder / WEIGHTS
    found = load_torch(path)
    with np.errstate(invalid="ignore"):
        number = torch.from_numpy(np.array([bits], np.uint32).view(np.float32))
    weight = found[NAME].to(dtype)
    weight[1, 2] = number.to(dtype)[0]
    save_torch(found | {NAME: weight}, path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", BITS)
def test_what_is_no_number_stops_the_merge(what: str, method: str, ground: Ground) -> None:
    spoil(ground.hostile, BITS[what])
    more = dict(METHODS[method])
    if "base_model" in more:
        more["base_model"] = str(ground.good)
    ground.refused(ground.write(merge_method=method, **more), names=NAME, says=str(ground.hostile))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("what", BITS)
def test_what_is_no_number_stops_the_merge_in_every_stored_type(
    what: str, dtype: torch.dtype, ground: Ground
) -> None:
    spoil(ground.hostile, BITS[what], dtype)
    ground.refused(ground.write(), names=NAME, says=str(ground.hostile))


@pytest.mark.parametrize("what", BITS)
def test_what_is_no_number_in_the_base_stops_the_merge(what: str, ground: Ground) -> None:
    spoil(ground.hostile, BITS[what])
    recipe = ground.write(
        merge_method="ties",
        base_model=str(ground.hostile),
        models=listed(ground.good),
        parameters={"density": 0.5},
    )
    ground.refused(recipe, names=NAME, says=str(ground.hostile))


def test_numbers_that_overflow_the_stored_type_stop_the_merge(ground: Ground) -> None:
    with changed(ground.hostile / WEIGHTS) as found:
        found[NAME][0, 0] = 1e38
    ground.refused(ground.write(dtype="float16"), names=NAME)


def test_a_delta_that_overflows_stops_the_merge(ground: Ground) -> None:
    """Each model is sound; what the recipe makes of them is not."""
    for model, number in ((ground.good, -3e38), (ground.hostile, 3e38)):
        with changed(model / WEIGHTS) as found:
            found[NAME][0, 0] = number
    recipe = ground.write(
        merge_method="task_arithmetic",
        base_model=str(ground.good),
        models=listed(ground.hostile),
        parameters={"weight": 2.0},
    )
    ground.refused(recipe, names=NAME)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_whose_product_is_no_number_stops_the_merge(
    side: str, number: float, ground: Ground
) -> None:
    module = f"base_model.model.{NAME.removesuffix('.weight')}"
    factors = {s: np.full((2, 4) if s == "A" else (4, 2), 1e38, np.float32) for s in "AB"}
    factors[side][0, 0] = number
    told = {f"{module}.lora_{s}.weight": factor for s, factor in factors.items()}
    write_adapter(ground.root / "adapter", told, r=2, lora_alpha=2)
    reference = f"{ground.hostile}+{ground.root / 'adapter'}"
    ground.refused(ground.write(models=listed(ground.good, reference)), names=NAME)


@pytest.mark.parametrize("kind", ["fisher", "gram"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -3.0, 3e38])
def test_statistics_that_are_none_stop_the_merge(number: float, kind: str, ground: Ground) -> None:
    shape = (4, 4)
    for index, name in enumerate(("s1", "s2")):
        values = np.eye(*shape)
        values[1, 1] = number if index else 1.0
        write_statistics(ground.root / name, kind, {NAME: values})
    if kind == "fisher":
        (ground.root / "s2/statistics.json").write_text('{"fisher": {"norm": 1.0}}')
    method = {"fisher": "fisher", "gram": "regmean"}[kind]
    models = [
        {"model": str(model), "statistics": str(ground.root / name)}
        for model, name in ((ground.good, "s1"), (ground.hostile, "s2"))
    ]
    recipe = ground.write(merge_method=method, models=models)
    if number == 3e38 or (kind, number) == ("fisher", -3.0):  # below the floor, which is nothing
        ground.merged(recipe)
    else:
        ground.refused(recipe, names=NAME)


def test_whole_numbers_that_differ_stop_the_merge(ground: Ground) -> None:
    for number, model in enumerate((ground.good, ground.hostile)):
        with changed(model / WEIGHTS) as found:
            found["encoder.layer.0.steps"] = np.array([2**63 - 1 - number])
    ground.refused(ground.write(), names="encoder.layer.0.steps")


# --- what is merely odd -------------------------------------------------------------------


def test_minus_zero_and_the_smallest_numbers_are_numbers(ground: Ground) -> None:
    for model in (ground.good, ground.hostile):
        with changed(model / WEIGHTS) as found:
            found[NAME][0] = [-0.0, 1e-45, -1e-45, 1.1754942e-38]
    shutil.rmtree(ground.root / "out", ignore_errors=True)
    made = load_file(ground.merged(ground.write()) / WEIGHTS)[NAME][0]
    assert made.tobytes() == np.float32([-0.0, 1e-45, -1e-45, 1.1754942e-38]).tobytes()


def test_the_largest_numbers_are_averaged_without_overflow(ground: Ground) -> None:
    largest = np.finfo(np.float32).max
    for model in (ground.good, ground.hostile):
        with changed(model / WEIGHTS) as found:
            found[TABLE][:] = largest
    made = load_file(ground.merged(ground.write()) / WEIGHTS)
    assert (made[TABLE] == largest).all()


def test_what_is_no_number_is_let_through_when_the_recipe_says_so(ground: Ground) -> None:
    spoil(ground.hostile, BITS["NaN with a message"])
    made = load_file(ground.merged(ground.write(allow_non_finite=True)) / WEIGHTS)[NAME]
    assert np.isnan(made[1, 2])
    assert np.isfinite(made).sum() == made.size - 1
    expected = (tensors(1)[NAME].astype(np.float64) + load_file(ground.hostile / WEIGHTS)[NAME]) / 2
    np.testing.assert_array_equal(made, expected.astype(np.float32))
