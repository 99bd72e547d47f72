"""The study: data at a scale, a table from end to end on tiny models, and how leads are told."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boom_study
import numpy as np
import pytest
from study.compare import lines, told
from study.lab import Candidate, Cost, Lab
from study.page import page, picture
from study.setting import Setting, corpus_of, digest
from study.table import Table
from study.tables import TABLES, best, full
from tiny_models import WORDS, build_minilm
from train.plans import write_rows

from mergekit_embed.evaluate.compare import Comparison, Row, TaskFacts
from mergekit_embed.samples import Samples


def few(lab: Lab, seed: int) -> list[Candidate]:
    members = lab.trained([{"each": "task"}], seed)
    return [full(lab, seed), lab.merged("a member for every task", members), lab.base]


@pytest.fixture(scope="module", autouse=True)
def without_garbage_of_libraries() -> Iterator[None]:
    """Every training and every model looks for garbage; none of it is the libraries'."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


TABLE = Table(2, "Granularity", "What one member is trained on.", few)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("study")
    build_minilm(root / "base", 0)
    drawn = random.Random(0)

    def text() -> str:
        return " ".join(drawn.choices(WORDS, k=6))

    def pairs(count: int) -> list[dict[str, Any]]:
        return [{"sentence1": text(), "sentence2": text(), "score": i % 6} for i in range(count)]

    def classes(count: int) -> list[dict[str, Any]]:
        return [{"text": text(), "label": f"class {i % 3}"} for i in range(count)]

    train, dev = root / "data" / "train", root / "data" / "dev"
    rows = [{"query": text(), "pos": [text()], "neg": []} for _ in range(80)]
    write_rows(train / "one-questions.jsonl", rows)
    write_rows(train / "one-pairs.jsonl", pairs(80))
    write_rows(train / "two-classes.jsonl", classes(80))
    queries = [{"id": f"q{i}", "text": text()} for i in range(20)]
    write_rows(dev / "one-questions" / "queries.jsonl", queries)
    documents = [{"id": f"d{i}", "text": text()} for i in range(30)]
    write_rows(dev / "one-questions" / "corpus.jsonl", documents)
    judged = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(20)]
    write_rows(dev / "one-questions" / "qrels.jsonl", judged)
    write_rows(dev / "one-pairs" / "pairs.jsonl", pairs(40))
    write_rows(dev / "two-classes" / "labelled.jsonl", classes(60))
    write_rows(dev / "other" / "pairs.jsonl", pairs(40))
    return Setting(
        data=root / "data",
        base=str(root / "base"),
        out=root / "out",
        scale=0.5,
        measured=0.5,
        rows=8,
        max_length=16,
        precision="fp32",
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.number))
def test_every_table_can_be_made(table: Table, setting: Setting) -> None:
    result = boom_study.run(table, setting, [1])
    tasks = {"one-questions", "one-pairs", "two-classes"}
    alone = table.number == 8  # measured where each model was not taught
    for row in result["rows"]:
        assert set(row["tasks"]) == tasks | (set() if alone else {"other"})
        assert (row["in_domain"] is None) == alone
        own = [row["tasks"][name] for name in (tasks if alone else {"other"})]
        assert row["out_of_domain"]["mean"] == pytest.approx(np.mean(own), abs=1e-3)
    labels = [row["label"] for row in result["rows"]]
    assert len(set(labels)) == len(labels)
    assert labels[-1] == "base"
    assert all(row["steps"] > 0 for row in result["rows"][:-1])
    assert f"### {table.number}. {table.title}" in page({table.number: result}, "")


