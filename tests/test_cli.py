"""The commands: what they print and where, how they exit, and how soon they answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import (
    LINEAGE,
    MANIFEST,
    Ran,
    boom_merge,
    changed_tensors,
    files,
    listed,
    siblings,
    write_recipe,
)
from tiny_models import embed, read_tensors

import mergekit_embed
from mergekit_embed.cli import console
from mergekit_embed.cli.boom import boom

SENTENCES = ["the quick brown fox", "Where does winter snow go?"]


pytestmark = pytest.mark.usefixtures("among_models")


def recipe(name: str = "recipe.yaml", **more: Any) -> Path:
    """A recipe of that name: a linear merge of two members unless `more` says otherwise."""
    Path(name).parent.mkdir(exist_ok=True)
    models = {
        "merge_method": "linear",
        "models": listed(*(Path(m).absolute() for m in ("m1", "m2"))),
    }
    return write_recipe(Path(name), models | more)


def objects(ran: Ran) -> list[dict[str, Any]]:
    """What the command printed: one JSON object a line, and nothing on standard error."""
    assert ran.err == ""
    return [json.loads(line) for line in ran.out.splitlines()]


# --- how soon they answer -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["boom-merge", "boom"])
def test_help_is_there_in_half_a_second(command: str) -> None:
    path = Path(sysconfig.get_path("scripts"), command)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5
    assert "Usage" in shown


HEAVY = {"torch", "transformers", "sentence_transformers", "huggingface_hub", "scipy", "sklearn"}


def heavy_modules_after(*arguments: str) -> tuple[int, set[str]]:
    """The exit code of `boom-merge` in a process of its own, and the heavy libraries it loaded."""
    script = f"""
import atexit, json, sys
from mergekit_embed.cli.merge import main
sys.argv = {["boom-merge", *arguments]!r}
atexit.register(lambda: print(json.dumps(sorted({HEAVY!r} & set(sys.modules)))))
main()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    code, modules = ran.returncode, json.loads(ran.stdout.splitlines()[-1])
    return code, set(modules)


def test_an_error_in_a_recipe_is_told_without_loading_heavy_libraries() -> None:
    recipe(parameters={"wait": 1})
    assert heavy_modules_after("recipe.yaml") == (2, set())


def test_a_plan_of_safetensors_members_is_made_without_loading_heavy_libraries() -> None:
    recipe(merge_method="ties", base_model=str(Path("base").absolute()))
    assert heavy_modules_after("recipe.yaml", "--dry-run") == (0, set())


def test_what_cannot_be_printed_is_told_in_a_sentence() -> None:
    for command in (["boom", "schema"], ["boom-merge", "--help"]):
        path = Path(sysconfig.get_path("scripts"), command[0])
        with Path("/dev/full").open("w") as full:
            ran = subprocess.run(
                [path, *command[1:]], stdout=full, stderr=subprocess.PIPE, text=True
            )
        told = "error: what is printed cannot be written: No space left on device\n"
        assert (ran.returncode, ran.stderr) == (1, told)


# --- what they print ----------------------------------------------------------------------


def test_a_run_ends_with_what_was_made_and_the_line_that_loads_it() -> None:
    recipe()
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    summary, line = ran.out.splitlines()
    assert summary.startswith("merged 2 models into out   ")
    assert ", peak " in summary
    assert summary.endswith(" kB read once")
    assert line == 'SentenceTransformer("out")'


@pytest.mark.parametrize("name", ["out", 'a "quoted" folder', "back\\new", "größe"])
def test_the_last_line_of_a_run_is_python_that_loads_the_model(name: str) -> None:
    from sentence_transformers import SentenceTransformer

    recipe()
    line = boom_merge("recipe.yaml", "-o", name).last
    model = eval(line, {"SentenceTransformer": SentenceTransformer})
    np.testing.assert_allclose(
        model.encode(SENTENCES), embed(Path(name), SENTENCES), rtol=1e-5, atol=1e-6
    )


def test_the_last_line_for_a_bare_transformer_loads_it_too() -> None:
    from transformers import AutoModel

    for member in ("m1", "m2"):
        Path(member, "modules.json").unlink()
    recipe()
    line = boom_merge("recipe.yaml", "-o", "out").last
    assert line == 'AutoModel.from_pretrained("out")'
    model = eval(line, {"AutoModel": AutoModel})
    weight = model.embeddings.word_embeddings.weight.detach().numpy()
    _, expected = read_tensors(Path("out"))["embeddings.word_embeddings.weight"]
    assert np.array_equal(weight, expected)


def test_notes_go_to_standard_error() -> None:
    recipe(base_model=str(Path("base").absolute()))
    Path("base/modules.json").unlink()
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 0
    assert ran.err.startswith("note: ")
    assert ran.err.count("\n") == 1
    assert "note" not in ran.out


