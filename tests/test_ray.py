"""Merges on a real Ray cluster of two machines, which are processes here: the bytes of a local one.

Each has one CPU. Workers are killed, a machine is taken away, the driver is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_merge
from helpers import (
    WEIGHTS,
    boom_merge,
    changed_tensors,
    files,
    listed,
    recipe,
    siblings,
    write_recipe,
)
from test_executors import INNER, RECIPES

import mergekit_embed
from mergekit_embed.engine.executors import cluster as clusters
from mergekit_embed.engine.executors import on_ray
from mergekit_embed.engine.journal import read_journal
from mergekit_embed.engine.staging import JOURNAL
from mergekit_embed.errors import (
    CheckpointError,
    NonFiniteError,
    OutputError,
    UsageError,
    WorkerError,
)
from mergekit_embed.methods import registry

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("among_models")]

OUT = Path("out")
SLOW: dict[str, Any] = {"merge_method": "slow", "models": listed("m1", "m2", "m3")}
STORE = 80 * 2**20
"""Bytes of a machine's object store, about the least that Ray takes: no tensor goes there."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with a CPU each, this process connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`merge_method: slow`, for one test, also where its module is not installed."""
    from ray import cloudpickle

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    slow_merge.register()
    cloudpickle.register_pickle_by_value(slow_merge)
    yield
    cloudpickle.unregister_pickle_by_value(slow_merge)


def merged(recipe: dict[str, Any], output: str, **more: Any) -> dict[str, bytes]:
    mergekit_embed.merge_many(recipe, output, **more)
    assert siblings(Path(output).absolute()) == []
    return files(Path(output))


@pytest.mark.parametrize("name", RECIPES)
def test_the_cluster_gives_the_bytes_of_this_machine(cluster: Any, name: str) -> None:
    write_recipe(Path("inner.yaml"), INNER)
    seen = Seen()
    expected = merged(RECIPES[name], "local")
    assert merged(RECIPES[name], "out", executor="ray", progress=seen) == expected
    assert seen.done == seen.total > 0
    assert seen.finished == seen.tensors > 0


class Seen:
    """Progress as numbers, and something that happens after so many tensors."""

    def __init__(self, events: Sequence[tuple[int, Callable[[], None]]] = ()):
        self.events = dict(events)
        self.total = self.done = self.tensors = self.finished = 0

    def start(self, total: int, tensors: int) -> None:
        self.total, self.tensors = total, tensors

    def advance(self, size: int) -> None:
        self.done += size

    def finish_tensor(self, name: str) -> None:
        self.finished += 1
        self.events.get(self.finished, lambda: None)()


def children(pid: int) -> Iterator[int]:
    """The processes under one, however deep."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from children(int(child))


def kill_workers() -> None:
    """SIGKILL for the processes of this cluster that are at work on a task."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(os.getpid())}
    busy = [pid for pid, name in names.items() if name == "ray::work"]
    assert busy
    for pid in busy:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("slow")