@pytest.mark.slow
def test_a_killed_study_continues(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    places = {"data": setting.data, "base": setting.base, "out": out, "results": out}
    command = [sys.executable, boom_study.__file__]
    command += [f"--{name}={place}" for name, place in places.items()]
    command += ["--table=1", "--seeds=1", "--device=cpu", "--scale=1"]
    kept: set[tuple[int, Path]] = set()
    for awaited in (
        "trained/*/run/members/[!.]*/model.safetensors",
        "results/results/*/*/experiments/*/*.json",
    ):
        life = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while life.poll() is None and len(list(out.glob(awaited))) < 3:
            time.sleep(0.01)
        life.send_signal(signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL, "it had ended before it could be killed"
        trained = out.glob("trained/*/run/members/[!.]*/model.safetensors")
        written = sorted((path.stat().st_mtime_ns, path) for path in trained)
        assert kept <= set(written)
        kept = set(written[:-1])  # the last may not have been told as done
    assert not (out / "table-1.json").exists()
    subprocess.run(command, check=True)
    assert kept == {(path.stat().st_mtime_ns, path) for _, path in kept}
    defaults = {one.name: one.default for one in fields(Setting) if one.default is not MISSING}
    given = {**defaults, "scale": 1.0, "device": "cpu", "out": tmp_path / "whole"}
    result = boom_study.run(TABLES[1], replace(setting, **given), [1])
    assert json.loads((out / "table-1.json").read_text()) == result


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_smaller_scale_has_fewer_rows_and_as_many_documents(
    setting: Setting, tmp_path: Path
) -> None:
    corpus = corpus_of(setting)
    assert {name: len(rows_of(path)) for name, path in corpus.train.items()} == {
        "one-questions": 40,
        "one-pairs": 40,
        "two-classes": 41,  # half of each class: 13.5 are 14
    }
    assert corpus.kinds == {
        "one-questions": "retrieval",
        "one-pairs": "sts",
        "two-classes": "classification",
    }
    whole = {json.dumps(row) for row in rows_of(setting.data / "train" / "one-pairs.jsonl")}
    assert {json.dumps(row) for row in rows_of(corpus.train["one-pairs"])} < whole
    cut = {name: rows_of(path) for name, path in corpus.train.items()}
    for name, path in corpus.fresh.items():
        fresh = rows_of(path)
        assert len(fresh) >= 39
        assert not [row for row in fresh if row in cut[name]]
    assert set(corpus.fresh) == set(corpus.train)
    assert corpus_of(replace(setting, scale=0.6, out=tmp_path)).fresh == {}
    found = corpus.dev["one-questions"]
    queries = {row["id"] for row in rows_of(found / "queries.jsonl")}
    assert len(queries) == 10
    assert {row["query-id"] for row in rows_of(found / "qrels.jsonl")} == queries
    assert len(rows_of(found / "corpus.jsonl")) == 30


def test_a_table_is_made_once_and_told(setting: Setting, tmp_path: Path) -> None:
    result = boom_study.run(TABLE, setting, [1])
    boom_study.write(tmp_path, result)
    assert json.loads((tmp_path / "table-2.json").read_text()) == result
    labels = [row["label"] for row in result["rows"]]
    assert labels == ["full corpus", "a member for every task", "base"]
    whole, merged, base = result["rows"]
    assert set(whole["tasks"]) == {"one-questions", "one-pairs", "two-classes", "other"}
    assert "lead" not in whole["in_domain"]
    for row in result["rows"][1:]:
        for group in ("in_domain", "out_of_domain"):
            mean = row[group]
            assert mean["lead"] == pytest.approx(mean["mean"] - whole[group]["mean"], abs=2e-3)
            assert mean["interval"][0] <= mean["interval"][1]
    assert whole["steps"] == merged["steps"] == 15  # 121 rows in batches of 8 of one data set
    assert base["steps"] == 0
    assert result["setting"]["scale"] == 0.5
    assert str(setting.out.parent) not in json.dumps(result)
    before = {path: path.stat().st_mtime_ns for path in setting.out.rglob("*.safetensors")}
    assert before
    assert boom_study.run(TABLE, setting, [1]) == result
    after = {path: path.stat().st_mtime_ns for path in setting.out.rglob("*.safetensors")}
    assert after == before
    shown = page({2: result}, "Findings.")
    assert "### 2. Granularity" in shown
    assert shown.count("\n| ") == 2 * (1 + 1 + len(labels))
    assert f"| full corpus | {whole['tasks']['one-pairs']:.2f} |" in shown
    assert "(study-2.svg)" in shown
    drawn = picture(result)
    assert drawn is not None
    told = ElementTree.fromstring(drawn)
    assert told.get("role") == "img"
    texts = [one.text for one in told.iter() if one.text]
    assert "full corpus" in texts and "a member for every task" in texts and "base" not in texts
    alone = {**result, "rows": [{**row, "out_of_domain": None} for row in result["rows"]]}
    assert picture(alone) is None and "svg" not in page({2: alone}, "")


def test_the_page_is_what_the_results_make() -> None:
    results = {
        content["table"]: content
        for path in sorted(boom_study.RESULTS.glob("table-*.json"))
        for content in [json.loads(path.read_text())]
    }
    assert results
    findings = boom_study.FINDINGS.read_text(encoding="utf-8")
    assert boom_study.PAGE.read_text(encoding="utf-8") == page(results, findings)
    for number in results:
        assert boom_study.PAGE.with_name(f"study-{number}.svg").is_file()


def test_what_is_recommended_beats_the_full_corpus() -> None:
    """As it was measured, with the recipe as it is now: a change of it needs a new run."""
    result = json.loads((boom_study.RESULTS / "table-9.json").read_text())
    first, row, *_ = result["rows"]
    assert (first["label"], row["label"]) == ("full corpus", "recipes/best.yaml")
    assert len(result["seeds"]) >= 2 and 0 not in result["seeds"]
    for group in ("in_domain", "out_of_domain"):
        assert row[group]["mean"] > first[group]["mean"]
        assert row[group]["interval"][0] > 0
    assert result["best_recipe"] == digest(best())


def row_of(label: str, scores: np.ndarray[Any, Any]) -> Row:
    samples = {"task": {"": Samples("mean", scores[None])}}
    return Row(label, "", None, {"task": 100 * float(scores.mean())}, samples)


def test_tables_are_numbered_and_named() -> None:
    assert [table.number for table in TABLES] == list(range(10))
    assert len({table.title for table in TABLES}) == 10


def test_a_lead_is_the_mean_over_seeds_and_its_interval_draws_texts() -> None:
    facts = TaskFacts("task", "Retrieval", "ndcg_at_10", "in-domain", "task", "1", "test")
    random = np.random.default_rng(0)
    measured = []
    for seed in range(2):
        first = random.uniform(0.3, 0.7, 500)
        lead = random.normal(0.02 * (seed + 1), 0.1, 500)
        rows = (row_of("first", first), row_of("second", first + lead))
        candidates = [Candidate(row.label, Path(), cost=Cost(10 * seed, 7, 3)) for row in rows]
        measured.append((candidates, Comparison((facts,), rows)))
    one, two = lines(measured)
    means = [comparison.mean(comparison.rows[1]) for _, comparison in measured]
    leads = [100 * (c.rows[1].scores["task"] - c.rows[0].scores["task"]) / 100 for _, c in measured]
    assert one.inside is not None
    assert two.inside is not None
    assert one.inside.lead is None
    assert two.outside is None
    assert two.inside.value == pytest.approx(np.mean(means))
    assert two.inside.spread == pytest.approx(np.std(means, ddof=1))
    assert two.inside.lead is not None
    mean, low, high = two.inside.lead
    assert mean == pytest.approx(np.mean(leads))
    error = 100 * 0.1 / np.sqrt(500) / np.sqrt(2)  # two seeds, each with leads of its own
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert two.cost == Cost(5, 7, 3)
    assert told([two])[0]["in_domain"]["lead"] == round(mean, 3)
