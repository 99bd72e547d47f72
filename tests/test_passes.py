"""A plan knows how often each tensor is gone through: progress ends at its total, memory fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_consensus_numerics as consensus
from helpers import set_limits
from tensor_folders import random_model
from test_backend_merges import GRANULARITIES, VARIANTS, Models, models_of
from test_properties import ENTRIES, LENGTHS, METHODS, edges
from test_sinks import Counted

import mergekit_embed
from mergekit_embed.engine import order_statistics
from mergekit_embed.engine.passes import goes_again
from mergekit_embed.methods import available


@pytest.fixture(autouse=True)
def plain_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept and no sample is taken, so that what is read is what is gone through."""
    set_limits(monkeypatch, keep=0)
    monkeypatch.setattr(order_statistics, "FEW", 10**9)


def check_passes(recipe: dict[str, Any], root: Path, *, reads_more: bool = False) -> None:
    """Assert that a merge goes through as many bytes as it said, and reads no others."""
    progress = Counted()
    result = mergekit_embed.merge(recipe, root / "out", progress=progress)
    assert progress.done == progress.total
    assert reads_more or result.bytes_read <= progress.total


@pytest.mark.parametrize("name", METHODS)
def test_of_every_method(name: str, tmp_path: Path) -> None:
    members, base = edges(LENGTHS, "F32", ENTRIES[name].squares)
    recipe = Models(tmp_path, ("F32",) * 4, base, members).recipe(name)
    check_passes(recipe, tmp_path, reads_more=available()[name].statistics == "gram")


@pytest.mark.parametrize(("name", "granularity"), GRANULARITIES)
def test_of_every_granularity(name: str, granularity: str, tmp_path: Path) -> None:
    recipe = models_of(tmp_path, "F32").recipe(name, granularity=granularity)
    check_passes(recipe, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_variants(variant: str, tmp_path: Path) -> None:
    name, parameters = variant.split()[0], VARIANTS[variant]
    check_passes(models_of(tmp_path, "F32").recipe(name, parameters=parameters), tmp_path)


@pytest.mark.parametrize("name", consensus.CASES)
def test_of_variants_of_consensus(name: str, tmp_path: Path) -> None:
    models, (_, count, _) = models_of(tmp_path, "F32"), consensus.CASES[name]
    check_passes(consensus.recipe_for(name, models.members[:count], models.base), tmp_path)


AGAIN = {
    "linear": False,
    "slerp": True,
    "ties": True,
    "dare_linear": True,  # rescaled by norms
    "median": False,
    "fisher": False,
}


@pytest.mark.parametrize("name", AGAIN)
def test_memory_counts_what_is_kept_for_another_pass(name: str, tmp_path: Path) -> None:
    plan = mergekit_embed.plan(models_of(tmp_path, "F32").recipe(name), tmp_path / "out")
    again = [job for job in plan.jobs if goes_again(plan, job)]
    assert bool(again) == AGAIN[name]
    kept = plan.peak_memory - plan.least_memory
    assert kept == sum(tensor.nbytes for job in again for tensor in job.tensors)
    assert plan.shared_peak_memory - plan.least_memory == plan.bytes_in


def test_ties_that_keep_all_need_no_threshold(tmp_path: Path) -> None:
    models = models_of(tmp_path, "F32")
    plan = mergekit_embed.plan(models.recipe("ties", parameters={"density": 1.0}), tmp_path / "o")
    assert not any(goes_again(plan, job) for job in plan.jobs)


def test_layers_are_measured_before_and_then_gone_through_once(tmp_path: Path) -> None:
    recipe = models_of(tmp_path, "F32").recipe("multislerp", granularity="model")
    plan = mergekit_embed.plan(recipe, tmp_path / "out")
    assert not any(goes_again(plan, job) for job in plan.jobs)
    assert random_model(0).keys() == {job.name for job in plan.jobs}
