"""The command: tables, files, gates, what is cached, and a run that is killed."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Family
from helpers import listed, write_recipe
from tiny_models import build_minilm

from mergekit_embed.cli import evaluating
from mergekit_embed.cli.boom import boom
from mergekit_embed.evaluate import evaluate, show

MAIN = "from mergekit_embed.cli.eval import main; main()"


def boom_eval(*arguments: Any) -> Result:
    found = CliRunner().invoke(boom, ["eval", "--device", "cpu", *map(str, arguments)])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


@pytest.fixture(scope="module")
def results(family: Family, task_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the base and a member on all tasks."""
    found = tmp_path_factory.mktemp("eval") / "results"
    models = [str(family.base), str(family.members[0])]
    evaluate(models, [str(task_folders)], results=found, device="cpu")
    return found


@pytest.fixture
def usual(family: Family, task_folders: Path, results: Path) -> list[Any]:
    """Arguments of what is done already."""
    return [family.base, family.members[0], "--tasks", task_folders, "--results", results]


def test_tables_show_what_there_is(usual: list[Any]) -> None:
    ran = boom_eval(*usual)
    assert ran.exit_code == 0
    assert "0 results to compute, 14 there already" in ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].split()[:4] == ["model", "mean", "mean", "of"]
    assert [line.split()[0] for line in lines[1:3]] == ["base", "m1"]
    assert lines[4].split() == ["task", "type", "metric", "base", "m1"]
    assert "drawing tasks anew" in lines[-1]  # clusters have no scores of texts


def test_json_csv_and_markdown_say_the_same(usual: list[Any], tmp_path: Path) -> None:
    table, page = tmp_path / "deep" / "a.csv", tmp_path / "a.md"
    ran = boom_eval(*usual, "--json", "--csv", table, "--markdown", page)
    assert ran.exit_code == 0
    told = json.loads(ran.stdout)
    assert told["status"] == "done"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["model"] for row in rows] == ["base", "m1"]
    for row, model in zip(rows, told["models"], strict=True):
        for key in ("mean", "mean_of_types", "in_domain", "out_of_domain", "borda"):
            assert float(row[key]) == model[key], key
        for name, task in model["tasks"].items():
            assert float(row[name]) == task["score"]
            assert f"{task['score']:.2f}" in page.read_text()
        scores = [task["score"] for task in model["tasks"].values()]
        assert model["mean"] == pytest.approx(sum(scores) / 7, abs=1e-3)
    lead = told["models"][1]["tasks"]["similarity"]["lead"]
    assert lead["over"] == "texts"
    assert lead["interval"][0] <= lead["value"] <= lead["interval"][1]
    assert told["models"][1]["tasks"]["clusters"]["lead"]["interval"] is None


def test_a_card_gets_what_the_table_says(family: Family, task_folders: Path, results: Path) -> None:
    from huggingface_hub import ModelCardData

    found = evaluate([str(family.base)], [str(task_folders)], results=results, device="cpu")
    told = ModelCardData(model_name="m", eval_results=show.model_index(found, found.rows[0]))
    entries = told.to_dict()["model-index"][0]["results"]
    assert len(entries) == 7
    similarity = next(one for one in entries if one["dataset"]["name"] == "similarity")
    assert similarity["task"] == {"type": "sentence-similarity", "name": "STS"}
    (metric,) = similarity["metrics"]
    assert metric["type"] == "cosine_spearman"
    assert metric["value"] == pytest.approx(found.rows[0].scores["similarity"], abs=1e-4)


