"""Dev tasks: judging by them, comparing with merges that need no search, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from mergekit_embed import merge
from mergekit_embed.recipe import load
from mergekit_embed.samples import Samples, borda
from mergekit_embed.search import search
from mergekit_embed.search.dev import DevTasks, Measured, compared
from mergekit_embed.search.specs import Doubles
from mergekit_embed.train.dev import evaluator

from .scenes import DATA, dev_folders, recipe_of, write_recipe


def soup_of(root: Path, **search: Any) -> Path:
    content = {
        "merge_method": "linear",
        "models": [{"model": f"m{i}"} for i in (1, 2, 3)],
        "search": {"dev": dev_folders(root), **search},
    }
    return write_recipe(root / "soup.yaml", content)


@pytest.mark.parametrize("objective", ["dev", "borda"])
def test_a_soup_is_chosen_by_dev_tasks(family_folder: Path, objective: str) -> None:
    recipe = soup_of(family_folder, strategy="greedy_soup", objective=objective)
    found = search(recipe, family_folder / "out", device="cpu")
    judged = found.report["judged"]
    assert set(judged[0]["tasks"]) == {"pairs", "found"}
    assert found.value == min(one["value"] for one in judged)
    alone = _alone(family_folder)
    for told in judged[:3]:
        assert told["tasks"] == pytest.approx(alone[told["label"].removesuffix(" alone")])
    if objective == "dev":
        assert judged[1]["value"] == pytest.approx(-np.mean(list(judged[1]["tasks"].values())))


def _alone(root: Path) -> dict[str, dict[str, float]]:
    """What every member reaches, measured on its own folder."""
    found: dict[str, dict[str, float]] = {}
    for name in ("m1", "m2", "m3"):
        model = SentenceTransformer(str(root / name), device="cpu")
        found[name] = {}
        for task in ("pairs", "found"):
            measure = evaluator(root / "dev" / task)
            result = measure(model)
            found[name][task] = result[measure.primary_metric]
    return found


def test_what_is_found_is_compared_with_merges_that_need_no_search(family_folder: Path) -> None:
    recipe = recipe_of(family_folder, dev=dev_folders(family_folder))
    found = search(recipe, family_folder / "out", device="cpu")
    told = json.loads((family_folder / "out" / "search.json").read_text())["dev"]
    assert set(told) >= {"found", "uniform", "multislerp"}
    (best,) = (name for name in told if name.startswith("best member (m"))
    assert set(told[best]["tasks"]) == {"pairs", "found"}
    lead = told["uniform"]["lead"]
    assert lead["mean"] == pytest.approx(told["found"]["mean"] - told["uniform"]["mean"])
    assert lead["interval"][0] <= lead["mean"] <= lead["interval"][1]
    assert found.report["dev"] == told


def test_the_uniform_merge_is_the_mean_of_the_members(family_folder: Path) -> None:
    equal = {"strategy": "few_shot", "temperature": 1e9, "data": DATA, "batch_size": 8}
    found = search(soup_of(family_folder, **equal), family_folder / "out", device="cpu")
    last = found.report["judged"][-1]
    assert last["label"] == "softmax of all"
    np.testing.assert_allclose(last["weights"][0], 1 / 3, atol=1e-8)


def test_a_borda_count_counts_rivals_in_every_task() -> None:
    rivals = [{"a": 0.1, "b": 0.9}, {"a": 0.5, "b": 0.2}]
    assert borda({"a": 0.5, "b": 0.3}, rivals) == 1.5 + 1.0


def measured(found: dict[str, Doubles]) -> Measured:
    samples = {name: Samples("mean", scores[None]) for name, scores in found.items()}
    return Measured({name: one.score() for name, one in samples.items()}, samples)


def test_an_interval_draws_the_texts_of_every_task() -> None:
    random = np.random.default_rng(0)
    sizes = {"a": 400, "b": 100}
    theirs = {name: random.normal(0.5, 0.2, size) for name, size in sizes.items()}
    leads = {name: random.normal(0.02, 0.1, size) for name, size in sizes.items()}
    ours = {name: scores + leads[name] for name, scores in theirs.items()}
    told = compared({"ours": measured(ours), "theirs": measured(theirs)}, "ours", 0)
    lead = told["theirs"]["lead"]
    wanted = float(np.mean([one.mean() for one in leads.values()]))
    assert lead["mean"] == pytest.approx(wanted)
    # The same texts are drawn for both, so that only leads vary: with the error of their mean.
    error = np.sqrt(sum(one.var() / len(one) for one in leads.values())) / 2
    low, high = lead["interval"]
    assert low == pytest.approx(wanted - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(wanted + 1.96 * error, abs=0.2 * error)


@pytest.mark.parametrize("best", ["uniform", "multislerp", "m2"])
def test_a_merge_that_needs_no_search_is_written_where_it_is_better(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch, best: str
) -> None:
    """Every model has the same scores, but for the one that is to be the best."""
    place = {"m2": 2, "uniform": 4, "multislerp": 5}[best]  # found, m1, m2, m3, uniform, multislerp
    asked = []

    def measure(self: DevTasks, model: SentenceTransformer) -> Measured:
        asked.append({name: one.detach().clone() for name, one in model.named_parameters()})
        score = 0.9 if len(asked) - 1 == place else 0.5
        return Measured({"task": score}, {"task": Samples("mean", np.full((1, 9), score))})

    monkeypatch.setattr(DevTasks, "measured", measure)
    dev = dev_folders(family_folder)
    recipe = recipe_of(family_folder, groups="layer", dev=dev, steps=2, evaluate_every=1)
    found = search(recipe, family_folder / "out", device="cpu")
    name = f"best member ({best})" if best == "m2" else best
    assert found.report["chosen"] == name
    assert f"on the dev tasks {name} has 0.9, and what was found 0.5" in found.recipe.read_text()
    merge(found.recipe, family_folder / "merged")
    merged = SentenceTransformer(str(family_folder / "merged"), device="cpu")
    for key, own in merged.named_parameters():
        torch.testing.assert_close(own, asked[place][key], rtol=1e-5, atol=1e-6)
    asked.clear()
    place = 99
    again = search(recipe, family_folder / "out", device="cpu")
    assert again.report["chosen"] == "found"  # which is as good as any
    assert load(again.recipe).method.name == "self_positioning"


def test_what_was_found_may_be_kept_all_the_same(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.9, 0.9, 0.9, 0.9])

    def measure(self: DevTasks, model: SentenceTransformer) -> Measured:
        score = next(scores)
        return Measured({"task": score}, {"task": Samples("mean", np.full((1, 9), score))})

    monkeypatch.setattr(DevTasks, "measured", measure)
    recipe = recipe_of(family_folder, dev=dev_folders(family_folder), fallback=False)
    found = search(recipe, family_folder / "out", device="cpu")
    assert found.report["chosen"] == "found"
    assert load(found.recipe).method.name == "self_positioning"
