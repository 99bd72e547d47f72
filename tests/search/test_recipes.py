"""The recipes that we ship with a search, and the page on searches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML
from train.plans import write_rows

from mergekit_embed.recipe import load
from mergekit_embed.recipe.reference import json_schema
from mergekit_embed.search import load_search, search
from mergekit_embed.search.reference import markdown

from .scenes import dev_folders

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "search").glob("*.yaml"))


@pytest.fixture
def place(family_folder: Path) -> Path:
    """A folder with everything that the recipes name."""
    names = ("base", "retrieval", "similarity", "classification")
    for name, model in zip(names, ("base", "m1", "m2", "m3"), strict=True):
        shutil.copytree(family_folder / model, family_folder / "members" / name)
    data = family_folder / "data"
    data.mkdir()
    for ours, theirs in (("questions", "questions"), ("pairs", "similar"), ("reviews", "topics")):
        shutil.copy(family_folder / f"{theirs}.jsonl", data / f"{ours}.jsonl")
    dev_folders(data)
    (data / "dev" / "found").rename(data / "dev" / "questions")
    return family_folder


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_that_we_ship_searches(file: Path, place: Path) -> None:
    recipe = place / file.name
    shutil.copy(file, recipe)
    spec = load_search(recipe)
    assert spec.recipe.output == f"merged/{file.stem}"
    data = json.loads(json.dumps(load(recipe).source.data))
    jsonschema.validate(data, json_schema())
    few = {"batch_size": 8} if spec.probe else {}
    few |= {"steps": 2, "evaluate_every": 1} if spec.strategy == "gradient" else {}
    few |= {"evaluations": 3} if spec.boxed else {}
    data["search"] |= few
    with recipe.open("w") as stream:
        YAML().dump(data, stream)
    found = search(recipe, place / "out", device="cpu")
    assert load(found.recipe).search is None


def test_the_page_on_searches_is_the_one_that_the_schema_gives() -> None:
    assert (ROOT / "docs" / "search.md").read_text() == markdown()


def test_rows_are_drawn_evenly_over_tasks(tmp_path: Path) -> None:
    from mergekit_embed.search.probe import draw_probe
    from mergekit_embed.train.data import open_datasets
    from mergekit_embed.train.plan import load as load_plan

    sizes = {"large": ("a", 300), "small": ("b", 20), "third": ("c", 200), "other": ("c", 100)}
    for name, (_, rows) in sizes.items():
        content = [{"query": f"{name} {i}", "pos": [f"answer {name} {i}"]} for i in range(rows)]
        write_rows(tmp_path / f"{name}.jsonl", content)
    plan = load_plan(
        {
            "model": "base",
            "members": [100],
            "data": {
                name: {"path": str(tmp_path / f"{name}.jsonl"), "kind": "pair", "task": task}
                for name, (task, _) in sizes.items()
            },
            "training": {"batch_size": 10},
        }
    )
    probe = draw_probe(plan, open_datasets(plan), 220, 0.1)
    rows = {name: len(numbers) for name, numbers in probe.rows.rows.items()}
    assert rows == {"large": 100, "small": 20, "third": 67, "other": 33}
    assert {batch.names for batch in probe.judged} == {(name,) for name in sizes}
    taught = [tuple(batch.numbers) for batch in probe.taught if batch.names == ("large",)]
    judged = [tuple(batch.numbers) for batch in probe.judged if batch.names == ("large",)]
    assert len(taught) == 9
    assert len(judged) == 1
    assert not set(taught) & set(judged)
