"""Members trained by several processes, and on the machines of a Ray cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mergekit_embed.errors import UsageError
from mergekit_embed.train.run import train

from .plans import rows_of, write_rows
from .runs import base_model, difference, lasting, plan, record, weight_bytes, weights, write_data

pytestmark = pytest.mark.slow

COMMAND = "from mergekit_embed.cli.train import main; main()"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    base_model(tmp_path / "base", dropout=0.0)
    write_data(tmp_path)
    return tmp_path


def below(pid: int) -> Iterator[tuple[int, str]]:
    """The processes under one, however deep, and what they are called."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child), Path(f"/proc/{child}/comm").read_text().strip()
            yield from below(int(child))


# --- several processes --------------------------------------------------------------------------


def launched(*arguments: str | Path) -> list[str]:
    """The command that trains in two processes."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    return [sys.executable, "-m", *launcher, *command]


def test_two_processes_train_what_one_trains(place: Path) -> None:
    wanted = plan(place, schedule="row_shuffled", members=[50, 100])
    train(wanted, place / "one")
    command = launched(wanted, "-o", place / "two", "--merge", "--json")
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["merged"] == [str(place / "two" / "merged")]
    one, two = record(place / "one")["members"], record(place / "two")["members"]
    for name in ("bag-50", "bag-100"):
        alone, together = (weights(place / out / "members" / name) for out in ("one", "two"))
        assert difference(alone, together) < 2e-5
        assert difference(alone, weights(place / "base")) > 1e-3
        for key in ("tokens", "examples", "steps", "rows", "fingerprint"):
            assert one[name][key] == two[name][key]
        assert two[name]["devices"] == 2
        losses = [[entry["loss"] for entry in told["curve"]] for told in (one[name], two[name])]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_two_processes_that_are_killed_go_on(place: Path) -> None:
    base_model(place / "lively", dropout=0.1)
    wanted = plan(place, model="./lively", training={"epochs": 8, "save_every": 8})
    subprocess.run(launched(wanted, "-o", place / "whole"), env=ENVIRONMENT, check=True)
    killed = subprocess.Popen(launched(wanted, "-o", place / "out"), env=ENVIRONMENT)
    work = place / "out" / ".work" / "bag-100"
    while not list(work.glob("checkpoint-*/complete.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    for pid in [killed.pid, *(pid for pid, _ in below(killed.pid))]:
        os.kill(pid, signal.SIGKILL)
    killed.wait()
    assert work.exists()
    subprocess.run(launched(wanted, "-o", place / "out"), env=ENVIRONMENT, check=True)
    assert weight_bytes(place / "out") == weight_bytes(place / "whole")


def test_batches_that_cannot_be_shared_out_are_told_once(place: Path) -> None:
    wanted = plan(place, training={"batch_size": 3})
    command = launched(wanted, "-o", place / "out")
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert ran.stderr.count("cannot be shared out among 2 processes") == 1
    assert not (place / "out").exists()


# --- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with a CPU each, this process connected."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    room = 80 * 2**20
    head = {"num_cpus": 1, "object_store_memory": room, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=room)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


class Told:
    """Remembers what progress is told; calls `heard` at every step."""

    def __init__(self, heard: Any = lambda member, step: None):
        self.starts: list[tuple[str, int]] = []
        self._heard = heard

    def started(self, member: str, number: int, count: int, step: int, steps: int) -> None:
        self.starts.append((member, step))

    def stepped(self, member: str, step: int, loss: float | None) -> None:
        self._heard(member, step)

    def finished(self, member: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def test_a_cluster_trains_what_one_machine_trains(
    cluster: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    wanted = plan(place, members=[20, 50, 100])
    told = Told()
    result = train(wanted.name, "ray", executor="ray", merge=True, progress=told)
    assert sorted(told.starts) == [("bag-100", 0), ("bag-20", 0), ("bag-50", 0)]
    assert set(result.trained) == {"bag-20", "bag-50", "bag-100"}
    train(wanted, place / "here")
    found, here = record(place / "ray")["members"], record(place / "here")["members"]
    assert list(found) == list(here)
    for name in here:
        models = (weights(place / out / "members" / name) for out in ("ray", "here"))
        assert difference(*models) < 1e-5
        assert found[name]["rows"] == here[name]["rows"]
    assert train(wanted, place / "ray", executor="ray").trained == ()
    assert not (place / "ray" / ".work").exists()


def test_a_member_outlives_its_worker(cluster: Any, place: Path) -> None:
    write_rows(place / "q.jsonl", rows_of("retrieval", 240, 3))
    wanted = plan(place, training={"epochs": 4, "save_every": 5})
    killed: list[int] = []

    def kill(member: str, step: int) -> None:
        if step > 5 and not killed:
            killed.extend(pid for pid, name in below(os.getpid()) if name == "ray::work")
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    told = Told(kill)
    train(wanted, place / "ray", executor="ray", progress=told)
    assert killed
    assert [step > 0 for _, step in told.starts] == [False, True]
    shutil.copytree(place / "ray", place / "before")
    train(wanted, place / "ray", executor="ray", restart=True)
    assert weight_bytes(place / "ray") == weight_bytes(place / "before")
    again, before = (record(place / out)["members"]["bag-100"] for out in ("ray", "before"))
    assert lasting(again) == lasting(before)


def test_what_a_worker_cannot_do_is_told(cluster: Any, place: Path) -> None:
    wanted = plan(place, lora={"targets": ["nothing"]})
    with pytest.raises(UsageError, match="cannot be put into nothing"):
        train(wanted, place / "ray", executor="ray")
