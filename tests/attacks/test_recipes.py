"""Recipes that hold themselves, never end, or would fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import listed

from .attack import CUT, Attacks, Ground, hole

attack = Attacks()

LINEAR = "merge_method: linear\nmodels:\n  - model: {good}\n"
NINES = "9" * 4000


def written(ground: Ground, text: str) -> Path:
    """The recipe of this text, in which {good} stands for the sound model."""
    return ground.write(text.replace("{good}", str(ground.good)))


def refused(ground: Ground, text: str, says: str = "") -> str:
    """What the recipe of this text is refused with."""
    recipe = written(ground, text)
    return ground.refused(recipe, names=recipe, says=says, longest=CUT)


# --- YAML ---------------------------------------------------------------------------------


def bomb(levels: int, width: int, leaf: str = "1") -> str:
    """Lists of lists by reference: `width` to the power of `levels` in a few lines."""
    lines = [f"a0: &a0 [{leaf}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "use",
    [
        "",
        "parameters: {weight: *a60}\n",
        "seed: *a60\n",
        "dtype: *a60\n",
        "output: *a60\n",
        "base_model: *a60\n",
        "sweep: {seed: *a60}\n",
        "sweep: {seed: [1, *a60]}\n",
        "sweep: *a60\n",
        "post: *a60\n",
        "tokenizer: *a60\n",
        "tokenizer: {tokens: *a60}\n",
        "max_shard_size: *a60\n",
        "merge_method: *a60\n",
        "models: *a60\n",
        "models: [{model: *a60}]\n",
        "models: [{model: x, parameters: {weight: *a60}}]\n",
        "models: [{model: x, parameters: {weight: [{filter: *a60, value: *a60}]}}]\n",
        "slices: [{sources: *a60}]\n",
        "*a60 : 1\n",
    ],
)
def test_a_billion_laughs_are_no_recipe(use: str, ground: Ground) -> None:
    text = bomb(60, 2) + ("" if use.startswith(("models", "merge")) else LINEAR) + use
    recipe = written(ground, text)
    ran = ground.attempt(recipe)
    assert ran.code == 2
    assert all(line.startswith(str(recipe)) for line in ran.err.splitlines()[:-1])
    assert len(ran.err) < 50_000


def test_a_billion_laughs_as_recipes_within_recipes_are_refused(ground: Ground) -> None:
    """Every recipe merges the one before twice: two to the power of forty merges."""
    lines = [f"models:\n - model: &r0 {{merge_method: linear, models: [{{model: {ground.good}}}]}}"]
    for i in range(1, 41):
        inner = ", ".join(f"{{model: *r{i - 1}}}" for _ in range(2))
        lines.append(f" - model: &r{i} {{merge_method: linear, models: [{inner}]}}")
    refused(ground, "merge_method: linear\n" + "\n".join(lines), "by its references")


def test_a_recipe_by_reference_to_itself_is_refused(ground: Ground) -> None:
    text = "&r\nmerge_method: linear\nmodels:\n  - model: {good}\n  - model: *r\n"
    refused(ground, text, "by its references")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "is not valid YAML"),
        ("{a: " * 20_000, "is not valid YAML"),
        ("- " * 20_000, "is not valid YAML"),
        ("a: " + "[" * 400 + "]" * 400 + "\n" + LINEAR, ""),
        ("parameters: {weight: " + "[" * 200 + "]" * 200 + "}\n" + LINEAR, ""),
        ("!!python/object/apply:os.system ['touch mark']", ""),
        (LINEAR + "seed: !!python/object/apply:os.system ['touch mark']\n", "seed"),
        (LINEAR + "seed: !!python/name:os.system\n", "seed"),
        (LINEAR + "parameters: !<tag:x> {weight: 1, weight: 2}\n", ""),
        (LINEAR + "---\n" + LINEAR, "is not valid YAML"),
        (LINEAR + LINEAR, "duplicate key"),
        (LINEAR + "seed: 1\nseed: 2\n", "duplicate key"),
        (LINEAR + '"\\e[2J\\e[1;1Hdone": 1\n', "unknown key"),
        (LINEAR + '"a\\nerror: run evil": 1\n', "unknown key"),
        (LINEAR + '"\\u202e": 1\n', "unknown key"),
        (LINEAR + "? [a, b]\n: 1\n", ""),
        (LINEAR + "? {a: b}\n: 1\n", ""),
        (LINEAR + f"seed: {NINES}\n", "seed"),
        (LINEAR + f"seed: {'9' * 5000}\n", ""),
        (LINEAR + f"parameters: {{weight: {NINES}}}\n", "weight"),
        (LINEAR + f"parameters: {{weight: [1, {NINES}]}}\n", "weight"),
        (LINEAR + f"parameters: {{weight: [{{value: {NINES}}}]}}\n", "weight"),
        (LINEAR + "parameters: {weight: .nan}\n", "weight"),
        (LINEAR + "parameters: {weight: [.inf, 1]}\n", "weight"),
        (LINEAR + "parameters: {weight: 1e999}\n", "weight"),
        (LINEAR + f"max_shard_size: {NINES}\n", "max_shard_size"),
        (LINEAR + f"max_shard_size: {'9' * 400}GB\n", "max_shard_size"),
        (LINEAR + "max_shard_size: 1e999GB\n", "max_shard_size"),
        (LINEAR + "max_shard_size: .inf\n", "max_shard_size"),
        (LINEAR + "max_shard_size: .nan\n", "max_shard_size"),
        (LINEAR + "max_shard_size: -1\n", "max_shard_size"),
        (LINEAR + "pad_to_multiple_of: 1000000000000\n", "pad_to_multiple_of"),
        (LINEAR + f"pad_to_multiple_of: {NINES}\n", "pad_to_multiple_of"),
        (LINEAR + "post: [{extend_positions: 1000000000000000}]\n", "extend_positions"),
        (LINEAR + f"post: [{{extend_positions: {NINES}}}]\n", "extend_positions"),
        (LINEAR + f"post: [{{temp_scale: {NINES}}}]\n", "temp_scale"),
        (LINEAR + f"adapter_output: {{rank: {NINES}}}\n", "rank"),
        (LINEAR + "sweep: {seed: [" + ",".join(map(str, range(2000))) + "]}\n", "2,000 models"),
        (LINEAR + "sweep: {'models[99999999999999999999]': [1]}\n", "sweep"),
        (LINEAR + f"sweep: {{'{'a.' * 400}': [1]}}\n", "sweep"),
        (LINEAR + f"base_model: {'a+' * 500}b\n", "base_model"),
        (LINEAR + f"base_model: {'a' * 20_000}\n", "base_model"),
        (LINEAR + f"base_model: {'a/' * 3000}\n", "base_model"),
        (LINEAR + 'base_model: "a\\0b"\n', "base_model"),
        (LINEAR + 'base_model: "~nobody-of-this-name/x"\n', "base_model"),
        (LINEAR + 'base_model: "\\ud800"\n', ""),
        (LINEAR + "parameters: {weight: [{filter: '/(/', value: 1}]}\n", "regular expression"),
        (LINEAR + f"parameters: {{weight: [{{filter: '/{'(' * 5000}/', value: 1}}]}}\n", ""),
        (LINEAR + "parameters: {weight: [{filter: '/a{99999999999}/', value: 1}]}\n", "regular"),
        (LINEAR + "merge_method: " + "x" * 20_000, ""),
    ],
    ids=lambda value: value.removeprefix(LINEAR)[:40] if isinstance(value, str) else None,
)
def test_a_hostile_recipe_is_refused(text: str, says: str, ground: Ground) -> None:
    before = [LINEAR, LINEAR.replace("linear", "ties")]
    if text.startswith(before[0]) and "base_model" in text:
        text = text.replace(*before)
    refused(ground, text, says)


# --- recipes within recipes ---------------------------------------------------------------


def chain(ground: Ground, length: int, twice: bool = False) -> None:
    """Recipe files, each of which merges the next one, or the next one in two spellings."""
    for i in range(length):
        names = [f"r{i + 1}.yaml", f"./r{i + 1}.yaml"][: 1 + twice]
        models = "".join(f"  - model: {name}\n" for name in names)
        (ground.root / f"r{i}.yaml").write_text(f"merge_method: linear\nmodels:\n{models}")
    last = LINEAR.replace("{good}", str(ground.good))
    (ground.root / f"r{length}.yaml").write_text(last)


@attack("r", "within")
def thousand_recipes_within_each_other(ground: Ground) -> dict[str, Any]:
    """Deeper than Python can go."""
    chain(ground, 1000)
    return {"models": listed(ground.root / "r0.yaml")}


@attack("r", "within", lines=2)
def two_to_the_forty_recipes(ground: Ground) -> dict[str, Any]:
    """Each merges the next one twice."""
    chain(ground, 40, twice=True)
    return {"models": listed(ground.root / "r0.yaml")}


@attack("recipe.yaml", "is made of itself")
def recipe_that_merges_itself(ground: Ground) -> dict[str, Any]:
    """The recipe is a member of itself."""
    return {"models": listed(ground.root / "recipe.yaml")}


@attack("link/b.yaml", "is made of itself")
def recipes_that_merge_each_other(ground: Ground) -> dict[str, Any]:
    """Two recipes, each a member of the other, through a link."""
    (ground.root / "link").symlink_to(".")
    for one, other in ("ab", "ba"):
        text = f"merge_method: linear\nmodels:\n  - model: link/{other}.yaml\n"
        (ground.root / f"{one}.yaml").write_text(text)
    return {"models": listed(ground.root / "a.yaml")}


@attack("inner.yaml", "is too large")
def recipe_of_a_terabyte(ground: Ground) -> dict[str, Any]:
    """A hole in the disk in the place of a recipe."""
    hole(ground.root / "inner.yaml", 2**40)
    return {"models": listed(ground.root / "inner.yaml")}


@attack("inner.yaml", "YAML forbids")
def recipe_of_zeros(ground: Ground) -> dict[str, Any]:
    """Bytes that are no text."""
    (ground.root / "inner.yaml").write_bytes(bytes(1000))
    return {"models": listed(ground.root / "inner.yaml")}


test_a_hostile_recipe_within_a_recipe_is_refused = attack.test()


def test_an_endless_device_is_no_recipe(ground: Ground) -> None:
    ground.refused(Path("/dev/zero"), names="/dev/zero", says="is too large")


def test_recipes_within_recipes_may_share_one(ground: Ground) -> None:
    """A diamond is no loop."""
    chain(ground, 4, twice=True)
    ground.merged(ground.write(models=listed(ground.root / "r0.yaml")))
