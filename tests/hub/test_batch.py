"""boom-merge that pushes: one recipe or many, safe to run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import boom_merge, write_recipe

import mergekit_embed
from mergekit_embed.errors import RecipeError, UsageError
from mergekit_embed.publish.batch import Wish, hub_name, targets_of
from mergekit_embed.recipe import load_all

from .server import LoopbackHub
from .test_push import contents, visible
from .test_stream import timeless

pytestmark = pytest.mark.usefixtures("among_models")

LINEAR = {"merge_method": "linear", "models": [{"model": "m1"}, {"model": "m2"}]}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def recipes(count: int, **more: Any) -> list[Path]:
    Path("recipes").mkdir(exist_ok=True)
    found = []
    for number in range(count):
        models = [{"model": "../m1", "parameters": {"weight": number + 1}}, {"model": "../m2"}]
        path = Path(f"recipes/r{number}.yaml")
        write_recipe(path, {"merge_method": "linear", "models": models, **more})
        found.append(path)
    return found


def test_a_recipe_is_merged_and_pushed(hub: LoopbackHub) -> None:
    write_recipe(Path("recipe.yaml"), LINEAR)
    ran = boom_merge("recipe.yaml", "-o", "out", "--push-to-hub", "alice/model", "--private")
    assert ran.code == 0, ran.err
    assert "merged 2 models into out" in ran.out and f"{hub.url}/alice/model" in ran.out
    assert hub.store.files("alice/model") == contents(Path("out"))
    assert hub.store.repository("alice/model").private


def test_what_a_recipe_says_of_publishing(hub: LoopbackHub) -> None:
    said = {"repository": "lab/of-{name}", "private": True, "revision": "v1"}
    write_recipe(Path("mine.yaml"), {**LINEAR, "publish": said})
    assert boom_merge("mine.yaml", "-o", "out").code == 0
    assert not hub.requests, "a recipe alone sends nothing"
    assert boom_merge("mine.yaml", "-o", "out", "--publish", "--skip-load").code == 0
    assert hub.store.repository("lab/of-mine").private
    assert hub.store.files("lab/of-mine", "v1") == contents(Path("out"))
    assert hub.store.files("lab/of-mine") == {}


def test_where_and_whether_change_no_byte() -> None:
    publish = {"repository": "a/b"}
    plain = mergekit_embed.merge(LINEAR, "plain").path
    said = mergekit_embed.merge({**LINEAR, "publish": publish}, "said").path
    same = {name for name, raw in contents(plain).items() if contents(said)[name] == raw}
    assert set(contents(plain)) - same == {"merge_lineage.json"}, "which tells the time"
    lineage = (said / "merge_lineage.json").read_text()
    assert "a/b" not in lineage and "publish" not in lineage


def test_a_batch_says_a_line_a_recipe_and_goes_on(hub: LoopbackHub) -> None:
    some = recipes(3)
    some[1].write_text("merge_method: linear\nmodels: [{model: ../nobody}]\n")
    arguments = [*some, "-o", "out", "--push-to-hub", "alice/{name}"]
    arguments += ["--keep-going", "--json", "--skip-load"]
    ran = boom_merge(*arguments)
    assert ran.code == 1
    first, second, third = lines(ran.out)
    assert [one["status"] for one in (first, second, third)] == ["done", "failed", "done"]
    assert second["recipe"] == str(some[1]) and "nobody" in second["problems"][0]["message"]
    assert first["merged"] and first["pushed"]["is_new"]
    assert first["pushed"]["url"] == f"{hub.url}/alice/r0"
    assert sorted(hub.store.repositories) == ["alice/r0", "alice/r2"]


def test_a_batch_that_is_run_again_does_what_is_left(hub: LoopbackHub) -> None:
    some = recipes(3)
    arguments = [*some, "-o", "out", "--push-to-hub", "alice/{name}"]
    arguments += ["--keep-going", "--json", "--skip-load"]

    def go_away(point: int) -> None:
        hub.down = hub.down or len(hub.store.history) == 3

    hub.at_point = go_away
    ran = boom_merge(*arguments)
    assert ran.code == 1
    assert [one["status"] for one in lines(ran.out)] == ["done", "failed", "failed"]
    hub.calm()
    before = contents(Path("out"))
    again = lines(boom_merge(*arguments).out)
    assert [one["merged"] for one in again] == [False, False, True]
    assert [one["pushed"]["is_new"] for one in again] == [False, True, True]
    after = contents(Path("out"))
    assert {name: after[name] for name in before} == before
    for number in range(3):
        assert visible(hub, f"alice/r{number}") == [set(), set(contents(Path(f"out/r{number}")))]
    hub.calm()
    assert all(not one["merged"] for one in lines(boom_merge(*arguments).out))
    assert hub.sent == 0 and len(hub.asked("whoami")) == 3


def test_what_has_changed_since_is_merged_again(hub: LoopbackHub) -> None:
    write_recipe(Path("recipe.yaml"), LINEAR)
    arguments = ["recipe.yaml", "-o", "out", "--push-to-hub", "alice/model", "--skip-load"]
    assert boom_merge(*arguments).code == 0
    weights = Path("m1/model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(raw)
    ran = boom_merge(*arguments)
    assert ran.code == 2 and "holds a model already; pass --overwrite" in ran.err
    ran = boom_merge(*arguments, "--overwrite")
    assert ran.code == 1 and "which this merge did not write" in ran.err
    assert boom_merge(*arguments, "--overwrite-on-hub").code == 0
    assert hub.store.files("alice/model") == contents(Path("out"))


def test_nothing_is_merged_for_a_place_that_is_not_ones_own(hub: LoopbackHub) -> None:
    write_recipe(Path("recipe.yaml"), LINEAR)
    ran = boom_merge("recipe.yaml", "-o", "out", "--push-to-hub", "bob/model")
    assert ran.code == 1 and "bob is neither you (alice)" in ran.err
    assert not Path("out").exists()


def test_straight_to_the_hub(hub: LoopbackHub) -> None:
    some = recipes(2, max_shard_size="30KB")
    arguments = [*some, "-o", "out", "--push-to-hub", "alice/models", "--revision", "{name}"]
    ran = boom_merge(*arguments, "--stream-to-hub", "--json")
    assert ran.code == 0, ran.err
    assert [one["pushed"]["revision"] for one in lines(ran.out)] == ["r0", "r1"]
    assert not Path("out/r0").exists()
    boom_merge(*some, "-o", "here")
    for name in ("r0", "r1"):
        there = hub.store.files("alice/models", name)
        here = contents(Path("here", name))
        assert set(there) == set(here) and timeless(there) == timeless(here)


def test_a_sweep_has_a_repository_for_every_point(hub: LoopbackHub) -> None:
    write_recipe(Path("recipe.yaml"), {**LINEAR, "sweep": {"models[0].parameters.weight": [1, 2]}})
    ran = boom_merge("recipe.yaml", "-o", "out", "--push-to-hub", "alice/{name}", "--skip-load")
    assert ran.code == 0, ran.err
    assert len(hub.store.repositories) == 2
    ran = boom_merge("recipe.yaml", "-o", "out", "--push-to-hub", "alice/one")
    assert ran.code == 2 and "two models would go there; write '{name}'" in ran.err


def test_names_of_the_hub() -> None:
    recipe = load_all({**LINEAR, "sweep": {"models[0].parameters.weight": [0.5]}})[0]
    name = hub_name(recipe)
    assert name.startswith("recipe-") and not set(name) - set("abcdefghijklmnopqrstuvwxyz.-_0.5")
    assert "--" not in name and ".." not in name


def test_two_recipes_for_one_place() -> None:
    found = load_all(LINEAR)
    with pytest.raises(UsageError, match="a/b: two models would go there"):
        targets_of([*found, *load_all(LINEAR)], Wish("a/b"))
    assert len(targets_of([*found, *load_all(LINEAR)], Wish("a/b", create_pr=True))) == 2
    with pytest.raises(RecipeError, match="publish: is not there; say where to publish"):
        targets_of(found, Wish())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--private"], "--private needs --push-to-hub OWNER/NAME, or --publish"),
        (["--stream-to-hub"], "--stream-to-hub needs --push-to-hub"),
        (["--publish", "--push-to-hub", "a/b"], "both say where to push; choose one"),
        (["--push-to-hub", "model"], "'model' is no name of a repository"),
        (["--publish"], "publish: is not there"),
        (
            ["--push-to-hub", "alice/a", "--stream-to-hub", "--executor", "ray"],
            "leave out --executor",
        ),
    ],
)
def test_options_that_do_not_fit(hub: LoopbackHub, options: list[str], told: str) -> None:
    write_recipe(Path("recipe.yaml"), LINEAR)
    ran = boom_merge("recipe.yaml", "-o", "out", *options)
    assert ran.code == 2 and told in ran.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{repository: nobody}", 'publish.repository: must be OWNER/NAME, not "nobody"'),
        ("{repo: a/b}", "unknown key"),
        ("{repository: a/b, private: maybe}", "must be true or false"),
        ("a/b", "must be a mapping such as `{repository: me/my-model}`"),
        ("{}", "publish.repository: is required and not there"),
    ],
)
def test_a_publish_block_that_is_wrong(said: str, told: str) -> None:
    models = "merge_method: linear\nmodels: [{model: m1}, {model: m2}]\n"
    Path("recipe.yaml").write_text(f"{models}publish: {said}\n")
    ran = boom_merge("recipe.yaml", "-o", "out")
    assert ran.code == 2 and told in ran.err


def test_a_dry_run_tells_where(hub: LoopbackHub) -> None:
    write_recipe(Path("recipe.yaml"), LINEAR)
    ran = boom_merge("recipe.yaml", "-o", "out", "--push-to-hub", "alice/{name}", "--dry-run")
    assert ran.code == 0 and "pushes to  alice/recipe (main)" in ran.out
    assert hub.requests == []


def test_a_lineage_is_pushed_by_itself(hub: LoopbackHub) -> None:
    mergekit_embed.merge(LINEAR, "out")
    ran = boom_merge("out/merge_lineage.json", "-o", "new", "--push-to-hub", "alice/model")
    assert ran.code == 2 and "push what comes of it with boom-push" in ran.err
