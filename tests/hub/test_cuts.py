"""Pushes that are cut at random points: the next completes them, and no half is ever seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import Family

from mergekit_embed.errors import HubError
from mergekit_embed.publish.push import push

from .client import push_and_die, stream_and_die
from .server import LoopbackHub
from .test_push import HERE, contents, pushed, visible
from .test_stream import left, recipe_of, streamed, timeless

CUTS = 10
"""Of each kind."""


def points_of(hub: LoopbackHub, folder: Path) -> int:
    """How many points a push that is left alone has."""
    pushed(folder, "alice/measured")
    found = hub.points
    hub.calm()
    forget(hub)
    return found


def forget(hub: LoopbackHub) -> None:
    """Let the Hub know none of the large files that were sent so far."""
    for path in (hub.store.folder / "large").iterdir():
        path.unlink()


def chosen(last: int, seed: int) -> list[int]:
    """Points for cuts, spread over a whole push, the first and the last among them."""
    random_points = random.Random(seed).sample(range(2, last), CUTS - 2)
    return [1, *sorted(random_points), last]


def check(hub: LoopbackHub, folder: Path, repository: str) -> None:
    """That nothing was seen but nothing, or all, and that now there is all, committed once."""
    everything = set(contents(folder))
    assert all(state in (set(), everything) for state in visible(hub, repository))
    assert visible(hub, repository).count(everything) == 1
    assert hub.store.files(repository) == contents(folder)


def test_a_push_whose_hub_goes_away_is_completed_by_the_next(
    hub: LoopbackHub, merged: Path
) -> None:
    hub.part_size = 12_000
    last = points_of(hub, merged)
    cut = 0
    for number, at in enumerate(chosen(last, seed=1)):
        repository = f"alice/cut-{number}"
        before = hub.points

        def go_away(point: int, end: int = before + at) -> None:
            hub.down = hub.down or point >= end

        hub.at_point = go_away
        try:
            pushed(merged, repository)
        except HubError as error:
            cut += 1
            assert "run the same command again" in str(error)
        hub.down, hub.at_point = False, lambda point: None
        pushed(merged, repository)
        check(hub, merged, repository)
        forget(hub)
    assert cut >= CUTS - 1


def test_a_push_that_is_killed_is_completed_by_the_next(
    hub: LoopbackHub, merged: Path, tmp_path: Path
) -> None:
    last = points_of(hub, merged)
    killed = 0
    for number, at in enumerate(chosen(last - 1, seed=2)):
        repository = f"alice/killed-{number}"
        hub.calm()
        killed += push_and_die(hub, tmp_path / "cache", at, merged, repository)
        pushed(merged, repository)
        check(hub, merged, repository)
        forget(hub)
    assert killed >= CUTS - 2


def test_a_merge_to_the_hub_that_is_killed_is_completed_by_the_next(
    hub: LoopbackHub, merged: Path, family: Family, tmp_path: Path
) -> None:
    recipe = recipe_of(family)
    streamed(recipe, tmp_path / "out", "alice/measured")
    last, expected = hub.points, timeless(contents(merged))
    forget(hub)
    killed = 0
    for number, at in enumerate(chosen(last - 1, seed=3)[::2]):
        repository = f"alice/stream-{number}"
        hub.calm()
        killed += stream_and_die(hub, tmp_path / "cache", at, recipe, tmp_path / "out", repository)
        sent = hub.sent
        streamed(recipe, tmp_path / "out", repository)
        assert hub.sent - sent <= sum(len(raw) for raw in expected.values())
        assert left(tmp_path / "out") == []
        found = hub.store.files(repository)
        assert timeless(found) == expected
        assert all(state in (set(), set(found)) for state in visible(hub, repository))
        assert visible(hub, repository).count(set(found)) == 1
        forget(hub)
    assert killed >= CUTS / 2 - 1


def test_what_was_sent_is_not_sent_again(hub: LoopbackHub, merged: Path) -> None:
    shards = [path.stat().st_size for path in merged.rglob("*.safetensors")]

    def go_away(point: int) -> None:
        hub.down = hub.down or hub.sent >= sum(shards) / 2

    hub.at_point = go_away
    with pytest.raises(HubError):
        pushed(merged)
    first = hub.sent
    hub.calm()
    assert push(merged, HERE, loads=False).is_new
    assert 0 < hub.sent < sum(shards)
    assert first + hub.sent < sum(shards) + 6 * max(shards), "five are on their way at once"
    assert hub.store.files(HERE) == contents(merged)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: LoopbackHub, merged: Path) -> None:
    def go_away(point: int) -> None:
        hub.down = hub.down or len(visible(hub)) == 2

    hub.at_point = go_away
    with pytest.raises(HubError, match="run the same command again"):
        pushed(merged)
    hub.calm()
    assert not pushed(merged).is_new
    assert len(visible(hub)) == 2