def test_quiet_says_nothing_but_errors() -> None:
    recipe(base_model=str(Path("base").absolute()))
    Path("base/modules.json").unlink()
    ran = boom_merge("recipe.yaml", "-o", "out", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    ran = boom_merge("recipe.yaml", "-o", "out", "-q")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: out: holds a model already")


def test_a_dry_run_prints_the_plan_and_writes_nothing() -> None:
    recipe(
        merge_method="ties", base_model=str(Path("base").absolute()), parameters={"density": 0.5}
    )
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", "new/out", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert files(Path()) == before
    assert not Path("new").exists()
    rows = [line.split(maxsplit=1) for line in ran.out.splitlines()]
    assert [row[0] for row in rows] == [
        "recipe",
        "method",
        "member",
        "member",
        "base",
        "other",
        "tensors",
        "reads",
        "writes",
        "writes",
        "memory",
        "disk",
    ]
    shown = {row[0]: row[1].strip() for row in rows}
    size = console.size_of(mergekit_embed.open_checkpoint(Path("base")).nbytes)
    assert shown["recipe"] == "recipe.yaml"
    assert shown["method"] == "ties"
    assert shown["base"] == f"{Path('base').absolute()}   {size}"
    assert shown["tensors"] == f"{len(read_tensors(Path('m1'))) - 1} merged, 1 copied"
    assert shown["writes"].startswith("new/out/2_Dense/model.safetensors   2 kB")
    assert shown["memory"].startswith("at most ")
    assert " kB needed, " in shown["disk"]


def test_a_plan_says_how_large_the_files_will_be_to_the_byte() -> None:
    recipe(max_shard_size="40kB", out_dtype="float16")
    (plan,) = objects(boom_merge("recipe.yaml", "-o", "out", "--dry-run", "--json"))
    assert plan["status"] == "planned"
    assert not Path("out").exists()
    assert boom_merge("recipe.yaml", "-o", "out").code == 0
    written = files(Path("out")).items()
    sizes = {name: len(content) for name, content in written if name.endswith(".safetensors")}
    assert plan["files"] == sizes
    assert plan["bytes_out"] == plan["disk_needed"] == sum(sizes.values())
    assert plan["members"].keys() == {str(Path(member).absolute()) for member in ("m1", "m2")}
    assert plan["bytes_in"] <= sum(plan["members"].values())
    assert plan["base"] is None
    assert plan["notes"] == []


# --- JSON ---------------------------------------------------------------------------------


def test_json_tells_what_was_done() -> None:
    recipe()
    (done,) = objects(boom_merge("recipe.yaml", "-o", "out", "--json"))
    assert done["status"] == "done"
    assert done["recipe"] == "recipe.yaml"
    assert done["output"] == "out"
    assert done["members"] == 2
    told = sum(Path("out", name).stat().st_size for name in (MANIFEST, LINEAGE))
    assert done["bytes_written"] == sum(map(len, files(Path("out")).values())) + told
    assert done["bytes_read"] >= done["bytes_in"] > 200_000
    assert done["peak_memory"] > 10**7
    assert done["notes"] == []


def test_json_tells_every_problem_of_a_recipe() -> None:
    recipe(parameters={"wait": 1}, dtype="float8")
    ran = boom_merge("recipe.yaml", "-o", "out", "--json")
    (failed,) = objects(ran)
    assert ran.code == 2
    assert failed["status"] == "failed"
    assert failed["recipe"] == "recipe.yaml"
    assert failed["kind"] == "RecipeError"
    messages = [problem["message"].split(": ")[0] for problem in failed["problems"]]
    assert messages == ["parameters.wait", "dtype"]
    assert all(problem["where"].startswith("recipe.yaml:") for problem in failed["problems"])


def test_json_tells_which_recipe_failed_on_the_way() -> None:
    with changed_tensors(Path("m3")) as tensors:
        tensors["pooler.dense.bias"][0] = np.nan
    recipe("first.yaml")
    recipe("second.yaml", models=listed(Path("m3").absolute()))
    ran = boom_merge("first.yaml", "second.yaml", "-o", "all", "--json")
    (failed,) = objects(ran)
    assert ran.code == 1
    assert (failed["status"], failed["recipe"]) == ("failed", "second.yaml")
    assert failed["kind"] == "NonFiniteError"
    assert not Path("all").exists()


def test_json_tells_of_a_wrong_command_line() -> None:
    recipe("a/same.yaml")
    recipe("b/same.yaml")
    ran = boom_merge("a/same.yaml", "b/same.yaml", "--json")
    (failed,) = objects(ran)
    assert ran.code == 2
    assert failed["kind"] == "UsageError"


# --- several recipes ----------------------------------------------------------------------


def test_several_recipes_each_get_a_folder_of_their_name() -> None:
    recipe("soup.yaml")
    recipe("slerp.v2.yml", merge_method="slerp", parameters={"t": 0.25})
    ran = boom_merge("soup.yaml", "slerp.v2.yml", "-o", "all")
    assert (ran.code, ran.err) == (0, "")
    assert {path.name for path in Path("all").iterdir()} == {"soup", "slerp.v2"}
    lines = ran.out.splitlines()
    assert lines[1::2] == ['SentenceTransformer("all/soup")', 'SentenceTransformer("all/slerp.v2")']


def test_without_an_output_a_model_goes_to_merged_or_where_its_recipe_says() -> None:
    recipe("recipes/soup.yaml")
    recipe("recipes/told.yaml", output="models/told")
    assert boom_merge("recipes/soup.yaml", "recipes/told.yaml", "-q").code == 0
    assert Path("merged/soup/modules.json").is_file()
    assert Path("models/told/modules.json").is_file()
    recipe("recipes/told.yaml", output="elsewhere")
    assert boom_merge("recipes/told.yaml", "-q", "-o", "here").code == 0
    assert Path("here/modules.json").is_file()
    assert not Path("elsewhere").exists()


def test_recipes_of_the_same_name_are_refused() -> None:
    recipe("a/same.yaml")
    recipe("b/same.yaml")
    ran = boom_merge("a/same.yaml", "b/same.yaml", "-o", "out")
    assert ran.code == 2
    assert ran.err == "error: two recipes are called same; their models would share a folder\n"
    assert not Path("out").exists()


def test_recipes_that_write_to_the_same_folder_are_refused() -> None:
    recipe("first.yaml", output="out")
    recipe("second.yaml", output="models/../out")
    ran = boom_merge("first.yaml", "second.yaml")
    assert ran.code == 2
    assert ran.err == (
        "error: models/../out: first.yaml writes to out; give one of them another `output`, "
        "or another name\n"
    )
    assert not Path("out").exists()


def test_the_errors_of_all_recipes_are_told_before_the_first_is_run() -> None:
    recipe("good.yaml")
    recipe("typo.yaml", parameters={"wait": 1})
    recipe("gone.yaml", models=listed("./nowhere"))
    ran = boom_merge("good.yaml", "typo.yaml", "gone.yaml", "-o", "all")
    assert (ran.code, ran.out) == (2, "")
    assert [line.split(":")[0] for line in ran.err.splitlines()] == [
        "typo.yaml",
        "1 problem; nothing was touched",
        "gone.yaml",
        "1 problem; nothing was touched",
    ]
    assert not Path("all").exists()


# --- exit codes and the umbrella ----------------------------------------------------------


def test_a_broken_model_is_no_fault_of_the_command_line() -> None:
    recipe()
    Path("m2/model.safetensors").write_bytes(b"\xff" * 100)
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: {Path('m2').absolute()}/model.safetensors: is truncated or")
    assert ran.err.endswith("(recipe.yaml:8:16)\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing argument 'RECIPE...'"),
        (["recipe.yaml", "--outptu", "x"], "No such option"),
        (["gone.yaml"], "gone.yaml: there is no such recipe; beside it: recipe.yaml"),
        (["recipe.yaml", "--device", "abacus"], "abacus"),
        (["recipe.yaml", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], complaint: str) -> None:
    recipe()
    before = files(Path())
    ran = boom_merge(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err
    assert files(Path()) == before
    assert not Path("merged").exists()


def test_boom_merge_is_boom_merge_by_either_name() -> None:
    recipe()
    assert boom_merge("recipe.yaml", "-o", "one").code == 0
    result = CliRunner().invoke(boom, ["merge", "recipe.yaml", "-o", "other"])
    assert result.exit_code == 0
    assert files(Path("one")) == files(Path("other"))
    assert siblings(Path("other").absolute()) == []


def test_boom_shows_its_commands_and_refuses_others() -> None:
    shown = CliRunner().invoke(boom, ["--help"])
    assert shown.exit_code == 0
    assert "merge" in shown.stdout
    assert CliRunner().invoke(boom, ["mrege"]).exit_code == 2


@pytest.mark.parametrize("option", [["--version"], ["merge", "--version"]])
def test_the_version_is_that_of_the_package(option: list[str]) -> None:
    assert mergekit_embed.__version__ in CliRunner().invoke(boom, option).stdout


def test_a_merge_from_python_gives_the_same_files() -> None:
    recipe()
    assert boom_merge("recipe.yaml", "-o", "out").code == 0
    result = mergekit_embed.merge("recipe.yaml", "python")
    assert result.path == Path("python")
    assert files(result.path) == files(Path("out"))
    shutil.rmtree("python")
    planned = mergekit_embed.plan("recipe.yaml", "python")
    assert planned.bytes_out < result.bytes_written
    assert not Path("python").exists()


# --- words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (90_868_376, "91 MB"), (1.25e9, "1.25 GB")],
)
def test_sizes_are_said_as_people_say_them(count: float, words: str) -> None:
    assert console.size_of(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (185, "3 min 5 s")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert console.duration_of(seconds) == words


def test_progress_off_a_terminal_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    said: list[str] = []
    lines = console.Lines(said.append)
    lines.start(total=4_000_000, tensors=8)
    for second in range(1, 31):
        now[0] = 100.0 + second
        lines.advance(100_000)
        if second % 10 == 0:
            lines.finish_tensor("any")
    assert said == [
        "25 %, 0 of 8 tensors, 100 kB/s, 30.0 s left",
        "50 %, 1 of 8 tensors, 100 kB/s, 20.0 s left",
        "75 %, 2 of 8 tensors, 100 kB/s, 10.0 s left",
    ]
