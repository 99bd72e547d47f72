"""The traps into which merges fall: each is sprung here, through the command."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family
from helpers import (
    WEIGHTS,
    boom_merge,
    changed_json,
    changed_tensors,
    files,
    recipe,
    siblings,
    write_recipe,
)
from safetensors.numpy import load_file
from tiny_models import embed, read_tensors, shard

INDEX = "model.safetensors.index.json"
QUERY = "encoder.layer.1.attention.self.query.weight"


pytestmark = pytest.mark.usefixtures("among_models")


def refused(*arguments: str | Path, code: int = 2) -> list[str]:
    """The lines of an error; nothing was written."""
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", "out", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert files(Path()) == before
    assert not Path("out").exists()
    return ran.err.splitlines()


def merged(*arguments: str | Path) -> Path:
    """The folder of a merge that succeeded."""
    ran = boom_merge("recipe.yaml", "-o", "out", *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert siblings(Path("out").absolute()) == []
    return Path("out")


# --- the recipe ---------------------------------------------------------------------------


def test_a_typo_in_a_key_does_not_become_a_default() -> None:
    write_recipe(
        Path("recipe.yaml"),
        """
        merge_method: linear
        models:
          - model: m1
            parameters: {weigth: 0.9}
          - model: m2
        """,
    )
    assert refused() == [
        'recipe.yaml:4:18: models[0].parameters.weigth: unknown key, did you mean "weight"?',
        "1 problem; nothing was touched",
    ]


def test_weights_that_sum_to_zero_do_not_become_a_model_of_infinities() -> None:
    write_recipe(
        Path("recipe.yaml"),
        """
        merge_method: linear
        models:
          - {model: m1, parameters: {weight: 0.1}}
          - {model: m2, parameters: {weight: 0.2}}
          - {model: m3, parameters: {weight: -0.3}}
        """,
    )
    assert refused() == [
        "recipe.yaml:3:3: models: the weights (0.1, 0.2, -0.3) sum to zero and cannot be "
        "normalised",
        "1 problem; nothing was touched",
    ]


def test_paths_count_from_the_recipe_s_folder_first_and_then_from_the_working_one(
    own_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("recipes/m1").mkdir(parents=True)
    shutil.copytree("m3", "recipes/m1", dirs_exist_ok=True)
    write_recipe(Path("recipes/recipe.yaml"), recipe("./m1", "../m2", "m3").read_text())
    Path("elsewhere").mkdir()
    shutil.copytree("m1", "elsewhere/m3")
    monkeypatch.chdir("elsewhere")
    ran = boom_merge("../recipes/recipe.yaml", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    m1, m2, m3 = (read_tensors(member)[QUERY][1] for member in own_family.members)
    result = read_tensors(Path("out"))[QUERY][1]
    np.testing.assert_allclose(result, (m3 + m2 + m1) / 3, rtol=2e-7)
    shutil.rmtree("m3")
    ran = boom_merge("../recipes/recipe.yaml", "-o", "again")
    assert ran.code == 2
    assert "models[2].model: there is no folder ../recipes/m3 or m3; m3 is not in the" in ran.err


def test_a_model_that_is_nowhere_is_refused_at_its_place() -> None:
    recipe("m1", "acme/m2")
    first, last = refused()
    assert first.startswith("recipe.yaml:8:16: models[1].model: there is no folder acme/m2; ")
    assert first.endswith("not in the Hub's cache and HF_HUB_OFFLINE is set")
    assert last == "1 problem; nothing was touched"


def test_a_base_that_is_listed_by_another_name_is_noted() -> None:
    recipe("./base", "m1", "m2", merge_method="ties", base_model="base")
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 0
    assert ran.err == (
        "note: ./base is the base itself under another name, and counts as a member with a delta "
        "of zero\n"
    )


# --- stale files --------------------------------------------------------------------------


def test_a_stale_file_beside_new_shards_is_not_guessed_about() -> None:
    whole = Path("m2", WEIGHTS).read_bytes()
    shard(Path("m2"), 40_000)
    Path("m2", WEIGHTS).write_bytes(whole)
    recipe()
    (line,) = refused(code=1)
    assert line == (
        f"error: m2: holds both {WEIGHTS} and {INDEX}; one of them is stale. Remove it: "
        f"transformers would load {WEIGHTS} (recipe.yaml:8:16)"
    )


@pytest.mark.parametrize("sizes", [("5GB", "40kB"), ("40kB", "5GB")], ids=["shards", "whole"])
def test_an_overwritten_model_leaves_nothing_of_itself(sizes: tuple[str, str]) -> None:
    old_size, new_size = sizes
    recipe(max_shard_size=old_size)
    old = files(merged())
    Path("out/notes.txt").write_text("mine")
    recipe("m1", "m2", max_shard_size=new_size)
    new = files(merged("--overwrite"))
    assert (WEIGHTS in old, INDEX in new) == (
        (True, True) if new_size == "40kB" else (False, False)
    )
    assert boom_merge("recipe.yaml", "-o", "fresh").code == 0
    assert new == files(Path("fresh"))
    weight_files = {name for name in old if name.endswith((".safetensors", ".index.json"))}
    assert weight_files & new.keys() == {"2_Dense/model.safetensors"}


def test_shards_hold_what_one_file_holds_and_load_as_a_model() -> None:
    recipe()
    whole = read_tensors(merged())
    recipe(max_shard_size="40kB")
    sharded = read_tensors(merged("--overwrite"))
    assert len(list(Path("out").glob("model-0*-of-0*.safetensors"))) > 2
    assert whole.keys() == sharded.keys()
    assert all(np.array_equal(whole[name][1], sharded[name][1]) for name in whole)
    assert embed(Path("out"), ["a quick brown fox"]).shape == (1, 16)


# --- tensors ------------------------------------------------------------------------------


def test_a_scalar_survives_a_density_that_would_round_it_away() -> None:
    for name, value in {"base": 1.0, "m1": 1.5, "m2": 1.75, "m3": 0.75}.items():
        with changed_tensors(Path(name)) as tensors:
            tensors["logit_scale"] = np.array(value, dtype=np.float32)
    recipe(merge_method="ties", base_model="base", parameters={"density": 0.5})
    found = load_file(merged() / WEIGHTS)["logit_scale"]
    assert found.shape == ()
    assert found == 1.625  # +0.5 and +0.75 outvote -0.25


def test_everything_that_does_not_fit_is_told_in_one_error() -> None:
    with changed_tensors(Path("m1")) as tensors:
        tensors["adapter.weight"] = np.ones(3, dtype=np.float32)
    with changed_tensors(Path("m2")) as tensors:
        del tensors["pooler.dense.bias"]
        tensors[QUERY] = tensors[QUERY][:16]
    with changed_tensors(Path("m3")) as tensors:
        tensors["pooler.dense.bias"] = np.zeros(32, dtype=np.int64)
    with changed_json(Path("m3/1_Pooling/config.json")) as config:
        config["pooling_mode"] = "cls"
    write_recipe(
        Path("recipe.yaml"),
        """
        merge_method: ties
        models:
          - model: m1
          - model: m2
          - model: m3
        base_model: base
        """,
    )
    assert refused() == [
        "recipe.yaml:3:5: models[0]: m1 has 1 tensor (adapter.weight), which base lacks. Set "
        "`extra_tensors: drop` to leave out what not all have",
        "recipe.yaml:4:5: models[1]: m2 lacks 1 tensor (pooler.dense.bias), which base has. Set "
        "`missing_tensors: copy` to take what is missing, unmerged, from base, or "
        "`extra_tensors: drop` to leave it out",
        f"recipe.yaml:4:5: models[1]: m2 does not fit: {QUERY} has shape [16, 32], [32, 32] in "
        "base",
        "recipe.yaml:5:5: models[2]: pools by [CLS], base pools by mean (1_Pooling/config.json). "
        "Merging them changes every embedding. Drop this member, or set `pooling: base` to accept "
        "base's.",
        "recipe.yaml:5:5: models[2]: m3 does not fit: pooler.dense.bias is I64, F32 in base",
        "5 problems; nothing was touched",
    ]


def test_many_tensors_that_do_not_fit_are_counted_not_listed() -> None:
    with changed_tensors(Path("m2")) as tensors:
        for name in list(tensors):
            tensors[name] = tensors[name][..., :1]
    recipe("m1", "m2")
    lines = refused()
    assert len(lines) == 6
    assert lines[4].endswith("models[1]: m2 does not fit in 35 more tensors")


def test_extra_tensors_can_be_dropped() -> None:
    with changed_tensors(Path("m1")) as tensors:
        tensors["adapter.weight"] = np.ones(3, dtype=np.float32)
        del tensors["pooler.dense.bias"]
    expected = read_tensors(Path("m2")).keys() - {"pooler.dense.bias"}
    recipe(extra_tensors="drop")
    assert read_tensors(merged()).keys() == expected


@pytest.mark.parametrize("out_dtype", [None, "float16", "bfloat16", "float64"])
def test_a_missing_tensor_can_be_copied_whatever_type_is_stored(out_dtype: str | None) -> None:
    with changed_tensors(Path("m2")) as tensors:
        del tensors["pooler.dense.weight"]
    recipe(missing_tensors="copy", **({"out_dtype": out_dtype} if out_dtype else {}))
    found = read_tensors(merged())
    short = {None: "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}[out_dtype]
    copied = read_tensors(Path("m1"))["pooler.dense.weight"][1]
    averaged = np.mean([read_tensors(Path(m))[QUERY][1] for m in ("m1", "m2", "m3")], axis=0)
    near = {"F32": 1e-6, "F64": 1e-15, "F16": 2.0**-11, "BF16": 2.0**-8}[short]
    np.testing.assert_allclose(found[QUERY][1], averaged, rtol=near, atol=2.0**-25)
    np.testing.assert_allclose(found["pooler.dense.weight"][1], copied, rtol=near, atol=2.0**-25)
    if out_dtype is None:
        assert np.array_equal(found["pooler.dense.weight"][1], copied)
    kinds = {name: dtype for name, (dtype, _) in found.items()}
    assert kinds.pop("embeddings.position_ids") == "I64"
    assert set(kinds.values()) == {short}


def test_an_integer_buffer_is_copied_bit_for_bit() -> None:
    recipe(out_dtype="float16")
    result = load_file(merged() / WEIGHTS)["embeddings.position_ids"]
    assert result.dtype == np.int64
    assert np.array_equal(result, load_file(f"m1/{WEIGHTS}")["embeddings.position_ids"])


@pytest.mark.parametrize("without", ["base", "m1", "m2"])
def test_a_buffer_that_some_models_do_not_store_is_no_obstacle(without: str) -> None:
    before = load_file(f"{without}/{WEIGHTS}")["embeddings.position_ids"]
    with changed_tensors(Path(without)) as tensors:
        del tensors["embeddings.position_ids"]
    recipe(merge_method="task_arithmetic", base_model="base")
    result = load_file(merged() / WEIGHTS).get("embeddings.position_ids")
    assert result is None if without == "base" else np.array_equal(result, before)


def test_a_float_buffer_keeps_its_type() -> None:
    frequencies = np.linspace(0.1, 1.0, 5, dtype=np.float32)
    for name in ("m1", "m2", "m3"):
        with changed_tensors(Path(name)) as tensors:
            tensors["rotary_emb.inv_freq"] = frequencies
    recipe(out_dtype="float16")
    result = load_file(merged() / WEIGHTS)
    assert np.array_equal(result["rotary_emb.inv_freq"], frequencies)
    assert result[QUERY].dtype == np.float16


def test_whole_numbers_that_are_equal_are_copied_and_others_are_refused() -> None:
    for name in ("m1", "m2", "m3"):
        with changed_tensors(Path(name)) as tensors:
            tensors["router.map"] = np.arange(7, dtype=np.int32)
    recipe()
    assert load_file(merged() / WEIGHTS)["router.map"].tolist() == list(range(7))
    shutil.rmtree("out")
    with changed_tensors(Path("m3")) as tensors:
        tensors["router.map"][6] = 7
    assert refused() == [
        "recipe.yaml:10:5: models[2]: m3 has other whole numbers (I32) in router.map than m1; such "
        "tensors are copied and not merged, and must be equal. Drop this member, or give it the "
        "tensor of m1",
        "1 problem; nothing was touched",
    ]


def test_whole_numbers_of_another_width_do_not_fit() -> None:
    for name, kind in {"base": np.int64, "m1": np.int32, "m2": np.int32}.items():
        with changed_tensors(Path(name)) as tensors:
            tensors["router.map"] = np.arange(7, dtype=kind)
    recipe("m1", "m2", base_model="base")
    first, second, _ = refused()
    assert first.endswith("models[0]: m1 does not fit: router.map is I32, I64 in base")
    assert second.endswith("models[1]: m2 does not fit: router.map is I32, I64 in base")


# --- what is not a finite number ----------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "method", ["linear", "ties", "slerp", "multislerp", "model_stock", "delta_guided"]
)
def test_one_value_that_is_not_finite_stops_the_merge_and_names_its_model(
    method: str, value: float
) -> None:
    with changed_tensors(Path("m2")) as tensors:
        tensors[QUERY][3, 5] = value
    more: dict[str, Any] = {"parameters": {"t": 0.5}} if method == "slerp" else {}
    if method not in {"linear", "slerp"}:
        more["base_model"] = "base"
    recipe("m1", "m2", merge_method=method, **more)
    (line,) = refused(code=1)
    assert line == (
        f"error: m2: tensor {QUERY} holds not-a-number or infinity. Repair the model, or set "
        "`allow_non_finite: true` to merge it as it is"
    )


def test_what_is_not_finite_passes_where_the_recipe_allows_it() -> None:
    with changed_tensors(Path("m2")) as tensors:
        tensors[QUERY][3, 5] = np.nan
        tensors["pooler.dense.bias"][0] = np.inf
    recipe(allow_non_finite=True)
    result = load_file(merged() / WEIGHTS)
    assert np.argwhere(np.isnan(result[QUERY])).tolist() == [[3, 5]]
    assert result["pooler.dense.bias"][0] == np.inf


def test_a_copied_tensor_that_is_not_finite_stops_the_merge_too() -> None:
    with changed_tensors(Path("m1")) as tensors:
        tensors["pooler.dense.bias"][0] = np.nan
    with changed_tensors(Path("m2")) as tensors:
        del tensors["pooler.dense.bias"]
    recipe(missing_tensors="copy")
    (line,) = refused(code=1)
    assert line.startswith("error: m1: tensor pooler.dense.bias holds not-a-number or infinity.")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_result_too_large_for_its_type_does_not_become_infinite(method: str) -> None:
    for name in ("m1", "m2"):
        with changed_tensors(Path(name)) as tensors:
            tensors["pooler.dense.bias"][0] = 70000.0
    recipe("m1", "m2", merge_method=method, base_model="base", out_dtype="float16")
    (line,) = refused(code=1)
    assert line == (
        "error: tensor pooler.dense.bias: the merge overflows F16. Choose a wider `out_dtype`, or "
        "set `allow_non_finite: true`"
    )


# --- models that mean different things ----------------------------------------------------


def _pool_by_cls(member: Path) -> None:
    with changed_json(member / "1_Pooling/config.json") as config:
        config["pooling_mode"] = "cls"


def _do_not_normalise(member: Path) -> None:
    with changed_json(member / "modules.json") as modules:
        modules.pop()


def _add_a_prompt(member: Path) -> None:
    with changed_json(member / "config_sentence_transformers.json") as config:
        config["prompts"]["query"] = "query: "


def _tell_cases_apart(member: Path) -> None:
    with changed_json(member / "tokenizer.json") as tokenizer:
        tokenizer["normalizer"]["lowercase"] = False


def _change_epsilon(member: Path) -> None:
    with changed_json(member / "config.json") as config:
        config["layer_norm_eps"] = 1e-5


def _change_activation(member: Path) -> None:
    with changed_json(member / "2_Dense/config.json") as config:
        config["activation_function"] = "torch.nn.modules.linear.Identity"


DISAGREEMENTS: list[tuple[Callable[[Path], None], str, str]] = [
    (_pool_by_cls, "pools by [CLS], m1 pools by mean (1_Pooling/config.json)", "pooling"),
    (
        _do_not_normalise,
        "ends with no Normalize module, m1 ends with a Normalize module (modules.json)",
        "normalisation",
    ),
    (
        _add_a_prompt,
        'has the prompts {"query": "query: "}, m1 has the prompts {} '
        "(config_sentence_transformers.json)",
        "prompts",
    ),
    (_tell_cases_apart, "has the tokenizer tokenizer.json ", "tokenizer_source"),
    (
        _change_epsilon,
        "has the configuration layer_norm_eps=1e-05, m1 has the configuration "
        "layer_norm_eps=1e-12 (config.json)",
        "config",
    ),
    (
        _change_activation,
        "has the modules Dense(Identity), m1 has the modules Dense(Tanh) (modules.json)",
        "other_modules",
    ),
]


@pytest.mark.parametrize(
    ("change", "words", "option"), DISAGREEMENTS, ids=lambda value: str(value)[:9]
)
def test_a_member_that_means_something_else_is_refused_unless_it_is_accepted(
    change: Callable[[Path], None], words: str, option: str
) -> None:
    change(Path("m2"))
    recipe()
    line, last = refused()
    assert line.startswith(f"recipe.yaml:7:5: models[1]: {words}")
    assert line.endswith(
        ". Merging them changes every embedding. Drop this member, or set "
        f"`{option}: base` to accept m1's."
    )
    assert last == "1 problem; nothing was touched"
    recipe(**{option: "base"})
    result = files(merged())
    for name, content in files(Path("m1")).items():
        if not name.endswith((".safetensors", "README.md")):
            assert result[name] == content


def test_a_member_that_numbers_its_tokens_otherwise_is_refused_and_told_the_ways_out() -> None:
    with changed_json(Path("m2") / "tokenizer.json") as tokenizer:
        words = tokenizer["model"]["vocab"]
        words["you"], words["young"] = words["young"], words["you"]
    recipe()
    line, last = refused()
    assert line.startswith("recipe.yaml:7:5: models[1]: numbers its tokens as tokenizer.json ")
    assert line.endswith(
        "would be merged with those of other tokens. Set `tokenizer_source: union` to merge them "
        "by token and keep every token, or `tokenizer_source: base` to keep only the tokens of m1."
    )
    assert last == "1 problem; nothing was touched"


def test_the_models_are_held_against_the_base_where_there_is_one() -> None:
    _pool_by_cls(Path("base"))
    recipe("m1", "m2", base_model="base")
    lines = refused()
    assert lines[0].endswith("or set `pooling: base` to accept base's.")
    assert [line.split(": ")[1] for line in lines[:-1]] == ["models[0]", "models[1]"]


def test_a_disagreement_is_told_by_json_with_its_place() -> None:
    _pool_by_cls(Path("m3"))
    recipe()
    ran = boom_merge("recipe.yaml", "-o", "out", "--json")
    (problem,) = json.loads(ran.out)["problems"]
    assert problem["where"] == "recipe.yaml:10:5"
    assert problem["message"].startswith("models[2]: pools by [CLS], m1 pools by mean")


# --- where the result goes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("m2", "m2: holds m2, one of the models to be merged"),
        (".", ".: holds m1, one of the models to be merged"),
        ("m3/merged/new", "m3/merged/new: lies inside m3, one of the models to be merged"),
        ("link", "link: holds m2, one of the models to be merged"),
    ],
)
def test_the_models_to_be_merged_are_never_written_to(output: str, complaint: str) -> None:
    Path("link").symlink_to("m2")
    recipe()
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", output, "--overwrite")
    assert ran.code == 2
    assert ran.err == f"error: {complaint}; write the result elsewhere with -o\n"
    assert files(Path()) == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_that_holds_no_model_is_never_replaced(overwrite: list[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("Once")
    recipe()
    ran = boom_merge("recipe.yaml", "-o", "thesis", *overwrite)
    assert ran.code == 2
    assert ran.err == (
        "error: thesis: holds files that are not a model, which are never replaced; choose another "
        "folder with -o\n"
    )
    assert files(Path("thesis")) == {"chapter1.tex": b"Once"}


def test_a_model_is_replaced_only_when_that_is_asked_for() -> None:
    recipe()
    before = files(merged())
    recipe("m1", "m2")
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2
    assert ran.err == (
        "error: out: holds a model already; pass --overwrite to replace it, or choose another "
        "folder with -o\n"
    )
    assert files(Path("out")) == before


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("recipe.yaml", "recipe.yaml: is a file; choose a folder with -o"),
        ("recipe.yaml/new", "/recipe.yaml is a file; choose a folder with -o"),
    ],
)
def test_a_file_is_no_place_for_a_model(output: str, complaint: str) -> None:
    recipe()
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", output)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {output}: ")
    assert ran.err.endswith(f"{complaint}\n")
    assert files(Path()) == before


def test_an_empty_folder_is_a_place_for_a_model() -> None:
    Path("out").mkdir()
    recipe()
    assert WEIGHTS in files(merged())


def test_a_link_to_a_model_stays_a_link_and_its_model_is_replaced() -> None:
    recipe()
    merged().rename("real")
    Path("out").symlink_to("real")
    recipe("m1", "m2")
    merged("--overwrite")
    assert Path("out").is_symlink()
    assert boom_merge("recipe.yaml", "-o", "fresh").code == 0
    assert files(Path("real")) == files(Path("fresh"))
    assert siblings(Path("real").absolute()) == []


def test_the_home_folder_may_be_spelled_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    recipe(output="~/models/new")
    ran = boom_merge("recipe.yaml")
    assert (ran.code, ran.err) == (0, "")
    assert WEIGHTS in files(Path("home/models/new"))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_an_output_that_may_not_be_written_is_said_to_be_so(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any, **options: Any) -> int:
        raise OSError(code, os.strerror(code))

    recipe()
    monkeypatch.setattr(Path, "mkdir", forbidden)
    ran = boom_merge("recipe.yaml", "-o", "deep/out")
    monkeypatch.undo()
    assert ran.code == 1
    assert ran.err == (
        f"error: deep/out: cannot be written ({os.strerror(code)}); choose another folder with -o\n"
    )
    assert not Path("deep").exists()


def test_a_file_system_that_takes_no_files_is_no_place_for_a_model() -> None:
    recipe()
    ran = boom_merge("recipe.yaml", "-o", "/proc/merged")
    assert ran.code == 1
    assert ran.err.startswith("error: /proc/merged: ")
    assert "-o" in ran.err
