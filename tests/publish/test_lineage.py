"""What a merge's lineage tells, what it keeps to itself, and that it is a recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from helpers import (
    LINEAGE,
    WEIGHTS,
    Ran,
    boom_merge,
    changed_json,
    changed_tensors,
    files,
    listed,
    ran,
    recipe,
    write_recipe,
)
from lora import BERT_LINEAR, adapt
from safetensors import safe_open
from tiny_models import perturb

import mergekit_embed
from mergekit_embed.cli.boom import boom
from mergekit_embed.engine.destination import Destination
from mergekit_embed.errors import CheckpointError, RecipeError
from mergekit_embed.publish.lineage import find_lineage, read_lineage
from mergekit_embed.publish.lineage_repeat import differences, repeat
from mergekit_embed.publish.lineage_tree import tree_of

pytestmark = pytest.mark.usefixtures("among_models")

OUT = Path("out")


def boom_lineage(*arguments: str | Path) -> Ran:
    return ran(boom, "lineage", *arguments)


def merged(made: Path | dict[str, Any], output: Path = OUT) -> dict[str, Any]:
    """The lineage of a merge."""
    mergekit_embed.merge(made, output)
    return told(output)


def told(folder: Path = OUT) -> dict[str, Any]:
    content = json.loads((folder / LINEAGE).read_text())
    assert isinstance(content, dict)
    return content


def timeless(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "times"}


def hash_of(file: Path, without: Collection[str] = ()) -> str:
    """The hash that a lineage has of a weight file, by the safetensors library alone."""
    lines = []
    with safe_open(file, "np") as opened:
        for name in sorted(opened.keys()):
            part = opened.get_slice(name)
            values = opened.get_tensor(name)
            digest = xxhash.xxh3_128_hexdigest(values.tobytes())
            if name not in without:
                lines.append(f"{name} {part.get_dtype()} {list(values.shape)} {digest}\n")
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


# --- what it tells ------------------------------------------------------------------------


def test_models_and_results_have_the_hashes_of_their_tensors() -> None:
    content = merged(recipe("m1", "m2", base_model="base", merge_method="ties"))
    assert [one["name"] for one in content["models"]] == ["m1", "m2", "base"]
    for one in content["models"]:
        for name in (WEIGHTS, f"2_Dense/{WEIGHTS}"):
            known = one["files"][name]
            path = Path(one["name"], name)
            assert known["size"] == path.stat().st_size
            assert known["digest"] == hash_of(path, set(known.get("without", ())))
            assert set(known.get("without", ())) <= {"embeddings.position_ids"}
        config = Path(one["name"], "config.json").read_bytes()
        assert one["files"]["config.json"]["digest"] == xxhash.xxh3_128_hexdigest(config)
    assert content["outputs"].keys() == files(OUT).keys()
    for name, digest in content["outputs"].items():
        raw = (OUT / name).read_bytes()
        known = hash_of(OUT / name) if name.endswith("tensors") else xxhash.xxh3_128_hexdigest(raw)
        assert digest == known


def test_the_recipe_has_the_defaults_that_bytes_depend_on() -> None:
    said = merged(recipe("m1", "m2", base_model="base", merge_method="della"))["recipe"]
    defaults = {"density": 1.0, "epsilon": 0.15, "lambda": 1.0, "weight": 1.0}
    assert said["parameters"] == defaults | {"normalize": True, "rescale": True}
    assert (said["seed"], said["granularity"], said["max_shard_size"]) == (0, "tensor", "5GB")
    assert "output" not in said


def test_a_default_stands_behind_filters_that_match_some_tensors() -> None:
    some = [{"filter": "query", "value": 0.25}]
    said = merged(recipe("m1", "m2", parameters={"weight": some}))["recipe"]
    assert said["parameters"]["weight"] == [*some, {"value": 1.0}]


def test_the_same_merge_has_the_same_lineage_but_for_the_times() -> None:
    made = recipe("m1", "m2", output="elsewhere")
    first, again = merged(made), merged(made, Path("again"))
    assert timeless(first) == timeless(again)
    assert first["times"].keys() == {"finished", "seconds"}


def test_the_digest_is_of_what_determines_the_bytes() -> None:
    digest = merged(recipe("m1", "m2"))["digest"]
    assert read_lineage(OUT).digest == digest
    for number in ("1", "2"):
        shutil.copytree(f"m{number}", f"other{number}")
    same = merged(recipe("other1", "other2", parameters={"weight": 1}), Path("renamed"))
    assert same["digest"] == digest
    assert files(Path("renamed")) == files(OUT)
    digests = {digest}
    others: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("m2", "m1"), {}),
        (("m1", "m3"), {}),
        (("m1", "m2"), {"parameters": {"normalize": False}}),
        (("m1", "m2"), {"out_dtype": "bfloat16"}),
        (("m1", "m2"), {"max_shard_size": "40kB"}),
    ]
    for number, (members, more) in enumerate(others):
        digests.add(merged(recipe(*members, **more), Path(str(number)))["digest"])
    assert len(digests) == 6


def test_a_continued_merge_has_the_lineage_of_one_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = timeless(merged(recipe(merge_method="ties", base_model="base")))
    shutil.rmtree(OUT)
    finished, left = Destination.finished, [17]

    def interrupting(self: Destination, job: Any, learned: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        finished(self, job, learned)

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "finished", interrupting)
        assert boom_merge("recipe.yaml", "-o", OUT).code == 1
    assert boom_merge("recipe.yaml", "-o", OUT).out.startswith("continued: ")
    assert timeless(told()) == expected


def test_models_of_the_same_name_get_names_of_their_own() -> None:
    for number in ("1", "2"):
        shutil.copytree(f"m{number}", f"run{number}/final")
    content = merged(recipe("run1/final", "run2/final", "run1/../run1/final"))
    assert [one["name"] for one in content["models"]] == ["final", "final-2"]
    assert [one["model"] for one in content["recipe"]["models"]] == ["final", "final-2", "final"]


def test_a_model_of_the_hub_is_told_by_its_revision() -> None:
    place = Path("hub/models--intfloat--e5-small/snapshots/abc123")
    shutil.copytree("m1", place)
    one = merged(recipe(str(place), "m2"))["models"][0]
    assert one["name"] == "intfloat/e5-small@abc123"
    assert one["hub"] == {"id": "intfloat/e5-small", "revision": "abc123"}
    assert "folder" not in one


def test_every_point_of_a_sweep_and_every_nested_recipe_is_told() -> None:
    inner = {"merge_method": "slerp", "parameters": {"t": 0.3}, "models": listed("m2", "m3")}
    write_recipe(Path("inner.yaml"), inner)
    recipe("m1", "inner.yaml", sweep={"models[0].parameters.weight": [1, 3]})
    assert boom_merge("recipe.yaml", "-o", OUT).code == 0
    points = sorted(path.parent for path in OUT.glob(f"*/{LINEAGE}"))
    weights = [told(one)["recipe"]["models"][0]["parameters"]["weight"] for one in points]
    assert weights == [1, 3]
    for one in points:
        nested = told(one)["recipe"]["models"][1]["model"]
        assert nested["merge_method"] == "slerp"
        assert [model["model"] for model in nested["models"]] == ["m2", "m3"]


# --- the past of the models ---------------------------------------------------------------


def test_lineages_of_members_are_told_each_once() -> None:
    merged(recipe("m1", "m2"), Path("first"))
    merged(recipe("first", "m3"), Path("second"))
    content = merged(recipe("first", "second"))
    first, second = (told(Path(name))["digest"] for name in ("first", "second"))
    assert [one["lineage"] for one in content["models"]] == [first, second]
    assert content["ancestors"].keys() == {first, second}
    assert not any("changed" in one for one in content["models"])


def test_a_hundredth_generation_is_no_deeper_than_the_first() -> None:
    merged(recipe("m1", "m2"), Path("g0"))
    content = told(Path("g0"))
    own = {key: value for key, value in content.items() if key != "ancestors"}
    content["ancestors"] = {f"{n:032x}": own | {"digest": f"{n:032x}"} for n in range(100)}
    Path("g0", LINEAGE).write_text(json.dumps(content))
    assert len(merged(recipe("g0", "m3"))["ancestors"]) == 101


def test_of_a_family_that_has_grown_too_large_the_farthest_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests, sizes = [], []
    for members, name in ((("m1",), "first"), (("first",), "second"), (("second",), "third")):
        content = merged(recipe(*members, "m3"), Path(name))
        own = {key: value for key, value in content.items() if key != "ancestors"}
        digests.append(content["digest"])
        sizes.append(len(json.dumps(own, indent=2)))
    monkeypatch.setattr("mergekit_embed.engine.lineage.of_merge.MAX_ANCESTORS", sum(sizes[1:]))
    content = merged(recipe("third", "m2"))
    assert list(content["ancestors"]) == digests[:0:-1]
    assert [one.name for one in tree_of(OUT).branches] == ["third", "m2"]


def test_a_model_that_was_changed_since_its_merge_is_told_as_such() -> None:
    merged(recipe("m1", "m2"), Path("first"))
    with changed_tensors(Path("first")) as tensors:
        tensors["embeddings.word_embeddings.weight"][3] += 1
    one = merged(recipe("first", "m3"))["models"][0]
    assert one["changed"] == [WEIGHTS]
    assert f"changed since: {WEIGHTS}" in boom_lineage(OUT).out


RECORD: dict[str, Any] = {
    "format": 1,
    "plan": "plan",
    "model": {"name": "/home/secret-user/base", "digest": "d0"},
    "seed": 7,
    "schedule": "batch_shuffled",
    "training": {"epochs": 1},
    "lora": None,
    "data": {"q": {"kind": "retrieval", "loss": {"name": "info_nce"}, "digest": "d1", "rows": 9}},
    "members": {
        "bag": {
            "models": {"m1": {WEIGHTS: 1}},
            "rows": {"q": {"rows": 5, "of": 9, "digest": "d2"}},
            "curve": [{"loss": 2.0}, {"loss": 0.5}],
            "versions": {"torch": "2"},
            "device": "secret-user's GPU",
            **dict.fromkeys(("steps", "examples", "tokens", "seconds"), 1),
        }
    },
    "update": {
        "number": 2,
        "model": {"name": "../secret-user/old", "digest": "d3"},
        "before": [{"model": {"name": "/secret-user/base"}, "update": {"model": {"name": "~/x"}}}],
    },
}


@pytest.fixture
def trained() -> Iterator[Path]:
    """A training of one member, m1."""
    shutil.copytree("m1", "run/members/m1")
    Path("run/training.json").write_text(json.dumps(RECORD))
    yield Path("run/members/m1")


def test_the_training_of_a_member_is_told_without_places(trained: Path) -> None:
    content = merged(recipe(str(trained), "m2"))
    training = content["models"][0]["training"]
    assert (training["seed"], training["member"]) == (7, "bag")
    assert training["base"] == {"name": "base", "digest": "d0"}
    assert training["data"]["q"] == {
        "rows": 5,
        "of": 9,
        "kind": "retrieval",
        "loss": {"name": "info_nce"},
        "digest": "d1",
    }
    assert training["loss"] == {"first": 2.0, "last": 0.5}
    assert training["versions"] == {"torch": "2"}
    assert training["update"]["model"]["name"] == "old"
    assert "secret-user" not in (OUT / LINEAGE).read_text()
    assert "training" not in content["models"][1]


def test_a_broken_record_of_a_training_stops_the_merge_before_it_begins(trained: Path) -> None:
    Path("run/training.json").write_text('{"format": 1, "members": {"bag": {"models": ["m1"]}}}')
    with pytest.raises(CheckpointError, match="is no record of a training"):
        merged(recipe(str(trained), "m2"))
    assert not OUT.exists()


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", '{"format": 2, "members": 1}'])
def test_files_of_the_names_of_records_may_be_somebody_else_s(text: str, trained: Path) -> None:
    Path("run/training.json").write_text(text)
    Path("search.json").write_text(text)
    content = merged(recipe(str(trained), "m2"))
    assert "training" not in content["models"][0]
    assert "search" not in content


SEARCH: dict[str, Any] = {
    "recipe": "/home/secret-user/recipe.yaml",
    "method": "linear",
    "strategy": "gradient",
    "objective": "loss",
    "groups": ["all"],
    "judged": [{"value": 2.0}, {"value": 1.0}],
    "found": {"value": 1.0},
    "losses": [1.5, 1.2],
    "stopped": "all steps were done",
    "dev": {"found": {"mean": 0.5}, "best member (/secret-user/m1)": {"mean": 0.4}},
    "seconds": 3.0,
}


def test_the_search_that_found_a_recipe_is_told_as_long_as_it_is_that_recipe() -> None:
    found = recipe("m1", "m2").rename("found.yaml")
    digest = xxhash.xxh3_128_hexdigest(found.read_bytes())
    Path("search.json").write_text(json.dumps(SEARCH | {"written": digest}))
    search = merged(found)["search"]
    assert search["value"] == {"first": 2.0, "best": 1.0}
    assert (search["judged"], search["steps"], search["strategy"]) == (2, 2, "gradient")
    assert search["dev"] == {"found": {"mean": 0.5}, "best member": {"mean": 0.4}}
    assert "secret-user" not in (OUT / LINEAGE).read_text()
    assert "searched by gradient: loss 2 to 1" in boom_lineage(OUT).out
    found.write_text(found.read_text() + "\n# edited\n")
    assert "search" not in merged(found, Path("edited"))


# --- what it keeps to itself --------------------------------------------------------------


def test_nothing_of_the_machine_or_its_user_is_in_what_is_written(tmp_path: Path) -> None:
    home = tmp_path / "secret-user" / "hf_abcdefghijklmnopqrstuvwxyz"
    home.mkdir(parents=True)
    for name in ("base", "m1", "m2", "m3"):
        shutil.move(name, home / name)
    for name in ("base", "m1"):
        with changed_json(home / name / "config.json") as config:
            config["_name_or_path"] = str(home / "checkpoint-9")
        with changed_json(home / name / "tokenizer_config.json") as config:
            config["name_or_path"] = "C:\\Users\\secret-user\\models\\mine"
            config["special_tokens_map_file"] = f"{home}/special_tokens_map.json"
        (home / name / "README.md").write_text(f"---\nlicense: mit\n---\nby {home}\n")
    inner = {"merge_method": "linear", "models": listed(home / "m2", "m3")}
    write_recipe(home / "inner.yaml", inner)
    models = [*listed(home / "m1"), {"model": str(home / "inner.yaml")}]
    made = {"merge_method": "ties", "base_model": str(home / "base"), "models": models}
    write_recipe(home / "recipe.yaml", made)
    assert boom_merge(home / "recipe.yaml", "-o", home / "out").code == 0
    assert (home / "out/README.md").is_file()
    for path in (one for one in (home / "out").rglob("*") if one.is_file()):
        text = path.read_bytes().decode("latin-1")
        for word in ("secret-user", "hf_abc", str(tmp_path)):
            assert word not in text, (path, word)
        if path.suffix in {".json", ".md"}:
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), path
    config = json.loads((home / "out/config.json").read_text())
    assert config["_name_or_path"] == "checkpoint-9"
    tokenizer = json.loads((home / "out/tokenizer_config.json").read_text())
    assert tokenizer["name_or_path"] == "mine"
    assert tokenizer["special_tokens_map_file"] == "special_tokens_map.json"


@pytest.mark.parametrize("name", ["intfloat/e5-small", "bert-base-uncased", ""])
def test_the_id_of_a_model_is_no_place(name: str) -> None:
    with changed_json(Path("m1/config.json")) as config:
        config["_name_or_path"] = name
    merged(recipe("m1", "m2"))
    assert (OUT / "config.json").read_bytes() == Path("m1/config.json").read_bytes()


# --- it is a recipe -----------------------------------------------------------------------


def test_a_merge_is_made_again_from_its_lineage() -> None:
    inner = {"merge_method": "karcher", "models": listed("m2", "m3")}
    write_recipe(Path("inner.yaml"), inner)
    adapt(Path("m1"), Path("lora"), seed=1, target_modules=BERT_LINEAR)
    adapt(Path("m2"), Path("lora2"), seed=2, target_modules=BERT_LINEAR)
    models = listed("m1+lora", "inner.yaml", "inner.yaml+lora2", weight=0.5)
    content = merged(recipe(base_model="base", merge_method="dare_ties", models=models, seed=5))
    assert content["recipes"].keys() == {"recipe-1.yaml"}
    ran = boom_merge(OUT / LINEAGE, "-o", "again")
    assert (ran.code, ran.err) == (0, "")
    assert ran.last.startswith("again has the bytes that out/merge_lineage.json tells of: ")
    assert files(Path("again")) == files(OUT)
    assert told(Path("again"))["digest"] == content["digest"]
    assert boom_merge(Path("again", LINEAGE), "-o", "thrice").code == 0


def test_members_are_found_where_they_were_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged(recipe("m1", "m2", "m3"))
    Path("archive/deep/er").mkdir(parents=True)
    for name in ("m1", "m2", "m3"):
        shutil.move(name, Path("archive/deep/er", name))
    Path("far").mkdir()
    shutil.move("out", "far/out")
    monkeypatch.chdir("far")
    ran = boom_merge(Path("out", LINEAGE), "-o", "again")
    assert ran.code == 2
    for name in ("m1", "m2", "m3"):
        assert f"{LINEAGE}: {name}: there is no folder called {name} in " in ran.err
    assert "3 problems; nothing was touched" in ran.err
    ran = boom_merge(Path("out", LINEAGE), "-o", "again", "--members", tmp_path / "archive")
    assert ran.code == 0
    assert files(Path("again")) == files(Path("out"))


def test_a_folder_of_the_name_that_is_another_model_is_passed_over() -> None:
    merged(recipe("m1", "m2"))
    for place in ("a", "b"):
        Path(place).mkdir()
    shutil.move("m1", "b/m1")
    perturb(Path("base"), Path("a/m1"), seed=8)
    assert boom_merge(OUT / LINEAGE, "-o", "again", "-q").code == 0
    assert files(Path("again")) == files(OUT)


def changed_weight() -> str:
    with changed_tensors(Path("m1")) as tensors:
        tensors["encoder.layer.1.output.dense.bias"][0] += 1e-3
    return f"m1/{WEIGHTS} holds other weights than were merged"


def changed_tokenizer() -> str:
    path = Path("m1/tokenizer.json")
    path.write_text(path.read_text().replace("[UNK]", "[UNX]"))
    return "m1/tokenizer.json is not what it was"


def longer_config() -> str:
    path = Path("m1/config.json")
    path.write_text(path.read_text() + " ")
    size = path.stat().st_size
    return f"m1/config.json has {size:,} bytes and had {size - 1:,}"


def missing_file() -> str:
    Path("m1/2_Dense", WEIGHTS).unlink()
    return f"m1/2_Dense/{WEIGHTS} is missing"


@pytest.mark.parametrize("change", [changed_weight, changed_tokenizer, longer_config, missing_file])
def test_changed_and_missing_members_are_named_together(change: Any) -> None:
    merged(recipe("m1", "m2", "m3"))
    expected = change()
    shutil.rmtree("m3")
    ran = boom_merge(OUT / LINEAGE, "-o", "again")
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert lines[0].startswith(f"out/{LINEAGE}: m1: is not what it was: ")
    assert lines[0].endswith(expected)
    assert "m3: there is no folder called m3" in lines[1]
    assert not Path("again").exists()


def test_other_bytes_than_were_told_of_are_an_error_that_names_the_files() -> None:
    merged(recipe("m1", "m2"))
    with changed_json(OUT / LINEAGE) as content:
        content["outputs"][WEIGHTS] = "0" * 32
        content["mergekit_embed"] = "0.0.9"
    ran = boom_merge(OUT / LINEAGE, "-o", "again")
    assert ran.code == 1
    assert f"again: is whole, but not what out/{LINEAGE} tells of: {WEIGHTS} differ" in ran.err
    assert "merged by mergekit_embed 0.0.9" in ran.err
    assert mergekit_embed.verify("again").is_whole
    assert differences(read_lineage(OUT), Path("again")) == [WEIGHTS]


def test_members_are_asked_for_by_lineages_alone() -> None:
    ran = boom_merge(recipe("m1", "m2"), "--members", "base")
    assert ran.code == 2
    assert "--members is for a merge_lineage.json" in ran.err


def test_a_lineage_of_the_hub_asks_the_hub() -> None:
    place = Path("hub/models--intfloat--e5-small/snapshots/abc123")
    shutil.copytree("m1", place)
    merged(recipe(str(place), "m2"))
    with pytest.raises(RecipeError, match="intfloat/e5-small@abc123 is not in the Hub's cache"):
        repeat(OUT)


HOSTILE: list[tuple[str, Any]] = [
    ("lineage", 2),
    ("digest", 1),
    ("recipe", []),
    ("models", [1]),
    ("models", [{"name": "m1"}]),
    ("models", [{"name": "m1", "folder": "m1", "files": {"a": {"size": "1"}}}]),
    ("models", [{"name": "m1", "hub": {"id": 1}, "files": {}}]),
    ("recipes", {"../../evil.yaml": {}}),
    ("recipes", []),
    ("ancestors", {"a": 1}),
    ("ancestors", {"a": {"lineage": 1}}),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_lineage_of_strange_shape_is_refused(key: str, value: Any) -> None:
    merged(recipe("m1", "m2"))
    with changed_json(OUT / LINEAGE) as content:
        content[key] = value
    for use in (read_lineage, find_lineage, tree_of, repeat):
        with pytest.raises(CheckpointError, match="is no lineage"):
            use(OUT)
    with pytest.raises(CheckpointError, match="is no lineage"):
        merged(recipe("out", "m3"), Path("more"))
    assert not Path("more").exists()


def test_files_outside_of_a_member_are_not_looked_at() -> None:
    merged(recipe("m1", "m2"))
    size = Path("m2/config.json").stat().st_size
    with changed_json(OUT / LINEAGE) as content:
        content["models"][0]["files"]["../m2/config.json"] = {"size": size, "digest": "0" * 32}
    with pytest.raises(CheckpointError, match="which is not inside the model's folder"):
        repeat(OUT)


def test_a_recipe_that_names_what_is_not_among_the_models_is_refused() -> None:
    merged(recipe("m1", "m2"))
    with changed_json(OUT / LINEAGE) as content:
        content["recipe"]["models"][0]["model"] = "/etc"
    with pytest.raises(CheckpointError, match="names /etc in its recipe"):
        repeat(OUT)


# --- the command --------------------------------------------------------------------------


def test_the_tree_shows_what_a_model_was_made_from(trained: Path) -> None:
    write_recipe(Path("inner.yaml"), {"merge_method": "linear", "models": listed("m2", "m3")})
    first = merged(recipe(str(trained), "inner.yaml"), Path("first"))["digest"][:8]
    models = [*listed("first", weight=2), *listed("m2", "first")]
    last = merged(recipe(base_model="base", merge_method="task_arithmetic", models=models))
    version, day = mergekit_embed.__version__, last["times"]["finished"][:10]
    ran = boom_lineage(OUT)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"out   task_arithmetic of 3 models, mergekit_embed {version}, {day}, {last['digest'][:8]}",
        f"├── first   weight 2, linear of 2 models, mergekit_embed {version}, {day}, {first}",
        "│   ├── m1   trained on 5 rows, seed 7, loss 2 to 0.5, update 2 of a model",
        "│   │   └── base   base",
        "│   └── linear of 2 models   merged on the way",
        "│       ├── m2",
        "│       └── m3",
        "├── m2",
        f"├── first   see {first}",
        "└── base   base",
    ]


def test_a_base_is_told_once_and_as_what_it_is() -> None:
    merged(recipe("m1", base_model="base", merge_method="slerp", parameters={"t": 0.5}))
    assert [(one.name, one.role) for one in tree_of(OUT).branches] == [
        ("base", "member"),
        ("m1", "member"),
    ]
    merged(recipe("m1", "m2", base_model="base"), Path("files"))
    assert tree_of("files").branches[-1].role == "base, for its files"


def test_json_has_the_tree_and_the_lineage() -> None:
    content = merged(recipe("m1", "m2"))
    said = json.loads(boom_lineage(OUT, "--json").out)
    assert said["lineage"] == content
    assert [one["name"] for one in said["tree"]["branches"]] == ["m1", "m2"]


def test_trainings_members_and_plain_models_have_a_tree_too(trained: Path) -> None:
    assert boom_lineage("m2").out == "m2\n"
    assert boom_lineage(trained).out.startswith("m1   trained on 5 rows, seed 7")
    assert boom_lineage("run").out.splitlines()[0] == "run   a training of 1 members"
    assert "m1   trained on 5 rows" in boom_lineage("run").out


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_what_is_no_model_has_no_tree(folder: str) -> None:
    Path("empty").mkdir()
    ran = boom_lineage(folder)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: {folder}: holds no model, no adapter and no training\n"
    with pytest.raises(CheckpointError, match=r"holds no merge_lineage\.json"):
        read_lineage(folder)


def test_names_from_strange_files_do_not_command_the_terminal() -> None:
    merged(recipe("m1", "m2"))
    with changed_json(OUT / LINEAGE) as content:
        content["recipe"]["models"][0]["model"] = "a\x1b[31m[bold]b"
    assert "a\\x1b[31m[bold]b" in boom_lineage(OUT).out


def test_a_recipe_that_cannot_be_followed_to_its_end_is_no_lineage() -> None:
    merged(recipe("m1", "m2"))
    with changed_json(OUT / LINEAGE) as content:
        content["recipe"]["models"][0] = {"weight": 1}
    with pytest.raises(CheckpointError, match="is no lineage"):
        tree_of(OUT)


# --- adapters -----------------------------------------------------------------------------


def test_adapters_that_become_one_have_a_lineage_and_are_merged_again() -> None:
    for number in (1, 2):
        adapt(Path("base"), Path(f"lora{number}"), seed=number, target_modules=BERT_LINEAR)
    models = listed("base+lora1", "base+lora2", weight=0.5)
    content = merged(recipe(models=models, adapter_output=True))
    assert content["result"] == "adapter"
    assert [one["name"] for one in content["models"]] == ["base", "lora1", "lora2"]
    adapter = "adapter_model.safetensors"
    for one in content["models"][1:]:
        assert one["files"][adapter]["digest"] == hash_of(Path(one["name"], adapter))
    assert content["outputs"][adapter] == hash_of(OUT / adapter)
    ran = boom_merge(OUT / LINEAGE, "-o", "again")
    assert (ran.code, ran.err) == (0, "")
    assert (Path("again") / adapter).read_bytes() == (OUT / adapter).read_bytes()
    assert [one.name for one in tree_of(OUT).branches] == ["base+lora1", "base+lora2"]


def test_a_model_called_as_a_keyword_may_be_the_source_of_the_vocabulary() -> None:
    made = recipe("m1", "./base", tokenizer_source="./base")
    content = merged(made)
    assert content["recipe"]["tokenizer_source"] == "./base"
    assert boom_merge(OUT / LINEAGE, "-o", "again", "-q").code == 0
    assert files(Path("again")) == files(OUT)


def test_the_working_directory_may_be_the_model() -> None:
    merged(recipe("m1", "m2"))
    here = Path.cwd()
    os.chdir(OUT)
    try:
        assert tree_of(".").name == "out"
        assert boom_merge(LINEAGE, "-o", here / "again", "-q").code == 0
    finally:
        os.chdir(here)
    assert files(Path("again")) == files(OUT)
