"""The number of any rank, of tensors that are read from files in chunks: exactly NumPy's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BACKENDS, listed
from reference import Array
from tensor_folders import write_folder

from mergekit_embed.engine import order_statistics
from mergekit_embed.engine.merge import plan
from mergekit_embed.engine.order_statistics import WINDOW, largest
from mergekit_embed.engine.reader import Reader
from mergekit_embed.engine.stream import Work, stream
from mergekit_embed.engine.supply import Supply
from mergekit_embed.kernels import BLOCK, Importance, Magnitude, Measure, Variance, open_kernels

FEW, SAMPLED = 600, 256
NAME = "encoder.weight"


class Watched:
    """Kernels that count how often they are asked for order statistics."""

    def __init__(self, backend: str):
        self._kernels = open_kernels("cpu", backend)
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._kernels, name)


class Tensor:
    """A member's tensor and the base's, in float64, in files that are read."""

    def __init__(self, values: Array, base: Array, root: Path):
        row = np.asarray(values, dtype=np.float64).reshape(1, -1)
        self.sizes = np.abs(row - base).reshape(-1)
        member = write_folder(root / "member", {NAME: row}, "F64")
        start = write_folder(root / "base", {NAME: np.broadcast_to(base, row.shape)}, "F64")
        recipe = {"merge_method": "ties", "models": listed(member), "base_model": str(start)}
        self.plan = plan(recipe, root / "out")

    def largest(
        self, wanted: Sequence[tuple[Measure, int]], backend: str, keep: bool, of: int = BLOCK
    ) -> tuple[list[float], Counter[str]]:
        """The numbers, and how the kernels were asked for them."""
        kernels, (job,) = Watched(backend), self.plan.jobs
        with Reader() as reader, np.errstate(all="ignore"):
            supply = Supply(job.tensors, reader, kernels)
            supply.keep = keep
            work = Work(
                job=job,
                plan=self.plan,
                kernels=kernels,
                supply=supply,
                gram=None,
                note=lambda job, said: None,
                advance=lambda size: None,
            )
            (found,) = stream([work], [largest(work, wanted, of)])
        return found, kernels.calls


def check(tensor: Tensor, ranks: Iterable[int], backend: str, keep: bool) -> Counter[str]:
    """Assert that all of these ranks are NumPy's, together; what is no number is the largest."""
    chosen = list(ranks)
    found, calls = tensor.largest([(Magnitude(0), rank) for rank in chosen], backend, keep)
    descending = np.sort(tensor.sizes)[::-1]
    np.testing.assert_array_equal(found, descending[np.array(chosen) - 1])
    return calls


