"""The kernels' rules: the same bytes whatever the chunks, the threads and the layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BACKENDS, merged_within_limits, set_backend
from reference import float64_from_storage, round_to
from tensor_folders import random_model, stored, write_folder, write_statistics

import mergekit_embed
from mergekit_embed.dtypes import DType
from mergekit_embed.errors import UsageError
from mergekit_embed.kernels import BLOCK, Kernels, Layout, Magnitude, open_kernels

Make = Callable[..., Any]
"""Makes a vector of the kernels from numbers, float64 unless told otherwise."""


@pytest.fixture(params=BACKENDS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return open_kernels("cpu", request.param)


@pytest.fixture
def vector(kernels: Kernels) -> Make:
    kinds = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}

    def make(values: Any, dtype: DType = DType.F64) -> Any:
        array = np.ascontiguousarray(np.asarray(values, dtype=kinds[dtype]))
        return kernels.load(array.view(np.uint8).reshape(-1), dtype)

    return make


def halved(terms: np.ndarray) -> float:
    """The documented sum of one block, in plain Python."""
    terms = np.concatenate([terms, np.zeros((1 << (len(terms) - 1).bit_length()) - len(terms))])
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    return float(terms[0])


@pytest.mark.parametrize("count", [1, 2, 3, 1000, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_long_sums_are_added_in_the_documented_order(
    count: int, kernels: Kernels, vector: Make
) -> None:
    generator = np.random.default_rng(count)
    one, other, origin = generator.standard_normal((3, count))
    found = kernels.block_moments([vector(one), vector(other)], vector(origin), True)
    blocks = range(0, count, BLOCK)
    assert len(found.products) == len(blocks)
    for index, start in enumerate(blocks):
        a = (one - origin)[start : start + BLOCK]
        b = (other - origin)[start : start + BLOCK]
        products = found.products[index]
        assert products[0, 0] == halved(a * a)
        assert products[0, 1] == products[1, 0] == halved(a * b)
        assert found.absolutes is not None
        assert found.absolutes[index, 1] == halved(np.abs(b))


def test_rows_and_columns_are_measured_apart(kernels: Kernels, vector: Make) -> None:
    generator = np.random.default_rng(0)
    members = generator.standard_normal((3, 20, 13))
    handed = [vector(m) for m in members]
    rows = kernels.vector_moments(handed, None, Layout(13), False).products
    assert np.allclose(rows[:, 0], np.einsum("irk,jrk->rij", members, members))
    columns = kernels.vector_moments(handed, None, Layout(20, 13), False).products
    assert np.allclose(columns[0], np.einsum("irk,jrk->kij", members, members))


def test_a_mixture_widens_before_it_adds(kernels: Kernels, vector: Make) -> None:
    big, small = np.float32(1.0), np.float32(2.0**-30)
    output = kernels.mixture(
        [vector([big], DType.F32), vector([small], DType.F32), vector([-big], DType.F32)],
        None,
        np.array([[[1.0, 1.0, 1.0]]]),
        Layout(1),
        DType.F32,
    )
    assert output.raw.view(np.float32)[0] == small
    assert output.finite


def test_what_all_members_have_comes_back_whatever_the_base(kernels: Kernels, vector: Make) -> None:
    """Also where `b + (x - b)` would lose it, and only in the rows whose coefficients sum to 1."""
    base, member = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1e-19, -0.0, 3.5, 5.0])
    coefficients = np.array([[[0.3, 0.7]], [[0.25, 0.25]]])
    output = kernels.mixture(
        [vector(member), vector(member)], vector(base), coefficients, Layout(2), DType.F64
    )
    assert output.raw.tobytes() == np.array([1e-19, -0.0, 3.25, 4.5]).tobytes()


@pytest.mark.parametrize(("label", "bits"), [("BF16", 8), ("F16", 11)])
def test_results_are_rounded_once(label: str, bits: int, kernels: Kernels, vector: Make) -> None:
    """Next to the middle of two 16-bit numbers, the way over float32 would go to the even one."""
    middle = 1.0 + 2.0**-bits
    values = np.array([middle - 2.0**-40, middle, middle + 2.0**-40, 3 - middle + 2.0**-40])
    values = np.concatenate([values, -values, [0.0, -0.0, 2.0**-149, 1e300, -1e300, 2.0**-1074]])
    output = kernels.mixture([vector(values)], None, np.ones((1, 1, 1)), Layout(14), DType[label])
    found = float64_from_storage(output.raw.tobytes(), label)
    assert found.tobytes() == round_to(values, label).tobytes()


def test_measures_between_two_numbers_and_how_many_are_larger(
    kernels: Kernels, vector: Make
) -> None:
    member, origin = vector([1.0, -2.0, 3.0, np.inf, -0.0, np.nan, 2.0]), vector(np.zeros(7))
    for low, high, between, above in (
        (2.0, 3.0, [2.0, 3.0, 2.0], 2),
        (0.0, 0.0, [0.0], 6),
        (0.0, np.inf, [1.0, 2.0, 3.0, np.inf, 0.0, 2.0], 1),  # what is no number is larger
        (4.0, 5.0, [], 2),
    ):
        found, larger = kernels.measured([member], origin, Magnitude(0), low, high)
        assert (found.tolist(), larger) == (between, above)


def test_a_tally_counts_what_is_at_least_each_limit(kernels: Kernels, vector: Make) -> None:
    member, origin = vector([1.0, -2.0, 3.0, np.inf, -0.0, np.nan, 2.0]), vector(np.zeros(7))
    limits = np.array([0.0, 2.0**-1074, 2.0, np.nextafter(2.0, 3.0), np.inf])
    found = kernels.tally([member], origin, Magnitude(0), limits)
    assert found.tolist() == [7, 6, 5, 3, 2]


METHODS: dict[str, dict[str, Any]] = {
    "multislerp": {},
    "model_stock": {"parameters": {"filter_wise": True}},
    "delta_guided": {"parameters": {"norm": "l1"}, "granularity": "model"},
    "nuslerp": {"parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
    "ties": {"parameters": {"density": 0.2, "rescale": True}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_neither_chunks_nor_threads_nor_memory_show_in_the_bytes(
    method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_model(0)
    paths = [
        write_folder(tmp_path / f"m{s}", stored(random_model(s, around=base), dtype), dtype)
        for s in range(3)
    ]
    recipe = {
        "merge_method": method,
        "base_model": str(paths[0]),
        "models": [{"model": str(path)} for path in paths[1:]],
        **METHODS[method],
    }
    merged_within_limits(monkeypatch, recipe, tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_threads_of_torch_are_left_as_they_were(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, torch keeps to one thread: the workers are the threads."""
    import torch

    from mergekit_embed.kernels import torch_backend

    seen = []

    def watched(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return regress(*arguments)

    regress = torch_backend.regress
    monkeypatch.setattr(torch_backend, "regress", watched)
    set_backend(monkeypatch, backend)
    recipe = regression(tmp_path)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        mergekit_embed.merge(recipe, tmp_path / "out")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def regression(root: Path) -> dict[str, Any]:
    """A recipe that needs torch's matrix products, of a few layers."""
    generator = np.random.default_rng(0)
    shapes = {f"encoder.layer.{i}.up.weight": (6, 8) for i in range(6)}
    models = []
    for member in range(2):
        model = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
        grams = {name: np.eye(8) * (member + 1) for name in shapes}
        path = write_folder(root / f"m{member}", model, "F32")
        measured = write_statistics(root / f"s{member}", "gram", grams)
        models.append({"model": str(path), "statistics": str(measured)})
    return {"merge_method": "regmean", "models": models}


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99", "cpu cpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=r"use auto, cpu|there is no cuda:99"):
        open_kernels(device)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "jax"), ("cuda", "numba")])
def test_a_backend_that_cannot_be_is_refused(device: str, backend: str) -> None:
    with pytest.raises(UsageError, match=r"use auto, numba, torch|needs the torch backend"):
        open_kernels(device, backend)
