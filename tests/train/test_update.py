"""Updates: the first, the tenth, what they cost, and what stays the same between them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import Ran, ran
from safetensors.numpy import load_file
from tiny_models import build_minilm, perturb

import mergekit_embed
from mergekit_embed.cli.boom import boom
from mergekit_embed.cli.train import train as command
from mergekit_embed.errors import DataError, OutputExistsError, UsageError
from mergekit_embed.publish.lineage import read_lineage
from mergekit_embed.recipe import load as load_recipe
from mergekit_embed.train import run
from mergekit_embed.train.data import open_datasets
from mergekit_embed.train.plan import load
from mergekit_embed.train.update import Update, plan_update, update
from mergekit_embed.train.update_data import kind_of

from .plans import least, rows_of, write_rows

PLAN = """
model: ./base
seed: 3
data:
  q: {path: q.jsonl, kind: retrieval, batch_size: 4, prompt: {query: "ask "}}
  s: {path: s.jsonl, kind: sts, batch_size: 8}
members: [50, 100]
training: {learning_rate: 1.0e-3, precision: fp32, max_length: 16}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, a plan and its data, where the tests work."""
    monkeypatch.chdir(tmp_path)
    build_minilm(Path("base"), 0)
    Path("plan.yaml").write_text(PLAN)
    write_rows(Path("q.jsonl"), rows_of("retrieval", 40))
    write_rows(Path("s.jsonl"), rows_of("sts", 20))
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Members are trained in no time, and merged likewise; the names of those that were."""
    trained: list[str] = []

    def train_here(self: run.Training, wanted: list[Any]) -> None:
        for member in wanted:
            trained.append(member.name)
            self.progress.started(member.name, 1, 1, 0, 1)
            shutil.copytree(self.base, self.target / "members" / member.name)
            self.add(
                member.name,
                {
                    "fingerprint": self.prints[member.name].meaning,
                    "rows": run.record.rows_of(member, self.datasets),
                    "models": {
                        member.name: run.record.file_sizes(self.target / "members" / member.name)
                    },
                    **dict.fromkeys(("steps", "examples", "tokens", "seconds"), 1),
                    "curve": [],
                    "best": None,
                },
            )

    def merge(self: run.Training) -> tuple[()]:
        seed = len(trained)
        perturb(self.base, self.target / "merged", seed)
        return ()

    monkeypatch.setattr(run.Training, "_train_here", train_here)
    monkeypatch.setattr(run.Training, "merge", merge)
    yield trained


def new_rows(name: str, count: int) -> Path:
    rows = [{"query": f"{name} {i}", "pos": [f"{name} answer {i}"]} for i in range(count)]
    return write_rows(Path(f"{name}.jsonl"), rows)


def first(**options: Any) -> Update:
    """The first update of what plan.yaml trains."""
    run.train("plan.yaml", "out", merge=True)
    return plan_update("out/merged", [new_rows("n1", 10)], **options)


def record(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "training.json").read_text())
    return found


def boom_train(*arguments: str | Path) -> Ran:
    """Run `boom-train`, as `ran` does."""
    return ran(command, *arguments)


# --- the first ------------------------------------------------------------------------------------


def test_the_plan_of_an_update_has_the_settings_of_the_models_own(
    work: Path, quick: list[str]
) -> None:
    planned = first()
    plan = planned.plan
    assert (plan.model, plan.seed, plan.weights) == ("./base", 3, "equal")
    assert (plan.training.learning_rate, plan.training.max_length) == (1e-3, 16)
    assert list(plan.datasets) == ["q", "s", "n1"]
    fresh, old = plan.datasets["n1"], plan.datasets["q"]
    assert (fresh.kind, fresh.batch_size, fresh.query) == ("retrieval", 4, "ask ")
    assert (old.batch_size, plan.datasets["s"].batch_size) == (4, 8)
    assert str(planned.target) == "trained/update-1"
    assert planned.notes == ()


