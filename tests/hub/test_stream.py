"""Merging straight into a repository: two shards of disk, and nothing to be seen until all is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family
from safetensors.numpy import save_file

import mergekit_embed
from mergekit_embed.engine import MergeResult
from mergekit_embed.errors import HubError, NonFiniteError, OutputError
from mergekit_embed.publish.stream import Streamed, stream_to_hub
from mergekit_embed.publish.target import Target

from .server import Fault, LoopbackHub
from .test_push import HERE, contents, visible

SHARD = 30_000


def recipe_of(family: Family, **more: Any) -> dict[str, Any]:
    models = [{"model": str(member)} for member in family.members]
    return {"merge_method": "linear", "models": models, "max_shard_size": SHARD, **more}


def streamed(recipe: dict[str, Any], out: Path, target: Target | str = HERE) -> Streamed:
    return stream_to_hub(mergekit_embed.plan(recipe, out), target)


def timeless(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the lineage, which tells the time, and the card, which tells where the model is."""
    left_out = {"merge_lineage.json", "README.md"}
    return {name: raw for name, raw in files.items() if name not in left_out}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.glob(f".{folder.name}*"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"merge_method": "model_stock", "granularity": "model"},
        {"merge_method": "ties", "parameters": {"density": 0.5}},
    ],
    ids=["mixture", "measured-whole", "consensus"],
)
def test_the_hub_gets_what_a_merge_writes(
    hub: LoopbackHub, family: Family, tmp_path: Path, more: dict[str, Any]
) -> None:
    if more:
        more = {**more, "base_model": str(family.base)}
    recipe, out = recipe_of(family, **more), tmp_path / "out"
    result = streamed(recipe, out)
    assert (result.pushed.is_new, result.merge.path.exists(), left(out)) == (True, False, [])
    mergekit_embed.merge(recipe, tmp_path / "local")
    local = contents(tmp_path / "local")
    assert timeless(hub.store.files(HERE)) == timeless(local)
    assert visible(hub) == [set(), {*local, "README.md"}]
    assert f'"{HERE}"' in hub.store.files(HERE)["README.md"].decode()
    assert mergekit_embed.plan(recipe, out).files[3].size < SHARD + 2000


def test_merging_again_sends_and_commits_nothing(
    hub: LoopbackHub, family: Family, tmp_path: Path
) -> None:
    first = streamed(recipe_of(family), tmp_path / "out")
    hub.calm()
    again = streamed(recipe_of(family), tmp_path / "out")
    assert (again.pushed.is_new, again.pushed.commit) == (False, first.pushed.commit)
    assert hub.sent == 0 and not hub.asked("PUT|/commit/")


def test_another_recipes_model_is_not_replaced_and_nothing_merged_for_it(
    hub: LoopbackHub, family: Family, tmp_path: Path
) -> None:
    streamed(recipe_of(family), tmp_path / "out")
    hub.calm()
    other = recipe_of(family, max_shard_size="1MB", seed=7)
    with pytest.raises(HubError, match="which this merge did not write"):
        streamed(other, tmp_path / "out")
    assert hub.sent == 0 and left(tmp_path / "out") == []
    streamed(other, tmp_path / "out", Target(HERE, overwrite=True))
    names = set(hub.store.files(HERE))
    assert "model.safetensors" in names and not any(name.startswith("model-0") for name in names)


def test_other_members_under_the_same_recipe_are_told_from_it_at_the_end(
    hub: LoopbackHub, own_family: Family, tmp_path: Path
) -> None:
    recipe = recipe_of(own_family)
    streamed(recipe, tmp_path / "out")
    before = hub.store.files(HERE)
    weights = own_family.members[0] / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(HubError, match="which this merge did not write"):
        streamed(recipe, tmp_path / "out")
    assert hub.store.files(HERE) == before


def test_a_pull_request_is_made_once(hub: LoopbackHub, family: Family, tmp_path: Path) -> None:
    hub.store.create("bob/model")
    target = Target("bob/model", create_pr=True)
    first = streamed(recipe_of(family), tmp_path / "out", target).pushed
    again = streamed(recipe_of(family), tmp_path / "out", target).pushed
    assert (first.url, again.is_new) == (again.url, False)


