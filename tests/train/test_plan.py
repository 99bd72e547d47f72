"""Training plans: what they mean, what is wrong with them, and what the command shows of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from helpers import Ran, ran
from ruamel.yaml import YAML
from tiny_models import build_minilm

from mergekit_embed.cli.boom import boom
from mergekit_embed.cli.train import train
from mergekit_embed.errors import RecipeError
from mergekit_embed.recipe import load as load_recipe
from mergekit_embed.train.json_schema import json_schema
from mergekit_embed.train.merging import merge_recipe
from mergekit_embed.train.plan import load
from mergekit_embed.train.reference import markdown
from mergekit_embed.train.schedules import ORDERS
from mergekit_embed.train.schema_training import OrderEntry
from mergekit_embed.train.specs import Loss, Mining, Sampled, TrainingPlan

from .plans import plan_of, rows_of, write_rows

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "train").glob("*.yaml"))


def boom_train(*arguments: str | Path) -> Ran:
    """Run `boom-train`, as `ran` does."""
    return ran(train, *arguments)


# --- what a plan means --------------------------------------------------------------------------


def test_defaults_are_those_of_boom() -> None:
    plan = plan_of({"a": {}, "b": {"kind": "classification"}, "c": {"kind": "sts"}})
    assert [member.name for member in plan.members] == [f"bag-{k}" for k in (20, 40, 60, 80, 100)]
    a = plan.datasets["a"]
    assert (a.batch_size, a.positives, a.negatives, a.task) == (256, 1, 7, "retrieval")
    training = plan.training
    assert (training.learning_rate, training.warmup, training.epochs) == (5e-5, 0.1, 1)
    assert (training.max_length, training.precision) == (512, "bf16")
    assert plan.order.name == "batch_shuffled"
    assert plan.weights == "rows"
    assert [spec.loss.name for spec in plan.datasets.values()] == ["info_nce", "info_nce", "cosent"]
    assert plan.datasets["b"].loss.parameters == {"negatives": "own"}
    assert merge_recipe(plan, {m.name: 7 for m in plan.members}, "base") == {
        "merge_method": "multislerp",
        "base_model": "base",
        "models": [
            {"model": f"members/bag-{k}", "parameters": {"weight": 7.0}}
            for k in (20, 40, 60, 80, 100)
        ],
    }


def test_a_data_set_counts_before_its_task_and_that_before_the_plan() -> None:
    loss = {"name": "info_nce", "parameters": {"focal": 0.5}, "wrap": ["adaptive_layer"]}
    plan = plan_of(
        {
            "a": {"batch_size": 8, "prompt": {"query": "q: "}, "loss": "info_nce"},
            "b": {"negatives": 2},
            "c": {"task": "other", "mine": {"below": 0.9}},
        },
        tasks={"retrieval": {"batch_size": 16, "instruction": "Find", "loss": loss}},
        training={"batch_size": 32, "negatives": 5},
    )
    a, b, c = plan.datasets.values()
    assert [spec.batch_size for spec in (a, b, c)] == [8, 16, 32]
    assert [spec.negatives for spec in (a, b, c)] == [5, 2, 5]
    assert (a.query, a.document) == ("q: ", None)
    assert (b.query, b.document) == ("Instruct: Find\nQuery: ", "")
    assert (c.query, c.document) == (None, None)
    assert a.loss == Loss("info_nce", {})
    assert b.loss.parameters == {"focal": 0.5}
    assert [one.name for one in b.loss.wrap] == ["adaptive_layer"]
    assert c.mine == Mining(top=50, keep=7, below=0.9, encoder=None)


def test_automatic_names_avoid_those_that_are_given() -> None:
    listed = [60, 60, {"name": "bag-60-2", "ratio": 10}, 12.5, {"complement": "bag-60"}]
    plan = plan_of({"a": {}}, members=listed)
    assert [member.name for member in plan.members] == [
        "bag-60",
        "bag-60-3",
        "bag-60-2",
        "bag-12.5",
        "bag-60-rest",
    ]
    assert isinstance(plan.members[1].rule, Sampled)
    assert plan.members[1].rule.draw == "bag-60-3"


def test_a_ratio_is_the_decimal_number_that_is_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("model: m\ndata: {a: {path: a.jsonl, kind: pair}}\nmembers: [33.3, 5e-1]\n")
    rules = [member.rule for member in load(file).members]
    ratios = [rule.ratios["a"] for rule in rules if isinstance(rule, Sampled)]
    assert ratios == [Fraction(333, 10), Fraction(1, 2)]


# --- what becomes of the merge ------------------------------------------------------------------


def merged(plan: TrainingPlan, rows: int = 10) -> list[dict[str, Any]]:
    recipe = merge_recipe(plan, {member.name: rows for member in plan.members}, "base")
    load_recipe(recipe)
    models: list[dict[str, Any]] = recipe["models"]
    return models


def test_checkpoints_share_what_their_run_weighs() -> None:
    listed = [{"name": "run", "ratio": 100, "checkpoints": [50, 100]}, 20]
    models = merged(plan_of({"a": {}}, members=listed))
    assert [(m["model"], m["parameters"]["weight"]) for m in models] == [
        ("members/run-at-50", 5.0),
        ("members/run-at-100", 5.0),
        ("members/bag-20", 10.0),
    ]


def test_other_models_groups_and_weights_reach_the_recipe() -> None:
    plan = plan_of(
        {"a": {}},
        members=[{"ratio": 50, "weight": 2.0, "group": "x"}, {"ratio": 100, "merge": False}],
        weights="equal",
        merge={"merge_method": "delta_guided", "models": [{"model": "old", "group": "y"}]},
    )
    assert merged(plan) == [
        {"model": "old", "group": "y"},
        {"model": "members/bag-50", "parameters": {"weight": 2.0}, "group": "x"},
    ]


def test_methods_without_weights_get_none() -> None:
    assert merged(plan_of({"a": {}}, members=[50], merge={"merge_method": "model_stock"})) == [
        {"model": "members/bag-50"}
    ]


def test_adapters_that_are_kept_are_merged_on_their_base() -> None:
    plan = plan_of({"a": {}}, members=[50], lora={"r": 8, "fold": False})
    assert [model["model"] for model in merged(plan)] == ["base+members/bag-50"]
    assert plan_of({"a": {}}, lora=True).lora == plan_of({"a": {}}, lora={}).lora
    assert plan_of({"a": {}}, lora=False).lora is None


# --- errors -------------------------------------------------------------------------------------

HEAD = "model: base\ndata:\n  a: {path: a.jsonl, kind: retrieval}\n"
THREE = HEAD + "  c: {path: c.jsonl, kind: classification}\n  s: {path: s.jsonl, kind: sts}\n"

WRONG = [
    ("", ["is empty; a training plan is a mapping with `model:` and `data:`"]),
    ("- 3", ["holds a list; a training plan is a mapping with `model:` and `data:`"]),
    ("data: {}\n", ["1:1: model: is required", "1:7: data: must list at least one data"]),
    (HEAD + "dat: 3\n", ['4:1: dat: unknown key, did you mean "data"?']),
    (HEAD + "  b: 3\n", ["4:6: data.b: must be a mapping such as `{path: reviews.jsonl, kind"]),
    (HEAD + "  b: {path: x, kin: pair}\n", ["4:6: data.b.kind: is req", "4:16: data.b.kin: unk"]),
    (HEAD + "  b: {path: x, kind: pairs}\n", ['4:22: data.b.kind: must be "retrieval", "pair"']),
    (HEAD + "  b/c: {path: x, kind: pair}\n", ["4:3: data.b/c: the name must be made of letters"]),
    (HEAD + "  3: {path: x, kind: pair}\n", ["4:3: data: the key 3 must be text; put it in quo"]),
    (HEAD + "seed: -1\n", ["4:7: seed: must be at least 0, not -1"]),
    (HEAD + "seed: true\n", ["4:7: seed: must be a whole number, not true"]),
    (HEAD + "bad_rows: .nan\n", ["4:11: bad_rows: must be finite, not nan"]),
    (HEAD + "training: {warmup: 1.5}\n", ["4:20: training.warmup: must be at most 1, not 1.5"]),
    (HEAD + "training: {learning_rate: 0}\n", ["training.learning_rate: must be above 0, not 0"]),
    (HEAD + "training: {learnig_rate: 1}\n", ['unknown key, did you mean "learning_rate"?']),
    (HEAD + "training: {steps: 3, epochs: 2}\n", ["4:12: training.steps: and `epochs` exclude"]),
    (HEAD + "lora: 3\n", ["4:7: lora: must be true, or such as {r: 32, alpha: 32}, not 3"]),
    (
        HEAD + "lora: {r: 4, targets: []}\n",
        ["4:23: lora.targets: must be all-linear or a list of names of layers"],
    ),
    (HEAD + "tasks: {pair: {}}\n", ["4:9: tasks.pair: unknown task; known: retrieval"]),
    (HEAD + "schedule: batches\n", ['4:11: schedule.name: must be "batch_shuffled", "data']),
    (HEAD + "schedule: two_stage\n", ["schedule.first: leaves one of the two stages empty"]),
    (
        HEAD + "schedule: {name: two_stage, first: [b], alpha: 1}\n",
        ['first: "b": unknown data set or task', "schedule.alpha: is of size_power, not two_stage"],
    ),
    (HEAD + "members: []\n", ["4:10: members: must list at least one member"]),
    (HEAD + "members: [true]\n", ["4:11: members[0]: must be a mapping such as `{ratio: 20}`"]),
    (HEAD + "members: [120]\n", ["members[0].ratio: must be a number above 0 and at most 100"]),
    (HEAD + "members: [{ratio: {a: 0}}]\n", ["members[0].ratio: of a must be a number above 0"]),
    (HEAD + "members: [{name: x}]\n", ["4:11: members[0]: must have one of `ratio`, `complement"]),
    (HEAD + "members: [{ratio: 3, complement: x}]\n", ["members[0]: must have one of `ratio`"]),
    (HEAD + "members: [{ratio: {a: 3}}]\n", ["members[0]: needs a `name`, as it has several"]),
    (
        HEAD + "members: [{name: m, ratio: {b: 3}}]\n",
        ["4:29: members[0].ratio.b: unknown data set; known: a"],
    ),
    (
        HEAD + "members: [{name: m, ratio: {a: 3}, tasks: [retrieval]}]\n",
        ["members[0].tasks: the ratios name the data sets already"],
    ),
    (HEAD + "members: [{name: .., ratio: 3}]\n", ["members[0].name: must be made of letters"]),
    (
        HEAD + "members: [{name: m, ratio: 3}, {name: m, ratio: 4}]\n",
        ["4:39: members[1].name: a member called m is there already"],
    ),
    (
        HEAD + "members: [{complement: bag-5}, 5]\n",
        ['4:24: members[0].complement: "bag-5": list that member before'],
    ),
    (
        HEAD + "members: [5, {complement: bag-6}]\n",
        ['"bag-6": unknown member, did you mean "bag-5"?; list it before'],
    ),
    (
        HEAD + "members: [5, {complement: bag-5, draw: x}]\n",
        ["members[1].draw: a complement draws nothing"],
    ),
    (HEAD + "members: [{each: cluster}]\n", ["each: needs a `cluster` of every data set, and a"]),
    (
        HEAD + "members: [{each: task, ratio: {a: 4}}]\n",
        ["members[0].ratio: must be one number where there is a member for each"],
    ),
    (
        HEAD + "members: [{ratio: 3, tasks: [retreival]}]\n",
        ['members[0].tasks[0]: "retreival": unknown task, did you mean "retrieval"?'],
    ),
    (
        THREE + "members: [{ratio: 3, datasets: [a], tasks: [sts]}]\n",
        ["members[0].tasks: none of the data sets is of these tasks"],
    ),
    (HEAD + "members: [{ratio: 3, checkpoints: [9, 3]}]\n", ["checkpoints: must ascend"]),
    (
        HEAD + "members: [{ratio: 3, checkpoints: [9], ema: 0.9}]\n",
        ["members[0].ema: and `checkpoints` exclude each other"],
    ),
    (
        HEAD + "members: [{name: m, ratio: 3, checkpoints: [9]}, {name: m-at-9, ratio: 3}]\n",
        ["members: two models would be called m-at-9; rename a member"],
    ),
    (
        HEAD + "members: [{ratio: 3, epochs: 2}]\ntraining: {steps: 5}\n",
        ["members[0].epochs: and the plan's `steps` exclude each other"],
    ),
    (HEAD + "members: [{ratio: 3, merge: false}]\n", ["members: none is merged"]),
    (
        HEAD + "members: [3, {ratio: 4, weight: 1}]\n",
        ["members: bag-4 has a weight of its own, and bag-3 weighs its rows"],
    ),
    (
        THREE.replace("sts}", "sts, negatives: 3, positives: 2, mine: {}}"),
        ["s.negatives: rows with scores have none", "s.positives: rows with", "s.mine: rows with"],
    ),
    (
        THREE.replace("classification}", "classification, mine: {}, negatives: 0}"),
        ["data.c.mine: is for retrieval and pair; classification rows have texts of other"],
    ),
    (
        THREE + "tasks: {classification: {negatives: 0}}\n",
        ["6:37: tasks.classification.negatives: classification compares rows with their own"],
    ),
    (
        HEAD.replace("l}", "l, mine: {top: 5}}"),
        ["3:45: data.a.mine: `keep` is 7, more than the 5 that are looked at"],
    ),
    (
        HEAD.replace("l}", "l, prompt: {query: x}, instruction: y}"),
        ["data.a: `prompt` and `instruction` exclude each other"],
    ),
    (
        HEAD.replace("l}", "l, loss: cosent}"),
        ["3:45: data.a.loss: cosent takes two texts and their score, which"],
    ),
    (
        THREE + "tasks: {sts: {loss: info_nce}}\n",
        ["6:21: tasks.sts.loss: info_nce takes an anchor and its positives, which sts rows are"],
    ),
    (
        HEAD.replace("l}", "l, loss: infonce}"),
        ['data.a.loss: "infonce": unknown loss, did you mean'],
    ),
    (
        HEAD.replace("l}", "l, loss: {name: info_nce, parameters: {temprature: 1, focal: -1}}}"),
        [
            '3:75: data.a.loss.parameters.temprature: unknown parameter, did you mean "temperat',
            "3:97: data.a.loss.parameters.focal: must be at least 0, not -1",
        ],
    ),
    (
        HEAD.replace("l}", "l, loss: {name: info_nce, wrap: [matroshka, matryoshka]}}"),
        [
            'data.a.loss.wrap[0]: "matroshka": unknown wrapper, did you mean "matryoshka"?',
            "data.a.loss.wrap[1].parameters.dims: matryoshka needs it",
        ],
    ),
    (HEAD + "merge: {merge_method: sler}\n", ['4:23: merge.merge_method: "sler": unknown merge']),
    (
        HEAD + "merge:\n  merge_method: linear\n  parameters: {wieght: 2}\n",
        ['6:16: merge.parameters.wieght: unknown key, did you mean "weight"?'],
    ),
    (
        HEAD + "merge: {merge_method: linear, models: [{model: old}]}\n",
        ["4:40: merge.models[0]: needs a weight, as the members weigh their rows"],
    ),
    (
        HEAD + "merge: {merge_method: model_stock}\nmembers: [{ratio: 3, weight: 2}]\n",
        ["members: model_stock has no weights, but bag-3 has one; leave it out"],
    ),
    (HEAD + "merge: {merge_method: linear, models: 3}\n", ["merge.models: must be a list"]),
    (HEAD + "merge: {merge_method: linear, parameters: 3}\n", ["merge.parameters: must be a map"]),
    (HEAD + "seed: 99999999999999999999\n", ["4:7: seed: is too large a number"]),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_plan_is_told_where_it_stands(
    text: str, told: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(file)
    lines = str(caught.value).replace(f"{tmp_path}/plan.yaml:", "").splitlines()
    assert len(lines) == len(told), lines
    for line, part in zip(lines, told, strict=True):
        assert part in line


def test_the_command_tells_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(HEAD + "seed: x\nmodell: y\n")
    ran = boom_train(file, "--dry-run")
    assert ran.code == 2
    assert ran.err.splitlines()[0].endswith('plan.yaml:4:7: seed: must be a whole number, not "x"')
    assert ran.err.splitlines()[-1] == "2 problems; nothing was touched"
    assert boom_train(tmp_path / "none.yaml", "--dry-run").err.startswith(
        f"{tmp_path}/none.yaml: there is no such training plan; beside it: plan.yaml"
    )


# --- what the command shows -----------------------------------------------------------------------

PLAN = """
model: ./model
data:
  ask: {path: ask.jsonl, kind: retrieval, batch_size: 8}
  class: {path: class.jsonl, kind: classification, batch_size: 30, negatives: 2}
