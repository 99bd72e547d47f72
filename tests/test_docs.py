"""What the documentation shows works as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import boom_merge

from mergekit_embed.cli.boom import boom
from mergekit_embed.errors import RecipeError
from mergekit_embed.methods import Gram, available
from mergekit_embed.methods.registry import _METHODS
from mergekit_embed.recipe import load, load_all
from mergekit_embed.recipe.reference import json_schema, markdown

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.S | re.M)


YAML = [
    (page, block)
    for page in PAGES
    for block in blocks(page, "yaml")
    if re.search("^merge_method:", block, re.M)
]
PYTHON = [(page, block) for page in PAGES for block in blocks(page, "python")]


def test_the_recipe_reference_is_the_one_that_the_schema_gives() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == markdown()


@pytest.mark.parametrize(("page", "block"), YAML, ids=lambda value: getattr(value, "name", ""))
def test_every_recipe_in_the_docs_is_valid(page: Path, block: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(block)
    source = load_all(file)[0].source
    data = source.data if source.original is None else source.original
    jsonschema.validate(_plain(data), json_schema())


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_that_we_ship_is_valid(file: Path) -> None:
    recipe = load(file)
    jsonschema.validate(_plain(recipe.source.data), json_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"merge_method": "linear"},
        {"merge_method": "lineal", "models": [{"model": "a"}]},
        {"merge_method": "linear", "models": [{"model": "a", "weight": 1}]},
        {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weigth": 1}}]},
        {"merge_method": "linear", "models": [{"model": "a", "parameters": {"normalize": 1}}]},
        {"merge_method": "ties", "models": [{"model": "a"}]},
        {"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}]},
        {
            "merge_method": "slerp",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": 1.5},
        },
        {"merge_method": "linear", "models": [{"model": "a"}], "granularity": "element"},
        {"merge_method": "linear", "models": [{"model": "a"}], "tokenizer": {"tokens": {}}},
        {"merge_method": "linear", "models": [{"model": "a"}], "pad_to_multiple_of": 0},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        load(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


def test_the_schema_is_a_schema_and_the_command_prints_it() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    printed = CliRunner().invoke(boom, ["schema"])
    assert printed.exit_code == 0
    assert json.loads(printed.output) == json_schema()


def test_the_errors_that_the_readme_shows_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("soup.yaml").write_text(
        "merge_method: linear\n"
        "models:\n"
        "  - model: ./bert-legal\n"
        "    parameters: {weigth: 0.5}\n"
        "  - model: ./bert-medical\n"
        "# how texts become one vector\n"
        "pooling: mean\n"
    )
    ran = boom_merge("soup.yaml")
    assert ran.code == 2
    assert f"$ boom-merge soup.yaml\n{ran.err}```" in (ROOT / "README.md").read_text()


def test_every_method_is_explained() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for name in available():
        assert f"`{name}`" in page
        assert f"`{name}`" in readme


def test_the_method_of_the_docs_works() -> None:
    (example,) = (block for _, block in PYTHON if "@mixture" in block)
    namespace: dict[str, object] = {}
    try:
        exec(compile(example, "docs/methods.md", "exec"), namespace)
        method = available()["longest"]
        gram = Gram(np.diag([1.0, 9.0, 4.0]))
        found = method.function(gram, weight=np.ones(3), share=0.5)
        assert np.array_equal(found, [0.0, 0.5, 0.0])
    finally:
        _METHODS.pop("longest", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def _plain(data: object) -> object:
    return json.loads(json.dumps(data))