def test_an_update_costs_what_the_paper_says(work: Path, quick: list[str]) -> None:
    planned = first()
    saving = planned.saving
    assert (saving.rows, saving.full_rows) == (10 + 16 + 8, 10 + 40 + 20)
    assert saving.part == pytest.approx((10 + 0.4 * 60) / (10 + 60))
    # Batches of 4 rows of 10 and 16 (and 40), of 8 rows of 8 (and 20); short last ones are dropped.
    assert (saving.steps, saving.full_steps) == (2 + 4 + 1, 2 + 10 + 2)
    told = planned.about["cost"]
    assert told["part"] == pytest.approx(saving.part, abs=1e-6)


def test_the_core_is_what_draws_the_least(work: Path, quick: list[str]) -> None:
    planned = first()
    datasets = open_datasets(planned.plan)
    (member,) = run.members(planned.plan, datasets)
    for name, count in (("q", 16), ("s", 8)):
        identities = [int(one) for one in datasets[name].identities]
        assert member.rows[name].tolist() == least(identities, count, 3, name, "core")
    assert member.rows["n1"].tolist() == list(range(10))


def test_the_member_is_merged_into_the_model_with_equal_weights(
    work: Path, quick: list[str]
) -> None:
    planned = first(output="two")
    update(planned)
    recipe = load_recipe(Path("two/merge.yaml"))
    assert recipe.source.data == {
        "merge_method": "multislerp",
        "models": [
            {"model": "../out/merged"},
            {"model": "members/update", "parameters": {"weight": 1.0}},
        ],
        "base_model": "../base",
    }
    assert quick == ["bag-50", "bag-100", "update"]


def test_the_record_names_parents_data_and_core(work: Path, quick: list[str]) -> None:
    update(first(output="two"))
    told, before = record("two"), record("out")
    about = told["update"]
    assert told["model"] == {"name": "../base", "digest": before["model"]["digest"]}
    assert about["number"] == 1
    assert about["model"] == {
        "name": "../out/merged",
        "digest": run.record.model_digest(Path("out/merged")),
    }
    assert about["history"]["q"] == {"rows": 40, "digest": before["data"]["q"]["digest"]}
    assert about["core"]["q"]["rows"] == 16
    assert about["core"] == {name: told["members"]["update"]["rows"][name] for name in ("q", "s")}
    assert (about["ratio"], about["draw"], about["seed"]) == (0.4, "core", 3)
    digests = {name: one["digest"] for name, one in before["data"].items()}
    kept = {key: before[key] for key in ("plan", "model", "seed")}
    assert about["before"] == [{**kept, "data": digests}]


def test_the_same_update_goes_on_and_another_is_refused(work: Path, quick: list[str]) -> None:
    planned = first(output="two")
    update(planned)
    again = plan_update("out/merged", ["n1.jsonl"], output="two")
    assert update(again).trained == ()
    told = record("two")["update"]
    run.train("two/plan.yaml", "two")
    assert record("two")["update"] == told
    assert quick == ["bag-50", "bag-100", "update"]
    other = plan_update("out/merged", [new_rows("other", 9)], output="two")
    with pytest.raises(OutputExistsError, match="two: holds another training; choose another"):
        update(other)


# --- the tenth ------------------------------------------------------------------------------------


def test_the_tenth_update_is_made_as_the_first(work: Path, quick: list[str]) -> None:
    run.train("plan.yaml", "out0", merge=True)
    cores: dict[str, Any] = {}
    sizes = {"q": 40, "s": 20}
    for number in range(1, 11):
        size = 7 + number
        planned = plan_update(
            f"out{number - 1}/merged", [new_rows(f"n{number}", size)], output=f"out{number}"
        )
        assert planned.notes == ()
        update(planned, merge=True)
        about = record(f"out{number}")["update"]
        assert about["number"] == number
        assert set(about["history"]) == set(sizes)
        assert list(about["new"]) == [f"n{number}"]
        # Every part's core is drawn once: when it becomes history.
        for name, core in about["core"].items():
            assert core == cores.setdefault(name, core)
        expected = size + sum(int(0.4 * rows + 0.5) for rows in sizes.values())
        assert planned.saving.rows == expected
        assert planned.saving.full_rows == size + sum(sizes.values())
        sizes[f"n{number}"] = size
        assert len(about["before"]) == number
    assert len(cores) == 2 + 9
    assert [one.get("update", {}).get("number") for one in about["before"]] == [None, *range(1, 10)]
    assert about["before"][3]["update"]["model"]["name"] == "../out2/merged"
    assert quick == ["bag-50", "bag-100", *["update"] * 10]


