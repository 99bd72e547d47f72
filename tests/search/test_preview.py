"""The dry run of a search: it says what the search then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mergekit_embed.search import preview_search, search

from .scenes import DATA, boom_search, dev_folders, recipe_of, write_recipe


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(family_folder: Path) -> None:
    out = family_folder / "out"
    recipe = recipe_of(family_folder, groups="layer", dev=dev_folders(family_folder))
    told = boom_search(recipe, "-o", out, "--dry-run")
    assert told.code == 0
    assert f"would write {out}" in told.out
    assert "questions 40, similar 40, topics 40 rows" in told.out
    facts = json.loads(boom_search(recipe, "-o", out, "--dry-run", "--json").out)
    assert not out.exists()
    found = search(recipe, out, device="cpu").report
    assert facts["groups"] == found["groups"]
    assert facts["judgements"] == len(found["judged"])
    assert facts["steps"] == len(found["losses"])
    assert facts["rows"] == found["probe"]["rows"]
    assert facts["taught"] == found["probe"]["batches"]
    assert facts["judged"] == found["probe"]["judged_on"]
    assert facts["dev"] == list(found["dev"]["found"]["tasks"])
    size = sum(file.stat().st_size for file in (family_folder / "m1").rglob("*.safetensors"))
    assert 0.9 * size < facts["members"]["m1"] <= size
    assert facts["model_bytes"] == facts["members"]["m1"]  # stored as float32


@pytest.mark.parametrize("strategy", ["few_shot", "greedy_soup", "forward_selection"])
def test_a_dry_run_knows_how_much_is_judged(family_folder: Path, strategy: str) -> None:
    content = {
        "merge_method": "linear",
        "models": [{"model": f"m{i}"} for i in (1, 2, 3)],
        "search": {"data": DATA, "batch_size": 8, "strategy": strategy},
    }
    recipe = write_recipe(family_folder / "soup.yaml", content)
    most = preview_search(recipe).judgements
    judged = len(search(recipe, family_folder / "out", device="cpu").report["judged"])
    assert judged <= most if strategy == "forward_selection" else judged == most


@pytest.mark.parametrize("wrong", ["data", "dev", "member"])
def test_a_dry_run_tells_what_is_wrong(family_folder: Path, wrong: str) -> None:
    recipe = recipe_of(family_folder, dev=dev_folders(family_folder))
    if wrong == "data":
        (family_folder / "questions.jsonl").write_text("{}\n")
    elif wrong == "dev":
        (family_folder / "dev" / "pairs" / "pairs.jsonl").write_text("{}\n")
    else:
        shutil.rmtree(family_folder / "m2")
    told = boom_search(recipe, "--dry-run")
    assert told.code == 2
    assert {"data": "questions.jsonl:1", "dev": "pairs.jsonl:1", "member": "m2"}[wrong] in told.err
