"""Searches from a recipe to a recipe: what is written, what stops them, what continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import boom_merge
from lora import adapt
from safetensors.torch import load_file
from tiny_models import build_minilm
from train.plans import write_rows

import mergekit_embed.search.loop
from mergekit_embed import merge
from mergekit_embed.errors import (
    DataError,
    NonFiniteError,
    OutputError,
    PlanError,
    RecipeError,
    UsageError,
)
from mergekit_embed.publish.lineage import read_lineage
from mergekit_embed.recipe import load
from mergekit_embed.search import load_search, search
from mergekit_embed.search.loop import Silent
from mergekit_embed.search.objective import ProbeLoss
from mergekit_embed.search.prepare import open_probe
from mergekit_embed.search.state import STATE

from .scenes import DATA, Kill, KilledError, boom_search, opened_scene, recipe_of, write_recipe

ROOT = Path(__file__).parents[2]


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("self_positioning", "model"),
        ("self_positioning", "layer"),
        ("task_arithmetic", "module"),
        ("task_arithmetic", "component"),
        ("linear", "block"),
    ],
)
def test_what_is_found_merges_to_the_model_that_the_search_ended_with(
    family_folder: Path, method: str, groups: str
) -> None:
    recipe = recipe_of(family_folder, method, groups=groups)
    found = search(recipe, family_folder / "out", device="cpu")
    merged = merge(found.recipe, family_folder / "merged").path
    with opened_scene(recipe) as (spec, scene):
        from mergekit_embed.search.start import Merging

        merging = Merging(spec.recipe, scene.jobs, scene.cells)
        scene.position.put(merging.coefficients(found.point))
        ours = scene.position.flat()
        own = load_file(merged / "model.safetensors")
        dense = load_file(merged / "2_Dense" / "model.safetensors")
        own |= {f"2_Dense/{name}": one for name, one in dense.items()}
        assert ours.keys() == own.keys()
        for name, tensor in ours.items():
            upper = torch.nextafter(tensor, torch.full_like(tensor, torch.inf))
            lower = torch.nextafter(tensor, torch.full_like(tensor, -torch.inf))
            assert bool(((own[name] >= lower) & (own[name] <= upper)).all()), name


def test_the_loss_becomes_lower_and_the_report_says_all(family_folder: Path) -> None:
    found = search(recipe_of(family_folder), family_folder / "out", device="cpu")
    assert found.value < found.start_value
    report = json.loads((family_folder / "out" / "search.json").read_text())
    assert report == json.loads(json.dumps(found.report))
    assert [one["label"] for one in report["judged"]] == ["step 0", "step 4", "step 8", "step 12"]
    assert len(report["losses"]) == 12
    assert report["found"]["value"] == min(one["value"] for one in report["judged"])
    assert set(report["found"]["tasks"]) == {"retrieval", "sts", "classification"}
    assert report["probe"]["rows"] == {"questions": 40, "similar": 40, "topics": 40}
    assert all(length > 0 for length in report["vectors"]["lengths"].values())
    angles = np.array(report["vectors"]["angles"])
    assert np.allclose(angles, angles.T)
    assert (angles[~np.eye(3, dtype=bool)] > 45).all()
    assert not (family_folder / "out" / STATE).exists()


def test_what_is_found_is_a_plain_recipe_that_runs_from_anywhere(
    family_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(family_folder)
    search(recipe_of(Path()), device="cpu")
    found = family_folder / "searched" / "recipe" / "found.yaml"
    recipe = load(found)
    assert recipe.search is None
    assert recipe.output == "merged/recipe"
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert boom_merge(found).code == 0
    assert (away / "merged" / "recipe" / "model.safetensors").is_file()


def test_boom_merge_searches_first(family_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(family_folder)
    recipe = recipe_of(Path())
    dry = boom_merge(recipe, "--dry-run")
    assert dry.code == 0
    assert not Path("searched").exists()
    ran = boom_merge(recipe, "--device", "cpu")
    assert ran.code == 0, ran.err
    by_itself = merge("searched/recipe/found.yaml", "again").path
    first = Path("merged/recipe/model.safetensors").read_bytes()
    assert first == (by_itself / "model.safetensors").read_bytes()
    told = read_lineage("merged/recipe").content["search"]
    report = json.loads(Path("searched/recipe/search.json").read_text())
    assert told["strategy"] == "gradient"
    assert told["value"]["best"] == report["found"]["value"]
    assert told["probe"]["rows"] == report["probe"]["rows"]


def test_a_merge_in_python_does_not_pass_over_a_search(family_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+:1: search: has to be done first"):
        merge(recipe_of(family_folder), family_folder / "merged")


def test_the_command_tells_what_it_found(family_folder: Path) -> None:
    out = family_folder / "out"
    ran = boom_search(recipe_of(family_folder), "-o", out, "--device", "cpu", "--cache", "1MB")
    assert ran.code == 0
    assert ran.last == f"boom-merge {out / 'found.yaml'}"
    assert "lambda   " in ran.out
    told = boom_search(recipe_of(family_folder), "-o", out, "--json", "--cache", "off")
    facts = json.loads(told.out)
    assert facts["members"] == ["m1", "m2", "m3"]
    assert facts["value"] < facts["start"]


def test_a_search_without_a_base_stays_on_the_simplex(family_folder: Path) -> None:
    content = {
        "merge_method": "linear",
        "models": [{"model": "m1"}, {"model": "m2"}],
        "search": {"data": DATA, "batch_size": 8, "steps": 8, "learning_rate": 0.5},
    }
    recipe = write_recipe(family_folder / "linear.yaml", content)
    found = search(recipe, family_folder / "out", device="cpu")
    weights = found.point.weights
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)


def test_members_may_be_adapters(family_folder: Path) -> None:
    for seed in (1, 2):
        adapt(family_folder / "base", family_folder / f"a{seed}", seed)
    recipe = recipe_of(family_folder, "task_arithmetic")
    text = recipe.read_text().replace("model: m1", "model: base+a1")
    recipe.write_text(text.replace("model: m2", "model: base+a2"))
    found = search(recipe, family_folder / "out", device="cpu")
    assert found.value < found.start_value
    assert load(found.recipe).members[0].reference == "../base+../a1"
    merge(found.recipe, family_folder / "merged")


# --- strategies without a gradient ---------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["few_shot", "greedy_soup", "forward_selection"])
def test_strategies_that_only_judge(family_folder: Path, strategy: str) -> None:
    content = {
        "merge_method": "linear",
        "models": [{"model": f"m{i}"} for i in (1, 2, 3)],
        "search": {"data": DATA, "batch_size": 8, "strategy": strategy},
    }
    recipe = write_recipe(family_folder / "soup.yaml", content)
    found = search(recipe, family_folder / "out", device="cpu")
    judged = found.report["judged"]
    assert [one["label"] for one in judged[:3]] == ["m1 alone", "m2 alone", "m3 alone"]
    assert found.value <= min(one["value"] for one in judged[:3])
    merge(found.recipe, family_folder / "merged")


@pytest.mark.parametrize("balance", ["tasks", "batches"])
def test_steps_mean_what_is_judged(family_folder: Path, balance: str) -> None:
    """The mean loss of the steps of an epoch is the value that is judged, on the same batches."""
    recipe = recipe_of(family_folder, held_out=0, balance=balance)
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 5} for i in range(80)]
    write_rows(family_folder / "similar.jsonl", rows)  # twice as many as of the others
    with opened_scene(recipe) as (spec, scene):
        found = open_probe(spec)
        assert found is not None
        objective = ProbeLoss(
            scene.embedder.model, found.datasets, found.rows, 0, balanced=spec.balanced
        )
        judged = objective.judge()
        count = len(found.rows.taught)
        assert count == 5 + 10 + 5
        steps = [objective.step(number) for number in range(count)]
        assert sum(steps) / count == pytest.approx(judged.value, rel=1e-5)
        if balance == "tasks":
            assert judged.value == pytest.approx(1.0)
            scene.position.put(np.ones((len(scene.jobs), 3)))
            moved = objective.judge()
            ratios = [moved.tasks[task] / judged.tasks[task] for task in judged.tasks]
            assert moved.value == pytest.approx(np.mean(ratios))
        else:
            sizes = {"retrieval": 5, "sts": 10, "classification": 5}
            total = sum(sizes[task] * loss for task, loss in judged.tasks.items())
            assert judged.value == pytest.approx(total / count)


# --- what stops a search -------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e5, 1e30, 1e300])
def test_a_rate_that_is_too_high_stops_and_keeps_the_best(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(mergekit_embed.search.loop, "SAVE_EVERY", 0.0)
    recipe = recipe_of(family_folder, "task_arithmetic", learning_rate=rate, evaluate_every=1)
    found = search(recipe, family_folder / "out", device="cpu")
    assert np.isfinite(found.value)
    assert found.value <= found.start_value
    assert found.stopped != "all steps were made"
    assert load(found.recipe).search is None


def test_a_loss_that_becomes_not_a_number_stops(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ProbeLoss.step
    monkeypatch.setattr(
        ProbeLoss, "step", lambda self, n: float("nan") if n == 5 else step(self, n)
    )
    found = search(recipe_of(family_folder), family_folder / "out", device="cpu")
    assert "not finite after step 5" in found.stopped
    assert found.report["losses"][-1] is None
    assert found.report["found"]["label"] == "step 4"


def test_members_whose_own_loss_is_not_a_number_are_an_error(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_embed.search.specs import Evaluation

    monkeypatch.setattr(ProbeLoss, "judge", lambda self: Evaluation(float("nan")))
    with pytest.raises(NonFiniteError, match="no point that was judged"):
        search(recipe_of(family_folder), family_folder / "out", device="cpu")
    assert not (family_folder / "out" / "found.yaml").exists()


def test_a_search_stops_when_nothing_becomes_better(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_embed.search.specs import Evaluation

    monkeypatch.setattr(ProbeLoss, "judge", lambda self: Evaluation(1.0))
    recipe = recipe_of(family_folder, steps=100, evaluate_every=2, patience=3)
    found = search(recipe, family_folder / "out", device="cpu")
    assert found.stopped == "3 judgements brought nothing better"
    assert len(found.report["losses"]) == 6


def test_the_time_limit_keeps_the_best_so_far(family_folder: Path) -> None:
    recipe = recipe_of(family_folder, steps=100_000, time_limit=1.0)
    began = time.monotonic()
    found = search(recipe, family_folder / "out", device="cpu")
    assert time.monotonic() - began < 20
    assert found.stopped == "the time limit was reached"


# --- what continues ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_search_that_was_interrupted_continues_to_the_same_end(
    family_folder: Path, optimizer: str
) -> None:
    recipe = recipe_of(family_folder, optimizer=optimizer)
    whole = search(recipe, family_folder / "whole", device="cpu")
    with pytest.raises(KilledError):
        search(recipe, family_folder / "out", device="cpu", progress=Kill(step=7))
    state = json.loads((family_folder / "out" / STATE).read_text())
    assert len(state["steps"]) == 6
    continued = search(recipe, family_folder / "out", device="cpu")
    assert continued.resumed == 2
    assert continued.report["judged"] == whole.report["judged"]
    assert continued.report["losses"] == whole.report["losses"]
    assert np.array_equal(continued.point.weights, whole.point.weights)


@pytest.mark.slow
def test_a_search_that_was_killed_continues_to_the_same_end(family_folder: Path) -> None:
    recipe = recipe_of(family_folder, steps=60)
    whole = search(recipe, family_folder / "whole", device="cpu")
    script = textwrap.dedent(
        """
        import os, signal, sys
        import mergekit_embed.search.loop as loop
        from mergekit_embed.search import load_search, search
        loop.SAVE_EVERY = 0.0
        class Kill(loop.Silent):
            def stepped(self, number, loss):
                if number == 30:
                    os.kill(os.getpid(), signal.SIGKILL)
        search(sys.argv[1], sys.argv[2], device="cpu", progress=Kill())
        """
    )
    out = family_folder / "out"
    ran = subprocess.run([sys.executable, "-c", script, recipe, out], env=dict(os.environ))
    assert ran.returncode == -signal.SIGKILL
    continued = search(recipe, out, device="cpu")
    assert continued.resumed > 0
    assert continued.report["judged"] == whole.report["judged"]


def test_another_recipe_does_not_continue(family_folder: Path) -> None:
    out = family_folder / "out"
    with pytest.raises(KilledError):
        search(recipe_of(family_folder), out, device="cpu", progress=Kill(step=7))
    other = search(recipe_of(family_folder, learning_rate=0.01), out, device="cpu")
    assert other.resumed == 0


def test_a_broken_state_is_told(family_folder: Path) -> None:
    out = family_folder / "out"
    out.mkdir()
    (out / STATE).write_text("{")
    with pytest.raises(OutputError, match="--restart"):
        search(recipe_of(family_folder), out, device="cpu")
    assert search(recipe_of(family_folder), out, device="cpu", restart=True).resumed == 0


def test_steps_are_saved_as_they_are_made(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergekit_embed.search.loop, "SAVE_EVERY", 0.0)
    seen: list[int] = []
    state = family_folder / "out" / STATE

    class Look(Silent):
        def stepped(self, number: int, loss: float) -> None:
            if state.is_file():
                seen.append(len(json.loads(state.read_text())["steps"]))

    search(recipe_of(family_folder), family_folder / "out", device="cpu", progress=Look())
    assert seen == list(range(12))


# --- what is wrong -------------------------------------------------------------------------------


def test_a_member_of_another_base_is_told_with_its_place(family_folder: Path) -> None:
    build_minilm(family_folder / "stranger", 99, dense=True)
    recipe = recipe_of(family_folder)
    recipe.write_text(recipe.read_text().replace("model: m2", "model: stranger"))
    with pytest.raises(RecipeError, match=r"yaml:\d+:\d+: models\[1\].model: has weights that"):
        search(recipe, family_folder / "out", device="cpu")


def test_a_member_of_another_shape_is_told(family_folder: Path) -> None:
    build_minilm(family_folder / "wide", 99, dense=True, hidden_size=64)
    recipe = recipe_of(family_folder)
    recipe.write_text(recipe.read_text().replace("model: m2", "model: wide"))
    with pytest.raises(PlanError):
        search(recipe, family_folder / "out", device="cpu")


def test_a_task_without_a_batch_is_told(family_folder: Path) -> None:
    write_rows(family_folder / "few.jsonl", [{"query": "a", "pos": ["b"]}] * 3)
    data = {**DATA, "few": {"path": "few.jsonl", "kind": "pair"}}
    with pytest.raises(DataError, match="3 of 3 rows of few are in the probe set, no batch of 8"):
        search(recipe_of(family_folder, data=data), family_folder / "out", device="cpu")


def test_rows_of_a_dev_task_are_told(family_folder: Path) -> None:
    first = json.loads((family_folder / "questions.jsonl").read_text().splitlines()[4])
    dev = family_folder / "dev"
    write_rows(dev / "queries.jsonl", [{"id": "1", "text": first["query"].upper()}])
    with pytest.raises(DataError, match=r"questions.jsonl:5: is in the dev task too .*queries"):
        search(recipe_of(family_folder, dev=["dev"]), family_folder / "out", device="cpu")
    spec = load_search(recipe_of(family_folder, dev=["dev"], overlap="drop"))
    found = open_probe(spec)
    assert found is not None
    assert found.rows.dropped == 1
    kept = found.rows.rows.rows["questions"]
    assert sorted(kept) == [number for number in range(40) if number != 4]
    assert all(4 not in b.numbers for b in found.rows.taught if b.names == ("questions",))


def test_a_cache_is_a_size(family_folder: Path) -> None:
    with pytest.raises(UsageError, match="cache must be a size"):
        search(recipe_of(family_folder), family_folder / "out", device="cpu", cache="some")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"search": {"steps": 3}}, "search.data: is required"),
    ({"search": {"data": DATA, "stepz": 3}}, 'search.stepz: unknown key, did you mean "steps"?'),
    ({"search": {"data": DATA, "steps": 0}}, "search.steps: must be at least 1"),
    ({"search": {"data": DATA, "strategy": "luck"}}, "search.strategy: must be"),
    ({"search": {"data": {"a": {"path": "a.jsonl"}}}}, "search.data.a.kind: is required"),
    (
        {"search": {"data": {"a": {"path": "a.jsonl", "kind": "sts", "loss": "cosnt"}}}},
        'search.data.a.loss: "cosnt": unknown loss',
    ),
    ({"search": {"data": DATA, "tasks": {"x": {"batch_size": 3}}}}, "search.tasks.x: unknown task"),
    ({"search": {"data": DATA, "l1": 0.1}}, "search.l1: is of coefficients"),
    ({"merge_method": "task_arithmetic", "search": {"data": DATA, "mu": 0.1}}, "search.mu: is of"),
    ({"search": {"data": DATA, "strategy": "few_shot"}}, "search.strategy: few_shot finds"),
    (
        {"merge_method": "linear", "search": {"data": DATA, "strategy": "few_shot", "steps": 3}},
        "search.steps: is of the strategy gradient",
    ),
    ({"search": {"data": DATA, "objective": "dev"}}, "search.data: is for the loss"),
    ({"search": {"objective": "dev"}}, "search.objective: "),
    ({"search": {"data": DATA, "dev": ["nowhere"]}}, "search.dev[0]: there is no folder"),
    ({"merge_method": "ties", "search": {"data": DATA}}, "search.strategy: gradient finds"),
    ({"post": [{"temp_scale": 0.9}], "search": {"data": DATA}}, "post: does not go with a search"),
    ({"sweep": {"lambda": [1, 2]}, "search": {"data": DATA}}, "sweep"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = {
        "merge_method": "self_positioning",
        "base_model": "base",
        "models": [{"model": "m1"}, {"model": "m2"}],
        **change,
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", content)
    ran = boom_search(recipe)
    assert ran.code == 2
    assert message in ran.err
    assert f"{recipe}:" in ran.err
    assert "recipe.yaml:1:1" not in ran.err


def test_a_recipe_without_a_search_is_told(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", {"merge_method": "linear", "models": [{"model": "a"}]}
    )
    ran = boom_search(recipe)
    assert ran.code == 2
    assert "search: is not there" in ran.err


def test_a_member_cannot_be_a_recipe_with_a_search(family_folder: Path) -> None:
    recipe_of(family_folder)
    outer = {"merge_method": "linear", "models": [{"model": "recipe.yaml"}, {"model": "m1"}]}
    with pytest.raises(RecipeError, match="search: is no part of a member"):
        load(write_recipe(family_folder / "outer.yaml", outer))