def test_scores_are_put_into_the_cards_of_folders(
    family: Family, task_folders: Path, results: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    shutil.copytree(family.base, tmp_path / "base")
    shutil.copytree(family.members[0], tmp_path / "m1")
    (tmp_path / "base" / "README.md").write_text("# Mine\n\nWritten by hand.\n")
    (tmp_path / "m1" / "README.md").write_text("# Theirs\n")
    recipe = write_recipe(
        tmp_path / "soup.yaml", {"merge_method": "linear", "models": listed(*family.members)}
    )
    own = shutil.copytree(results, tmp_path / "results")
    asked = [tmp_path / "base", f"named={tmp_path / 'm1'}", "--tasks", task_folders / "similarity"]
    for models in (asked, asked, [recipe, *asked]):  # the second and third run change nothing
        ran = boom_eval(*models, "--results", own, "--update-card")
        assert ran.exit_code == 0, ran.stderr
        assert ran.stdout.splitlines()[-2:] == [
            f"wrote {tmp_path / name / 'README.md'}" for name in ("base", "m1")
        ]
        assert "there already" in ran.stderr
        found = evaluate([str(family.base)], [str(task_folders)], results=results, device="cpu")
        card = ModelCard.load(tmp_path / "base" / "README.md")
        (told,) = card.data.eval_results or []
        assert (told.dataset_name, told.metric_type) == ("similarity", "cosine_spearman")
        score = found.rows[0].scores["similarity"]
        assert told.metric_value == pytest.approx(score, abs=1e-4)
        assert card.text.count("Written by hand.") == 1
        assert card.text.count(f"{score:.2f}") == 1
    assert not list(tmp_path.glob("soup*/README.md"))


def test_a_missed_gate_is_told_and_gives_one(usual: list[Any]) -> None:
    ran = boom_eval(*usual, "--gate", "mean > 0", "--gate", "task:similarity > 100")
    assert ran.exit_code == 1
    missed = [line for line in ran.stderr.splitlines() if line.startswith("gate: ")]
    assert [line.split()[1] for line in missed] == ["base", "m1"]
    told = json.loads(boom_eval(*usual, "--gate", "mean >= base - 100", "--json").stdout)
    assert (told["status"], told["missed"]) == ("done", [])


def test_a_dry_run_says_what_is_there(usual: list[Any], family: Family, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "soup.yaml", {"merge_method": "linear", "models": listed(*family.members)}
    )
    ran = boom_eval(*usual, recipe, "--dry-run")
    assert ran.exit_code == 0
    assert " there  base on similarity   STS, cosine_spearman, 60 texts" in ran.stdout
    assert "to run  soup on similarity" in ran.stdout
    assert ran.stdout.endswith("7 of 21 results to compute\n")
    told = json.loads(boom_eval(*usual, recipe, "--dry-run", "--json").stdout)["results"]
    assert sum(not one["there"] for one in told) == 7


def test_health_is_told(usual: list[Any], family: Family, tmp_path: Path) -> None:
    ran = boom_eval(*usual, "--health", "--parent", family.base, "--json")
    base, one = json.loads(ran.stdout)["health"]
    assert base["drift"] == []
    assert one["drift"][0]["parent"] == "base"
    assert 0.5 < one["drift"][0]["cka"] < 1
    assert "effective rank" in boom_eval(*usual, "--health").stdout


def test_a_page_has_all_of_it(usual: list[Any], family: Family, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "report.html"
    ran = boom_eval(*usual, "--html", page, "--health", "--parent", family.base)
    assert ran.exit_code == 0
    assert f"wrote {page}" in ran.stdout
    text = page.read_text()
    for title in ("Models", "Tasks", "In-domain and out-of-domain", "Health"):
        assert f">{title}</h2>" in text
    assert text.count("<svg") == 5
    mean = next(line for line in ran.stdout.splitlines() if line.startswith("m1")).split()[1]
    assert f">{mean}<" in text
    other = tmp_path / "other.html"
    boom_eval(*usual, "--html", other, "--health", "--parent", family.base)
    assert other.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gate", "mean"], "is no gate"),
        (["--gate", "mean >= nobody"], "there is no model nobody"),
        (["--in-domain", "nothing"], "nothing is named for a group"),
        (["--tasks", "NoSuchTask"], "NoSuchTask is no folder, and no benchmark or task of mteb"),
        (["--tasks", "./no-such-folder"], "is no folder; a dev task has"),
        (["no-such-model"], "there is no folder"),
        (["--dimensions", "0"], "'0' is no number of dimensions"),
        (["--prompt", "search"], "does not say for what"),
        (["--health-texts", "/dev/null/x", "--health"], "cannot be read"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_told(
    arguments: list[str], told: str, usual: list[Any]
) -> None:
    ran = boom_eval(*usual, *arguments)
    assert ran.exit_code == 2
    assert told in " ".join(ran.stderr.replace("│", " ").split())


def test_what_health_needs_is_missed_before_anything_runs(
    family: Family, task_folders: Path, tmp_path: Path
) -> None:
    start = [family.base, "--tasks", task_folders / "similarity", "--results", tmp_path / "results"]
    ran = boom_eval(*start, "--health", "--parent", "no-such-parent")
    assert ran.exit_code == 2
    assert "there is no folder" in ran.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_names_with_commas_are_names(usual: list[Any]) -> None:
    ran = boom_eval(*usual, "--tasks", "MTEB(eng, v2),BIOSSES", "--dry-run", "--json")
    names = {one["task"] for one in json.loads(ran.stdout)["results"]}
    assert len(names) == 7 + 41  # the benchmark has BIOSSES


# --- progress ------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(evaluating.time, "monotonic", lambda: now)
    said: list[str] = []
    lines = evaluating.Lines(said.append)
    lines.start(400, 2, 3)
    lines.began("m", "a", 100, 10)
    now += 11
    lines.embedded(5)  # an eighth of all
    now += 9
    lines.finished("m", "a", 50.0)
    lines.began("m", "b", 300, None)
    now += 60
    lines.embedded(7)
    lines.finished("m", "b", 60.0)
    assert said == [
        "2 results to compute, 3 there already",
        "m on a (1 of 2): 12 % of all, 1 min 17 s left",
        "m on a (1 of 2): 50.00, 1 min 0 s left",
        "m on b (2 of 2): 25 % of all, 4 min 0 s left",
        "m on b (2 of 2): 60.00",
    ]


def test_the_bar_says_what_runs_and_how_long_it_will() -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    shown = io.StringIO()
    columns = (TextColumn("{task.description} {task.percentage:.0f} {task.fields[told]}"),)
    console = Console(file=shown, width=200, force_terminal=True)
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = evaluating.Bar(progress)
        bar.start(400, 2, 0)
        bar.note("[red]a note")
        bar.began("m", "a", 100, 10)
        bar.embedded(5)
        progress.refresh()
        bar.finished("m", "a", 50.0)
        bar.began("m", "b", 300, 10)
        progress.refresh()
    assert "note: [red]a note" in shown.getvalue()
    assert "m on a 12 1 of 2, " in shown.getvalue()
    assert "m on b 25 2 of 2, " in shown.getvalue()


# --- processes -----------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["mteb"] = None
"""


def test_without_mteb_it_is_told_what_to_install(family: Family) -> None:
    command = [sys.executable, "-c", WITHOUT + MAIN, str(family.base), "--tasks", "x"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "error: evaluating needs `pip install 'mergekit_embed[eval]'`\n"


def test_a_killed_run_continues_and_ends_as_one_that_was_left_alone(
    task_folders: Path, tmp_path: Path
) -> None:
    models = [str(build_minilm(tmp_path / f"model{seed}", seed)) for seed in range(5)]
    names = ("bitext", "reranking", "retrieval", "sameness", "similarity")
    again = shutil.copytree(task_folders / "similarity", tmp_path / "again")  # no other is as quick
    tasks = [*(str(task_folders / name) for name in names), str(again)]
    results = tmp_path / "results"
    command = [sys.executable, "-u", "-c", MAIN, *models, "--tasks", ",".join(tasks)]
    command += ["--results", str(results), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if " (8 of 30): " in line:
                running.send_signal(signal.SIGKILL)
                break
    assert lines[0] == "30 results to compute\n"
    assert lines[-1].endswith(" left\n")
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*@*.json")}
    assert 8 <= len(before) < 30
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(list(results.rglob("*@*.json"))) == 30
    killed_at = max(before, key=lambda file: before[file])  # it may have had a part of its task
    kept = {file: file.stat().st_mtime_ns for file in before if file != killed_at}
    assert kept == {file: stamp for file, stamp in before.items() if file != killed_at}
    alone = evaluate(models[1:2], tasks, results=tmp_path / "alone", device="cpu")
    told = json.loads(ran.stdout)["models"][1]["tasks"]  # of the model that it was killed in
    wanted = {name: round(score, 4) for name, score in alone.rows[0].scores.items()}
    assert {name: task["score"] for name, task in told.items()} == wanted
