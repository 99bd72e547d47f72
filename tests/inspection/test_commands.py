"""`boom-inspect`, and the pages of boom-merge, boom-search and boom-train, as a user runs them."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import ran, raw_bytes, write_recipe
from report.pages import Parsed
from search.scenes import make_family
from search.test_dev import soup_of
from train.runs import base_model, plan, write_data

from mergekit_embed.cli.boom import boom
from mergekit_embed.inspect import inspect as look
from mergekit_embed.inspect import models, remarks
from mergekit_embed.search.page import write_page

from .conftest import Scene

pytestmark = pytest.mark.usefixtures("cache")


def page_of(path: Path) -> Parsed:
    parsed = Parsed(path.read_text(encoding="utf-8"))
    assert all(one["role"] == "img" and one["aria-label"] for one in parsed.all_of("svg"))
    assert "nan" not in parsed.text.get("td", "").lower()
    return parsed


def titles(parsed: Parsed) -> list[str]:
    return [attributes["id"] or "" for attributes in parsed.all_of("h2")]


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:
        return None if name == "matplotlib" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def test_models_are_told_in_tables(scene: Scene) -> None:
    told = ran(boom, "inspect", *scene.members, "--base", scene.base)
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0].split() == ["member", "length", "of", "the", "base", "moved"]
    lengths = look(models([str(one) for one in scene.members], str(scene.base))).model.lengths
    for number, (folder, length) in enumerate(zip(scene.members, lengths, strict=True), start=1):
        assert lines[number].split()[:3] == [str(number), str(folder), f"{length:.4g}"]
    assert "cosine" in lines and "sign conflicts" in lines
    layers = [line.split()[0] for line in lines if line.startswith(("e", "l"))]
    assert layers == ["layer", "embeddings", "encoder.layer.0", "encoder.layer.1"]
    assert lines[-1].startswith("warning: ") and "longer than the others'" in lines[-1]


def test_a_recipe_is_told_with_its_coefficients(scene: Scene, tmp_path: Path) -> None:
    wanted = write_recipe(tmp_path / "r.yaml", scene.recipe("linear"))
    told = ran(boom, "inspect", wanted, "--by", "module", "-q")
    first = told.out.splitlines()[1].split()
    assert first[-3] == "0.3333"
    assert "encoder.layer.*.attention.query" in told.out


def test_json_says_all(scene: Scene, tmp_path: Path) -> None:
    html = tmp_path / "deep" / "report.html"
    told = ran(
        boom, "inspect", *scene.members, "--base", scene.base, "--json", "--rank", "--html", html
    )
    found = json.loads(told.out)
    assert (told.err, found["status"], found["html"]) == ("", "done", str(html))
    facts = look(models([str(one) for one in scene.members], str(scene.base)), rank=True)
    assert found["model"][0]["lengths"] == facts.model.lengths.tolist()
    assert found["warnings"] == remarks(facts)
    assert len(found["tensor"]) == 4 and all(0 < rank <= 1 for rank in found["model"][0]["rank"])
    assert titles(page_of(html))[:3] == ["members", "angles", "conflicts"]


def test_one_model_alone_has_no_pairs(scene: Scene, tmp_path: Path) -> None:
    html = tmp_path / "one.html"
    told = ran(boom, "inspect", scene.members[0], "--html", html)
    assert told.code == 0 and "cosine" not in told.out
    assert titles(page_of(html)) == ["members", "layers", "modules", "tensors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["nowhere"], "nowhere"),
        (["r.yaml", "--base", "b"], "names its base itself"),
    ],
)
def test_what_is_wrong_ends_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = ran(boom, "inspect", *arguments)
    assert (told.code, told.out) == (2, "") and said in told.err


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_nothing_is_begun(scene: Scene, tmp_path: Path) -> None:
    wanted = write_recipe(tmp_path / "r.yaml", scene.recipe("linear"))
    for command in (["inspect", wanted, "--html"], ["merge", wanted, "-o", "out", "--report"]):
        told = ran(boom, *command, tmp_path / "page.html")
        assert told.code == 2 and "pip install 'mergekit_embed[report]'" in told.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "page.html").exists()


def test_a_merge_with_a_report_is_the_merge_without(scene: Scene, tmp_path: Path) -> None:
    wanted = write_recipe(tmp_path / "r.yaml", scene.recipe("model_stock"))
    ran(boom, "merge", wanted, "-o", tmp_path / "plain")
    told = ran(boom, "merge", wanted, "-o", tmp_path / "told", "--report", tmp_path / "report.html")
    assert told.code == 0 and "read once" in told.out, "Gram matrices were known"
    assert raw_bytes(tmp_path / "told") == raw_bytes(tmp_path / "plain")
    parsed = page_of(tmp_path / "report.html")
    assert titles(parsed)[:2] == ["merge", "members"] and "coefficients" in titles(parsed)
    assert "model_stock" in parsed.text["td"]


def test_several_merges_have_a_page_each(scene: Scene, tmp_path: Path) -> None:
    recipes = [
        write_recipe(tmp_path / f"{name}.yaml", scene.recipe(name)) for name in ("linear", "ties")
    ]
    ran(boom, "merge", *recipes, "-o", tmp_path / "out", "--report", tmp_path / "report.html")
    assert "coefficients" in titles(page_of(tmp_path / "report-linear.html"))
    assert "coefficients" not in titles(page_of(tmp_path / "report-ties.html"))


def test_a_search_has_a_page(tmp_path: Path) -> None:
    wanted = soup_of(make_family(tmp_path / "family"), strategy="greedy_soup", objective="dev")
    told = ran(
        boom,
        "search",
        wanted,
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
        "--report",
        tmp_path / "s.html",
    )
    assert told.code == 0
    parsed = page_of(tmp_path / "s.html")
    assert titles(parsed) == ["found", "way", "vectors", "dev-tasks"]
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert f"{found['found']['value']:.6g}" in parsed.text["p"]


def searched(**changes: Any) -> dict[str, Any]:
    """A search.json of two groups, with a point that had no value."""
    point = {"weights": [[0.5, 0.5], [0.1, 0.9]], "factor": [1.0, 2.0], "parameters": {}}
    judged = [
        {"label": "start", "value": 2.0, "tasks": {"a": 1.0, "b": 3.0}, **point},
        {"label": "step 5", "value": None, "tasks": {}, **point},
        {"label": "step 10", "value": 1.0, "tasks": {"a": 0.5, "b": 1.5}, **point},
    ]
    return {
        "recipe": "r.yaml",
        "method": "self_positioning",
        "strategy": "gradient",
        "objective": "loss",
        "groups": ["block 1", "block 2"],
        "members": ["m1", "m2"],
        "vectors": {"lengths": {"m1": 1.0, "m2": 2.0}, "angles": [[0.0, 60.0], [60.0, 0.0]]},
        "found": judged[2],
        "judged": judged,
        "losses": [2.0, None, 1.0],
        "stopped": "all steps were made",
        "seconds": 1.0,
        **changes,
    }


def test_a_search_of_groups_and_of_trade_offs(tmp_path: Path) -> None:
    probe = {"rows": {"a": 10}, "digests": {"a": "00"}, "batches": 2, "judged_on": 1}
    front = [
        {"point": 0, "label": "start", "axes": {"a": 1.0, "b": 3.0}},
        {"point": 2, "label": "step 10", "axes": {"a": 2.0, "b": 1.5}},
    ]
    write_page(tmp_path / "s.html", searched(probe=probe, front=front))
    parsed = page_of(tmp_path / "s.html")
    assert titles(parsed) == ["found", "way", "vectors", "trade-offs", "probe-set"]
    alts = [attributes["aria-label"] for attributes in parsed.all_of("svg")]
    assert "a against b" in alts and "The loss of every step" in alts


def test_a_search_that_found_nothing_that_is_a_number(tmp_path: Path) -> None:
    worthless = [{**one, "value": None, "tasks": {}} for one in searched()["judged"]]
    write_page(tmp_path / "s.html", searched(judged=worthless, found=worthless[0]))
    assert "no number" in page_of(tmp_path / "s.html").text["p"]


def test_a_training_has_a_page(tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    write_data(tmp_path)
    wanted = plan(tmp_path, members=[50, 100], training={"steps": 3})
    told = ran(boom, "train", wanted, "-o", tmp_path / "out", "--report", tmp_path / "t.html")
    assert told.code == 0
    parsed = page_of(tmp_path / "t.html")
    assert titles(parsed) == ["members", "loss", "data", "settings"]
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    last = record["members"]["bag-50"]["curve"][-1]["loss"]
    assert f"{last:.4g}" in parsed.text["td"]
    record["members"]["bag-100"]["evaluations"] = [
        {"step": 1, "score": 0.5},
        {"step": 3, "score": math.nan},
    ]
    (tmp_path / "out" / "training.json").write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "out" / "members")
    from mergekit_embed.train.page import write_page as write_training

    write_training(tmp_path / "again.html", tmp_path / "out")
    assert "dev-scores" in titles(page_of(tmp_path / "again.html"))