def ranks_of(count: int) -> list[int]:
    some = {1, 2, 17, count // 3, count // 2, count - 17, count - 1, count}
    return sorted(rank for rank in some if 1 <= rank <= count)


def values_of(kind: str, count: int) -> Array:
    random = np.random.default_rng(count)
    normal = random.standard_normal(count)
    places = np.arange(count)
    heavy = normal / random.uniform(1e-12, 1.0, count) ** 3
    kinds = {
        "continuous": normal,
        "tied": np.round(normal * 4),
        "zeros": np.where(normal > 1, normal, np.copysign(0.0, normal)),
        "subnormal": normal * 2.0**-1060,
        "all equal": np.full(count, -0.3),
        "nothing but zeros": np.zeros(count),
        "heavy tail": heavy,
        "sorted": np.sort(normal),
        "steps": np.floor(places / (count / 7)) + 1e-3 * (places == count // 2),
        "largest and least": np.where(places % 2, 1.7e308, 5e-324),
        "not finite": np.where(normal > 1.5, np.nan, np.where(normal < -1.5, np.inf, normal)),
        "nothing but nan": np.full(count, np.nan),
        "nothing but infinity": np.full(count, np.inf),
    }
    return kinds[kind]


KINDS = (
    *("continuous", "tied", "zeros", "subnormal", "all equal", "nothing but zeros"),
    *("heavy tail", "sorted", "steps", "largest and least"),
    *("not finite", "nothing but nan", "nothing but infinity"),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and sorted candidates as small as the tensors of tests are."""
    monkeypatch.setattr(order_statistics, "FEW", FEW)
    monkeypatch.setattr(order_statistics, "SAMPLED", SAMPLED)


@pytest.mark.parametrize("count", [1, 2, 99, FEW - 1, FEW, FEW + 1, 5000, BLOCK, 2 * BLOCK + 77])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small")
def test_every_rank_is_the_one_of_numpy(kind: str, count: int, tmp_path: Path) -> None:
    tensor = Tensor(values_of(kind, count), np.float64(0.0), tmp_path)
    for backend in BACKENDS:
        for keep in (False, True):
            calls = check(tensor, ranks_of(count), backend, keep)
            if count <= FEW and np.isfinite(tensor.sizes).all():
                assert calls["histogram"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["continuous", "tied", "not finite"])
@pytest.mark.usefixtures("small")
def test_every_rank_one_by_one(kind: str, backend: str, tmp_path: Path) -> None:
    count = FEW + 100
    tensor = Tensor(values_of(kind, count), np.full(count, 0.25), tmp_path)
    for rank in range(1, count + 1, 7):
        check(tensor, [rank], backend, keep=bool(rank % 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("small")
def test_few_different_numbers_are_counted_to_the_last_one(backend: str, tmp_path: Path) -> None:
    counts = {0.0: 301, 0.5: 999, 0.75: 400, 2.0: 300}
    values = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values())))
    tensor = Tensor(values, np.float64(0.0), tmp_path)
    ends = np.cumsum(list(reversed(counts.values()))).tolist()
    for rank in {1, *ends, *(end + 1 for end in ends[:-1])}:
        calls = check(tensor, [rank], backend, keep=True)
        assert calls["tally"] == 1
        assert calls["histogram"] == 0


def misleading(count: int, seen: float | None, hidden: Array) -> Array:
    """`hidden`, but for where the sample looks: there are numbers from 10 on, or one alone."""
    windows = max(SAMPLED, count // 512) // WINDOW
    step = (count // windows - 1) | 1
    places = np.arange(count)
    looked_at = (places % step < WINDOW) & (places // step < windows)
    return np.where(looked_at, 10.0 + places / count if seen is None else seen, hidden)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("seen", [None, 0.0, 1.0, np.nan])
@pytest.mark.usefixtures("small")
def test_a_sample_that_misleads_is_found_out(
    seen: float | None, keep: bool, backend: str, tmp_path: Path
) -> None:
    """Whether its numbers lie elsewhere, or are few and none of those that are wanted."""
    count = BLOCK + 5000
    hidden = np.random.default_rng(0).uniform(2.0, 3.0, count)
    tensor = Tensor(misleading(count, seen, hidden), np.float64(0.0), tmp_path)
    calls = check(tensor, [count // 2], backend, keep)
    assert calls["histogram"] >= 2  # one digit at least, in each of two chunks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("small")
def test_what_comes_next_to_all_that_a_sample_has_is_not_in_it(
    backend: str, tmp_path: Path
) -> None:
    count = BLOCK + 5000
    values = misleading(count, 10.0, np.random.default_rng(0).uniform(2.0, 3.0, count))
    tensor, largest_ones = Tensor(values, np.float64(0.0), tmp_path), int((values == 10.0).sum())
    assert check(tensor, [largest_ones], backend, keep=True)["histogram"] == 0
    assert check(tensor, [largest_ones + 1], backend, keep=True)["histogram"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("small")
def test_more_candidates_than_there_is_room_for_are_counted(backend: str, tmp_path: Path) -> None:
    """The sample is right about where the number is, and all the others are there too."""
    count = 2 * BLOCK + 5000
    values = 1.0 + np.random.default_rng(0).integers(0, 2**30, count) * 2.0**-52
    calls = check(Tensor(values, np.float64(0.0), tmp_path), [count // 2], backend, keep=True)
    assert calls["histogram"] > 3  # more than one digit, in each of three chunks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["continuous", "tied", "zeros", "heavy tail", "sorted", "steps"])
def test_one_pass_is_enough_when_the_sample_is_right(
    kind: str, backend: str, tmp_path: Path
) -> None:
    """With the real sizes: nothing is counted by digits, and ties are not even gathered."""
    count = order_statistics.FEW + 50_000
    tensor = Tensor(values_of(kind, count), np.float64(0.0), tmp_path)
    for rank in (count // 50, count // 5, count // 2, count - count // 50):
        calls = check(tensor, [rank], backend, keep=True)
        chunks, sampled = -(-count // BLOCK), 1
        assert calls["histogram"] == 0
        assert calls["measured"] + calls["tally"] == chunks + sampled
        if kind in {"tied", "steps"} and rank == count // 2:
            assert calls["tally"] == chunks


@pytest.mark.usefixtures("small")
def test_variances_and_importances_have_ranks_too(tmp_path: Path) -> None:
    """Of one member: its variance is zero, its importance what no sample is taken of."""
    count = 3000
    tensor = Tensor(values_of("continuous", count), np.float64(0.1), tmp_path)
    wanted = [(Variance(), 7), (Importance(count), 1), (Importance(count), count // 2)]
    (spread, most, median), calls = tensor.largest(wanted, "torch", keep=False)
    assert spread == 0.0
    assert most > median > 0.0
    assert calls["histogram"] > 0
    assert tensor.largest(wanted, "numba", keep=True)[0] == [spread, most, median]


@pytest.mark.usefixtures("small")
def test_neither_chunks_nor_memory_nor_the_backend_show(tmp_path: Path) -> None:
    count = 2 * BLOCK + 77
    tensor = Tensor(values_of("heavy tail", count), np.float64(0.0), tmp_path)
    wanted = [(Magnitude(0), rank) for rank in ranks_of(count)]
    found = [
        tensor.largest(wanted, backend, keep, of)[0]
        for backend in BACKENDS
        for keep in (False, True)
        for of in (BLOCK, 2 * BLOCK, 64 * BLOCK)
    ]
    assert all(one == found[0] for one in found)