members: [50, {complement: bag-50}]
training: {epochs: 2}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan and its data, where the tests work."""
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(PLAN)
    write_rows(Path("ask.jsonl"), rows_of("retrieval", 40))
    write_rows(Path("class.jsonl"), rows_of("classification", 20))
    return tmp_path


def test_a_dry_run_tells_what_training_takes(small: Path) -> None:
    ran = boom_train("plan.yaml", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "        plan  plan.yaml",
        "       model  ./model",
        "      output  trained/plan",
        "    schedule  batch_shuffled",
        "        data  ask   40 rows, retrieval, info_nce",
        "        data  class   20 rows, classification, info_nce, 2 negatives a row",
        "      member  bag-50   2 epochs, 32 rows, 4 steps",
        "              ask: 20 rows, 2 batches of 8, 4 rows left over",
        "              class: 10 rows, 0 batches of 30, 10 rows left over",
        "      member  bag-50-rest   2 epochs, 32 rows, 4 steps",
        "              ask: 20 rows, 2 batches of 8, 4 rows left over",
        "              class: 10 rows, 0 batches of 30, 10 rows left over",
        "      in all  8 steps",
        "        note  ask has no hard negatives; `mine` finds some",
        "        note  bag-50 is not trained on class: its 10 rows there make no batch of 30; set "
        "a smaller batch_size",
        "        note  bag-50-rest is not trained on class: its 10 rows there make no batch of 30; "
        "set a smaller batch_size",
        "        note  tokens are not counted: there is no folder ./model",
    ]


def test_tokens_are_those_of_the_models_own_tokenizer(small: Path) -> None:
    from transformers import AutoTokenizer

    build_minilm(Path("model"), 0)
    tokenizer = AutoTokenizer.from_pretrained("model")
    Path("plan.yaml").write_text(
        "model: model\ndata:\n  ask: {path: ask.jsonl, kind: retrieval, batch_size: 40,\n"
        "        prompt: {query: 'search the lake for ', document: ''}}\n"
        "members: [100]\ntraining: {epochs: 3, max_length: 9}\n"
    )
    told = json.loads(boom_train("plan.yaml", "--dry-run", "--json").out)
    texts = [
        text
        for row in rows_of("retrieval", 40)
        for text in ("search the lake for " + row["query"], *row["pos"])
    ]
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=9)["input_ids"]]
    assert max(lengths) == 9
    assert told["tokens"] == told["members"][0]["tokens"] == 3 * sum(lengths)
    assert told["tokens_estimated"] == []


def test_the_dry_run_is_there_as_json(small: Path) -> None:
    ran = boom_train("plan.yaml", "--dry-run", "--json", "-o", "out")
    told = json.loads(ran.out)
    assert told["status"] == "planned"
    assert told["output"] == "out"
    assert told["steps"] == 8
    assert [member["rows"] for member in told["members"]] == [{"ask": 20, "class": 10}] * 2
    assert [member["examples"] for member in told["members"]] == [32, 32]
    assert told["data"]["ask"]["rows"] == 40
    load_recipe(told["merge"])


def test_bad_rows_and_their_places_are_told(small: Path) -> None:
    with Path("ask.jsonl").open("a") as file:
        file.write("{}\n")
    Path("plan.yaml").write_text(PLAN + "bad_rows: 5\n")
    out = boom_train("plan.yaml", "--dry-run").out
    assert "        note  ask: 1 bad rows are left out, the first of them:\n" in out
    assert "ask.jsonl:41: has the keys none; a row is" in out
    Path("plan.yaml").write_text(PLAN)
    ran = boom_train("plan.yaml", "--dry-run")
    assert ran.code == 2
    assert "ask: 1 of 41 rows are bad; `bad_rows: 1` allows 1 percent" in ran.err


def test_the_rows_of_a_member_are_listed(small: Path) -> None:
    listed = {}
    for name in ("bag-50", "bag-50-rest"):
        ran = boom_train("plan.yaml", "--list-rows", name)
        assert (ran.code, ran.err) == (0, "")
        listed[name] = ran.out.splitlines()
        assert len(listed[name]) == 30
    every = [f"ask\task.jsonl:{n}" for n in range(1, 41)]
    every += [f"class\tclass.jsonl:{n}" for n in range(1, 21)]
    assert sorted(listed["bag-50"] + listed["bag-50-rest"]) == sorted(every)
    lines = boom_train("plan.yaml", "--list-rows", "bag-50", "--json").out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [f"{row['dataset']}\t{row['place']}" for row in rows] == listed["bag-50"]
    ran = boom_train("plan.yaml", "--list-rows", "bag-5")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == 'error: bag-5: unknown member, did you mean "bag-50"?\n'


def test_nothing_heavy_is_loaded_to_look_at_a_plan(small: Path) -> None:
    heavy = ["torch", "transformers", "sentence_transformers", "datasets", "scipy", "sklearn"]
    script = f"""