def test_what_is_not_finite_is_never_seen(
    hub: LoopbackHub, own_family: Family, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    weights = own_family.members[1] / "model.safetensors"
    tensors = load_file(weights)
    last = sorted(name for name, tensor in tensors.items() if tensor.dtype == np.float32)[-1]
    tensors[last] = np.full_like(tensors[last], np.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=last):
        streamed(recipe_of(own_family), tmp_path / "out")
    assert visible(hub) == [set()] and left(tmp_path / "out") == []


@contextmanager
def watched(folder: Path, hub: LoopbackHub) -> Iterator[Callable[[], int]]:
    """The most bytes that a folder had on the disk; asked for at every piece that comes in."""
    most, over = [0], threading.Event()

    def measure(point: int = 0) -> None:
        total = 0
        for path in folder.rglob("*"):
            try:
                total += 512 * path.stat().st_blocks
            except FileNotFoundError:  # sent, and removed
                continue
        most[0] = max(most[0], total)

    def poll() -> None:
        while not over.wait(0.001):
            measure()

    hub.at_point = measure
    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        over.set()
        thread.join()


def large_model(folder: Path, seed: int, megabytes: int) -> Path:
    """Config and weights of a model that is large for its age, of tensors of half a megabyte."""
    random = np.random.default_rng(seed)
    names = [f"layer.{index}.weight" for index in range(2 * megabytes)]
    tensors = {name: random.standard_normal((250, 500), np.float32) for name in names}
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_disk_holds_two_shards_at_most(hub: LoopbackHub, tmp_path: Path) -> None:
    members = [large_model(tmp_path / f"m{seed}", seed, 48) for seed in range(2)]
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(member)} for member in members],
        "max_shard_size": "4MB",
    }
    plan = mergekit_embed.plan(recipe, tmp_path / "out")
    assert len(plan.files) >= 12
    with watched(tmp_path / ".out.partial", hub) as most:
        stream_to_hub(plan, HERE)
    shard = max(file.size for file in plan.files)
    assert 1.5 * shard < most() < 2 * shard + 200_000
    assert hub.sent == plan.bytes_out


def test_too_little_disk_is_told_before_anything(
    hub: LoopbackHub, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["mergekit_embed.engine.plan"]
    monkeypatch.setattr(module, "free_space", lambda output: SHARD)
    with pytest.raises(OutputError, match=r"on a disk with 0\.03 MB free"):
        streamed(recipe_of(family), tmp_path / "out")
    assert hub.requests == []


def test_a_run_whose_hub_is_gone_is_continued(
    hub: LoopbackHub, family: Family, tmp_path: Path
) -> None:
    mergekit_embed.merge(recipe_of(family), tmp_path / "local")
    local = contents(tmp_path / "local")
    hub.faults.append(Fault(r"PUT", 500, times=10**6, message="out of order"))

    def soon(point: int) -> None:
        hub.faults[0].times = 0 if hub.sent < 3 * SHARD else 10**6

    hub.at_point = soon
    with pytest.raises(HubError, match=r"the Hub is in trouble \(status 500\) \(out of order\)"):
        streamed(recipe_of(family), tmp_path / "out")
    assert hub.sent >= 3 * SHARD and visible(hub) == [set()]
    shards = list((tmp_path / ".out.partial").glob("*.safetensors"))
    assert 0 < len(shards) <= 2
    sent = hub.sent
    hub.calm()
    with watched(tmp_path / ".out.partial", hub) as most:
        result = streamed(recipe_of(family), tmp_path / "out")
    assert isinstance(result.merge, MergeResult) and result.merge.resumed > 0
    assert timeless(hub.store.files(HERE)) == timeless(local)
    weights = sum(len(raw) for name, raw in local.items() if name.endswith(".safetensors"))
    assert hub.sent + sent <= weights + 3 * SHARD, "what was sent is not sent again"
    assert most() < 2 * SHARD + 200_000