def test_a_core_is_part_of_what_was_new(work: Path, quick: list[str]) -> None:
    update(first(output="two"), merge=True)
    second = plan_update("two/merged", [new_rows("n2", 5)])
    datasets = open_datasets(second.plan)
    (member,) = run.members(second.plan, datasets)
    identities = [int(one) for one in datasets["n1"].identities]
    assert member.rows["n1"].tolist() == least(identities, 4, 3, "n1", "core")


def test_a_moved_file_has_the_same_core(work: Path, quick: list[str]) -> None:
    planned = first()
    Path("elsewhere").mkdir()
    Path("q.jsonl").rename("elsewhere/questions.jsonl")
    moved = plan_update(
        "out/merged", ["n1.jsonl"], ["elsewhere/questions.jsonl", "s.jsonl"], output="two"
    )
    assert moved.about["core"] == planned.about["core"]
    assert moved.plan.datasets["q"].query == "ask "
    assert moved.notes == ()


def test_other_rows_and_ratios_are_told(work: Path, quick: list[str]) -> None:
    update(first(output="two"), merge=True)
    write_rows(Path("q.jsonl"), rows_of("retrieval", 50))
    planned = plan_update(
        "two/merged", [new_rows("n2", 5)], ["q.jsonl", "n1.jsonl"], ratio=0.07, output="three"
    )
    assert planned.notes == (
        "q has changed since the model learnt it; its core may have",
        "s is not in the history: none of it is trained on again",
        "the update before had a core of 0.4, this one of 0.07",
    )
    assert planned.about["core"]["q"]["rows"] == 4  # 3.5, rounded up
    update(planned, merge=True)
    assert plan_update("three/merged", [new_rows("n3", 5)]).about["ratio"] == 0.07


def test_data_that_is_learnt_already_is_not_new(work: Path, quick: list[str]) -> None:
    first()
    shutil.copy("q.jsonl", "copy.jsonl")
    with pytest.raises(UsageError, match=r"--new copy.jsonl: is q, which is not new"):
        plan_update("out/merged", ["copy.jsonl"])


# --- other models ---------------------------------------------------------------------------------


def test_a_model_of_unknown_origin_needs_base_and_history(work: Path, quick: list[str]) -> None:
    perturb(Path("base"), Path("service"), 1)
    new = [new_rows("n1", 300)]
    with pytest.raises(UsageError, match=r"is not known, as no plan.yaml .* with --base"):
        plan_update("service", new)
    with pytest.raises(UsageError, match=r"none: what it was trained from .* there is no such"):
        plan_update("none", new)
    with pytest.raises(UsageError, match="is not known; name that data with --history"):
        plan_update("service", new, base="base")
    write_rows(Path("q.jsonl"), rows_of("retrieval", 700))
    planned = plan_update("service", new, ["q.jsonl"], base="base", output="two")
    assert planned.notes == (
        "the plan that service was trained by is not known; losses, prompts and batch sizes are "
        "the defaults: name it with --plan",
    )
    update(planned, merge=True)
    assert record("two")["update"]["before"] == []
    assert plan_update("two/merged", [new_rows("n2", 300)]).about["number"] == 2


def test_a_model_elsewhere_is_known_by_its_plan(work: Path, quick: list[str]) -> None:
    beside = first()
    shutil.copytree("out/merged", "service")
    for plan in ("out/plan.yaml", "plan.yaml"):
        planned = plan_update("service", ["n1.jsonl"], plan=plan)
        assert planned.about["core"] == beside.about["core"]
        assert bool(planned.about["before"]) == (plan == "out/plan.yaml")


def test_another_base_is_refused(work: Path, quick: list[str]) -> None:
    planned = first(output="two")
    shutil.rmtree("base")
    build_minilm(Path("base"), 9)
    with pytest.raises(UsageError, match="is not what out/merged was trained from, or has changed"):
        update(planned)
    assert not Path("two").exists()