import sys
from mergekit_embed.cli.train import main
sys.argv = ["boom-train", "plan.yaml", sys.argv[1], *sys.argv[2:]]
try:
    main()
except SystemExit as end:
    sys.exit(end.code or len(set({heavy!r}) & set(sys.modules)))
"""
    build_minilm(Path("model"), 0)
    for options in (["--dry-run"], ["--list-rows", "bag-50"]):
        ran = subprocess.run([sys.executable, "-c", script, *options], capture_output=True)
        assert ran.returncode == 0, ran.stderr.decode()


# --- documentation, recipes -----------------------------------------------------------------------


def test_the_page_is_the_one_that_the_schema_gives() -> None:
    assert (ROOT / "docs" / "training.md").read_text() == markdown()


def test_the_schema_names_every_schedule() -> None:
    (names,) = [OrderEntry.model_json_schema()["properties"]["name"]["enum"]]
    assert names == list(ORDERS)


BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", markdown(), re.S | re.M)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_plan_in_the_docs_is_valid(block: str, tmp_path: Path) -> None:
    entry = "{path: x.jsonl, kind: retrieval, cluster: c}"
    around = f"model: m\ndata: {{questions: {entry}, reviews: {entry}}}\n"
    file = tmp_path / "plan.yaml"
    file.write_text(block if "model: ./bert-base" in block else around + block)
    assert load(file).members


def in_json(text: str) -> Any:
    """What a YAML file says, as JSON has it."""
    return json.loads(json.dumps(YAML(typ="safe").load(text)))


def test_the_json_schema_is_one_and_takes_what_we_ship() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for recipe in RECIPES:
        jsonschema.validate(in_json(recipe.read_text()), schema)
    short = THREE + "lora: true\nmembers: [50, {each: task, ratio: 50}, {complement: bag-50}]\n"
    jsonschema.validate(in_json(short), schema)
    assert json.loads(CliRunner().invoke(boom, ["schema", "plan"]).stdout) == schema


@pytest.mark.parametrize(
    "wrong",
    [
        HEAD + "dat: 3\n",
        HEAD + "  b: {path: x, kind: pairs}\n",
        HEAD + "  b/c: {path: x, kind: pair}\n",
        HEAD + "members: [120]\n",
        HEAD + "members: [{name: x}]\n",
        HEAD + "members: [{ratio: 3, complement: x}]\n",
        HEAD + "members: [{complement: x, each: task}]\n",
        HEAD + "schedule: batches\n",
        HEAD + "training: {warmup: 1.5}\n",
        HEAD.replace("l}", "l, loss: infonce}"),
        HEAD.replace("l}", "l, loss: {name: info_nce, wrap: [matroshka]}}"),
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(wrong)
    with pytest.raises(RecipeError):
        load(file)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(in_json(wrong), json_schema())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_that_we_ship_draws_and_merges_as_printed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load(recipe)
    for spec in plan.datasets.values():
        rows = rows_of(spec.kind, 3000, negatives=2)
        if spec.kind in {"classification", "clustering"}:
            assert all("label" in row for row in rows)
        write_rows(Path(spec.path), rows)
    told = json.loads(boom_train(recipe, "--dry-run", "--json").out)
    assert [member["name"] for member in told["members"]] == [m.name for m in plan.members]
    assert all(member["steps"] for member in told["members"])
    assert not [note for note in told["notes"] if "not trained" in note or "in no member" in note]
    load_recipe(told["merge"])
    assert plan.output == f"trained/{recipe.stem}"