def test_a_merge_outlives_its_workers_and_a_machine(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = merged(SLOW, "local")
    machine = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    lost: list[int] = []
    left = on_ray._Driver._left

    def counted(driver: Any, one: Any, error: Exception) -> Any:
        task = left(driver, one, error)
        lost.append(len(task.jobs) if task else 0)
        return task

    monkeypatch.setattr(on_ray._Driver, "_left", counted)
    events = [(3, kill_workers), (12, lambda: cluster.remove_node(machine, allow_graceful=False))]
    seen = Seen(events)
    assert merged(SLOW, "out", executor="ray", progress=seen) == expected
    assert len(lost) >= 2  # tasks, with the workers that had them
    assert sum(lost) >= 2  # jobs that were done elsewhere
    assert (seen.done, seen.finished) == (seen.total, seen.tensors)


def test_a_task_that_kills_every_worker_ends_the_merge(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*arguments: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    monkeypatch.setattr(on_ray, "work", dying)
    monkeypatch.setattr(on_ray, "ATTEMPTS", 1)
    with pytest.raises(WorkerError, match=r"workers died 1 times where .* was next"):
        mergekit_embed.merge(RECIPES["linear"], OUT, executor="ray")
    assert not OUT.exists()
    assert siblings(OUT.absolute()) == []


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_merge_whose_driver_ends_is_continued_on_the_cluster(
    cluster: Any, end: signal.Signals
) -> None:
    expected = merged(SLOW, "local")
    recipe("m1", "m2", "m3", merge_method="slow")
    program = [sys.executable, slow_merge.__file__, "recipe.yaml", "-o", "out", "--quiet"]
    program += ["--executor", "ray", "--ray-address", cluster.address]
    journal = Path(".out.partial") / JOURNAL
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        while driver.poll() is None and not (journal.exists() and read_journal(journal).entries):
            time.sleep(0.02)
        if end is signal.SIGKILL:  # Ray has much to say of a dead worker, and says it elsewhere
            kill_workers()
            time.sleep(1)
        driver.send_signal(end)
        out, err = driver.communicate(timeout=60)
    assert out == b""
    if end is signal.SIGKILL:
        assert (driver.returncode, err) == (-signal.SIGKILL, b"")
    else:
        assert driver.returncode == 1
        told = r"\s*interrupted: \d+ of \d+ tensors are done; the same command continues\s*"
        assert re.fullmatch(told, err.decode())
    again = mergekit_embed.merge("recipe.yaml", OUT, executor="ray")
    assert 0 < again.resumed < len(mergekit_embed.plan("recipe.yaml", "plan").jobs)
    assert again.bytes_read < again.bytes_in * 2
    assert files(OUT) == expected


def test_a_member_that_is_not_finite_ends_the_merge(cluster: Any) -> None:
    with changed_tensors(Path("m2")) as tensors:
        tensors["embeddings.LayerNorm.weight"][3] = np.nan
    with pytest.raises(NonFiniteError, match=r"m2: tensor .*embeddings\.LayerNorm.weight holds"):
        mergekit_embed.merge(RECIPES["linear"], OUT, executor="ray")
    recipe()
    ran = boom_merge("recipe.yaml", "-o", OUT, "--executor", "ray")
    assert ran.code == 1
    assert ran.err.startswith("error: m2: tensor ")
    assert not OUT.exists()
    assert siblings(OUT.absolute()) == []


def test_a_method_that_workers_cannot_load_is_an_error_that_says_so(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    slow_merge.register()
    with pytest.raises(UsageError, match=r"No module named 'slow_merge'.* install"):
        mergekit_embed.merge(SLOW, OUT, executor="ray")
    assert not OUT.exists()


def test_a_member_that_no_worker_sees_is_named(cluster: Any) -> None:
    (planned,) = mergekit_embed.plan_many(RECIPES["linear"], OUT)
    shutil.move(f"m3/{WEIGHTS}", "hidden")
    with pytest.raises(CheckpointError, match=f"m3/{WEIGHTS}: is not there on"):
        mergekit_embed.engine.execute([planned], executor="ray")
    assert not OUT.exists()


def test_a_folder_that_the_machines_do_not_see_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MARK", "where_no_worker_looks.txt")
    with pytest.raises(OutputError, match=r"is not seen on .*; .* storage that all"):
        mergekit_embed.merge(RECIPES["linear"], OUT, executor="ray")
    assert not OUT.exists()
    assert siblings(OUT.absolute()) == []


def test_a_cluster_that_is_not_there_is_said_not_to_be() -> None:
    script = (
        "import mergekit_embed, sys\n"
        "try:\n"
        "    mergekit_embed.merge('recipe.yaml', 'out', executor='ray', "
        "ray_address='127.0.0.1:9')\n"
        "except mergekit_embed.UsageError as error:\n"
        "    print(error)\n"
    )
    recipe()
    program = [sys.executable, "-c", script]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("no Ray cluster at 127.0.0.1:9: "), ran.stderr
    assert not OUT.exists()