def test_a_record_alone_tells_base_and_training(work: Path, quick: list[str]) -> None:
    first()
    Path("out/plan.yaml").unlink()
    planned = plan_update("out/merged", [new_rows("n1", 300)], ["q.jsonl", "s.jsonl"], output="two")
    assert planned.plan.model == "base"
    assert planned.plan.seed == 3
    assert planned.plan.training.learning_rate == 1e-3
    assert planned.notes[0].startswith("the plan that out/merged was trained by is not known")


def test_a_merged_model_elsewhere_tells_base_and_training_by_its_lineage(
    work: Path, quick: list[str]
) -> None:
    beside = first()
    mergekit_embed.merge("out/merge.yaml", "service")
    shutil.rmtree("out")
    history = ["q.jsonl", "s.jsonl"]
    new_rows("n1", 300)  # the batch sizes were in the plan alone
    planned = plan_update("service", ["n1.jsonl"], history, output="two")
    assert (planned.plan.model, planned.plan.seed) == ("base", 3)
    assert planned.plan.training == beside.plan.training
    assert planned.about["core"] == beside.about["core"]
    assert planned.about["before"][0]["model"]["name"] == "base"
    shutil.move("base", "elsewhere")
    with pytest.raises(UsageError, match="as it was base, which is not here; name that model"):
        plan_update("service", ["n1.jsonl"], history)
    moved = plan_update("service", ["n1.jsonl"], history, base="elsewhere", output="two")
    update(moved)
    shutil.rmtree("two")
    shutil.rmtree("elsewhere")
    build_minilm(Path("elsewhere"), 9)
    with pytest.raises(UsageError, match="is not what service was trained from"):
        update(moved)


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out", "out/merged", "out/merged/inside", "."])
def test_the_model_is_never_written_over(output: str, work: Path, quick: list[str]) -> None:
    with pytest.raises(OutputExistsError, match="out/merged, the model to update; choose"):
        first(output=output)


@pytest.mark.parametrize("ratio", [0, -1, 40, float("nan")])
def test_a_ratio_is_a_part(ratio: float, work: Path) -> None:
    with pytest.raises(UsageError, match=r"must be above 0 and at most 1: 0.4 for 40 percent"):
        plan_update("out/merged", ["n1.jsonl"], ratio=ratio)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "x"}, "classification"),
        ({"sentence1": "a", "sentence2": "b", "score": 0}, "sts"),
        ({"sentence1": "a", "sentence2": "b"}, "pair"),
        ({"query": "a", "pos": ["b"]}, "retrieval"),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "retrieval"),
    ],
)
def test_the_first_row_tells_the_kind(row: Mapping[str, Any], kind: str, work: Path) -> None:
    assert kind_of(str(write_rows(Path("some.jsonl"), [row]))) == kind


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "some.jsonl: holds no rows"),
        ("{\n", "some.jsonl:1: is not JSON"),
        ('{"text": "a"}\n', "some.jsonl:1: has the keys text, which tell no kind; write it before"),
    ],
)
def test_a_first_row_that_tells_nothing_is_told(text: str, told: str, work: Path) -> None:
    Path("some.jsonl").write_text(text)
    with pytest.raises(DataError, match=told):
        kind_of("some.jsonl")


def test_a_kind_before_the_file_counts(work: Path, quick: list[str]) -> None:
    first()
    write_rows(Path("topics.jsonl"), rows_of("clustering", 600))
    planned = plan_update("out/merged", ["clustering:topics.jsonl"])
    assert planned.plan.datasets["topics"].kind == "clustering"
    with pytest.raises(UsageError, match="the model has learnt it as sts"):
        plan_update("out/merged", ["n1.jsonl"], ["pair:s.jsonl"])
    with pytest.raises(UsageError, match=r"s.jsonl: is named twice"):
        plan_update("out/merged", ["n1.jsonl"], ["s.jsonl", "./s.jsonl"])


# --- the command ----------------------------------------------------------------------------------


