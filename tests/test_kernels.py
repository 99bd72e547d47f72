"""The kernels' rules: the same bytes whatever the chunks, the threads and the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import float64_from_storage, round_to
from tensor_folders import random_model, raw_bytes, stored, write_folder

import mergekit_embed
from mergekit_embed.dtypes import DType
from mergekit_embed.engine import order_statistics
from mergekit_embed.errors import UsageError
from mergekit_embed.kernels import BLOCK, DIGIT_BITS, Layout, Magnitude, open_kernels
from mergekit_embed.kernels.torch_backend import TorchKernels

KERNELS = open_kernels("cpu")


def vector(values: Any, dtype: DType = DType.F64) -> Any:
    kinds = {DType.F64: np.float64, DType.F32: np.float32, DType.F16: np.float16}
    raw = np.ascontiguousarray(np.asarray(values, dtype=kinds[dtype])).view(np.uint8).reshape(-1)
    return KERNELS.load(raw, dtype)


def halved(terms: np.ndarray) -> float:
    """The documented sum of one block, in plain Python."""
    terms = np.concatenate([terms, np.zeros((1 << (len(terms) - 1).bit_length()) - len(terms))])
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    return float(terms[0])


@pytest.mark.parametrize("count", [1, 2, 3, 1000, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_long_sums_are_added_in_the_documented_order(count: int) -> None:
    generator = np.random.default_rng(count)
    one, other, origin = generator.standard_normal((3, count))
    found = KERNELS.block_moments([vector(one), vector(other)], vector(origin), True)
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


def test_rows_and_columns_are_measured_apart() -> None:
    generator = np.random.default_rng(0)
    members = generator.standard_normal((3, 20, 13))
    handed = [vector(m) for m in members]
    rows = KERNELS.vector_moments(handed, None, Layout(13), False).products
    assert np.allclose(rows[:, 0], np.einsum("irk,jrk->rij", members, members))
    columns = KERNELS.vector_moments(handed, None, Layout(20, 13), False).products
    assert np.allclose(columns[0], np.einsum("irk,jrk->kij", members, members))


def test_a_mixture_widens_before_it_adds() -> None:
    big, small = np.float32(1.0), np.float32(2.0**-30)
    output = KERNELS.mixture(
        [vector([big], DType.F32), vector([small], DType.F32), vector([-big], DType.F32)],
        None,
        np.array([[[1.0, 1.0, 1.0]]]),
        Layout(1),
        DType.F32,
    )
    assert output.raw.view(np.float32)[0] == small
    assert output.finite


def test_what_all_members_have_comes_back_whatever_the_base() -> None:
    """Also where `b + (x - b)` would lose it, and only in the rows whose coefficients sum to 1."""
    base, member = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1e-19, -0.0, 3.5, 5.0])
    coefficients = np.array([[[0.3, 0.7]], [[0.25, 0.25]]])
    output = KERNELS.mixture(
        [vector(member), vector(member)], vector(base), coefficients, Layout(2), DType.F64
    )
    assert output.raw.tobytes() == np.array([1e-19, -0.0, 3.25, 4.5]).tobytes()


@pytest.mark.parametrize(("label", "bits"), [("BF16", 8), ("F16", 11)])
def test_results_are_rounded_once(label: str, bits: int) -> None:
    """Next to the middle of two 16-bit numbers, the way over float32 would go to the even one."""
    middle = 1.0 + 2.0**-bits
    values = np.array([middle - 2.0**-40, middle, middle + 2.0**-40, 3 - middle + 2.0**-40])
    values = np.concatenate([values, -values, [0.0, -0.0, 2.0**-149, 1e300, -1e300, 2.0**-1074]])
    output = KERNELS.mixture([vector(values)], None, np.ones((1, 1, 1)), Layout(14), DType[label])
    found = float64_from_storage(output.raw.tobytes(), label)
    assert found.tobytes() == round_to(values, label).tobytes()


@pytest.mark.parametrize("rank", [1, 2, 17, 500, 999, 1000])
@pytest.mark.parametrize("few", [0, 10**6])
@pytest.mark.parametrize("kind", ["continuous", "tied", "zeros", "subnormal"])
def test_the_kth_magnitude_is_exact(
    rank: int, few: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By histograms alone (few = 0) and by sorting the last candidates."""
    generator = np.random.default_rng(rank)
    values = generator.standard_normal(1000)
    values = {
        "continuous": values,
        "tied": np.round(values * 4),
        "zeros": np.where(values > 1, values, 0.0),
        "subnormal": values * 2.0**-1060,
    }[kind]
    monkeypatch.setattr(order_statistics, "FEW", few)
    measure = Magnitude(0)
    search = order_statistics.Search(measure, rank)
    handed, zero = [vector(values)], vector(np.zeros(1000))
    while search.counting:
        search.narrow(
            KERNELS.histogram(handed, zero, measure, search.prefix, search.shift - DIGIT_BITS)
        )
    if search.shift:
        left = KERNELS.measured(handed, zero, measure, search.prefix, search.shift)
        assert len(left) == search.candidates
        found = np.sort(left)[len(left) - search.rank]
    else:
        found = search.value
    assert found == np.sort(np.abs(values))[::-1][rank - 1]


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
    results = []
    for index, (workers, blocks, keep) in enumerate([(1, 1, 0), (4, 1, 10**9), (2, 64, 0)]):
        monkeypatch.setattr(TorchKernels, "chunk_blocks", lambda self, vectors, b=blocks: b)
        monkeypatch.setattr("mergekit_embed.kernels.torch_backend.cpu_workers", lambda w=workers: w)
        monkeypatch.setattr("mergekit_embed.engine.run.KEEP_BYTES", keep)
        mergekit_embed.merge(recipe, tmp_path / f"out{index}", device="cpu")
        results.append(raw_bytes(tmp_path / f"out{index}"))
    assert results[0] == results[1] == results[2]


def test_the_threads_of_torch_are_left_as_they_were(tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    path = write_folder(tmp_path / "m", random_model(0), "F32")
    recipe = {"merge_method": "passthrough", "models": [{"model": str(path)}]}
    mergekit_embed.merge(recipe, tmp_path / "out")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99", "cpu cpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=r"use auto, cpu|there is no cuda:99"):
        open_kernels(device)