def test_a_dry_run_shows_what_an_update_takes(work: Path, quick: list[str]) -> None:
    first()
    ran = boom_train("update", "--model", "out/merged", "--new", "n1.jsonl", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "      update  1 of out/merged",
        "        base  ./base",
        "      output  trained/update-1",
        "         new  n1   10 rows, retrieval",
        "     history  q   16 of 40 rows, retrieval",
        "     history  s   8 of 20 rows, sts",
        "        cost  34 of 70 rows (49 %), 7 of 14 steps of a full training",
    ]
    assert not Path("trained").exists()
    options = ["--model", "out/merged", "--new", "n1.jsonl", "--dry-run", "--json"]
    told = json.loads(boom_train("update", *options).out)
    assert (told["status"], told["number"], told["notes"]) == ("planned", 1, [])
    assert told["cost"]["full_rows"] == 70


def test_the_command_makes_the_update(work: Path, quick: list[str]) -> None:
    first()
    ran = boom_train(
        "update", "--model", "out/merged", "--new", "n1.jsonl", "-o", "two", "--history-ratio", "1"
    )
    assert ran.code == 0
    assert ran.out.startswith(
        "update 1: 70 of 70 rows (100 %), 14 of 14 steps of a full training\n"
    )
    assert "boom-merge two/merge.yaml" in ran.out
    ran = boom_train("update", "--model", "out/merged", "--new", "none.jsonl")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no file none.jsonl" in ran.err
    ran = boom_train("update", "--model", "base", "--new", "n1.jsonl", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["kind"] == "UsageError"


def test_plans_are_trained_as_before_also_one_that_is_called_update(
    work: Path, quick: list[str]
) -> None:
    Path("update").write_text(PLAN)
    told = json.loads(boom_train("./update", "--dry-run", "--json").out)
    assert told["output"] == "trained/update"
    assert boom_train("plan.yaml", "-o", "out").code == 0
    assert boom_train("-o", "out", "plan.yaml").code == 0
    assert quick == ["bag-50", "bag-100"]
    assert "boom-train update" in boom_train("--help").out
    for words in (["train", "update", "--help"], ["train", "--help"]):
        shown = CliRunner().invoke(boom, words)
        assert shown.exit_code == 0
        assert ("--history-ratio" in shown.output) == (words[1] == "update")


# --- with real training ---------------------------------------------------------------------------


def test_a_real_update_is_the_mean_direction_of_both(work: Path) -> None:
    Path("plan.yaml").write_text(PLAN.replace("[50, 100]", "[100]"))
    run.train("plan.yaml", "out", merge=True)
    planned = plan_update("out/merged", [new_rows("n1", 12)], output="two")
    result = update(planned, merge=True)
    assert result.members["update"]["steps"] == planned.saving.steps
    models = ["base", "out/merged", "two/members/update", "two/merged"]
    base, old, member, merged = (load_file(Path(one) / "model.safetensors") for one in models)
    moved = 0
    for name, start in base.items():
        one, other, both = (
            tensors[name].astype(float) - start for tensors in (old, member, merged)
        )
        lengths = np.linalg.norm(one), np.linalg.norm(other)
        if not all(lengths):
            continue
        moved += 1
        direction = one / lengths[0] + other / lengths[1]
        wanted = sum(lengths) / 2 * direction / np.linalg.norm(direction)
        assert np.abs(both - wanted).max() < 1e-6
    assert moved > 20
    assert load("two/plan.yaml").merge["models"] == [{"model": "../out/merged"}]
    own, new = (read_lineage(f"{name}/merged") for name in ("out", "two"))
    training = own.models[0]["training"]
    assert (training["member"], training["seed"], training["base"]["name"]) == (
        "bag-100",
        3,
        "base",
    )
    assert training["data"]["q"]["rows"] == training["data"]["q"]["of"] == 40
    assert training["loss"].keys() == {"first", "last"}
    assert training["versions"]["mergekit_embed"] == mergekit_embed.__version__
    by_name = {one["name"]: one for one in new.models}
    assert by_name["merged"]["lineage"] == own.digest
    assert by_name["update"]["training"]["update"]["number"] == 1
    assert Path("out/merged").exists() and str(work) not in json.dumps(dict(new.content))
