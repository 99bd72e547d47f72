"""Trainings that are killed or interrupted go on with the same command, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergekit_embed.train import fit
from mergekit_embed.train.checkpoints import COMPLETE, latest, prune, seal
from mergekit_embed.train.keeping import Keeping
from mergekit_embed.train.run import train
from mergekit_embed.train.trainer import MemberTrainer

from .runs import base_model, lasting, plan, record, weight_bytes, write_data

KILLS = 6


@pytest.fixture
def place(tmp_path: Path) -> Path:
    base_model(tmp_path / "base")
    write_data(tmp_path)
    return tmp_path


PLANS: dict[str, dict[str, Any]] = {
    "full": {
        "members": [{"ratio": 50, "ema": 0.9}, {"ratio": 100, "checkpoints": [40, 100]}],
        "schedule": "size_power",
        "training": {"save_every": 3, "epochs": 2},
    },
    "lora": {
        "members": [60],
        "lora": {"r": 2, "dropout": 0.1},
        "training": {"save_every": 2, "epochs": 3, "gradient_checkpointing": True},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_killed_at_random_places(place: Path, name: str) -> None:
    plan(place, name, **PLANS[name])
    ran = subprocess.run(
        [sys.executable, "-m", "train.lives", str(place), name, str(KILLS)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    whole, members = weight_bytes(place / "whole"), record(place / "whole")["members"]
    assert sum(life["died"].count(signal.SIGKILL) for life in told["lives"]) >= KILLS
    for life in told["lives"]:
        out = place / life["out"]
        assert life["status"] == 0, (life, ran.stderr)
        assert weight_bytes(out) == whole, life
        found = record(out)["members"]
        assert {m: lasting(found[m]) for m in found} == {m: lasting(members[m]) for m in members}
        assert sorted(path.name for path in out.iterdir()) == [
            "members",
            "merge.yaml",
            "plan.yaml",
            "training.json",
        ]


class Ended(Exception):
    """A run that ended where a test wanted it to."""


def end_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training fail after this many steps."""
    whole = Keeping.on_step_end

    def ending(self: Keeping, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise Ended
        whole(self, args, state, *more, **kwargs)

    monkeypatch.setattr(Keeping, "on_step_end", ending)


def steps_of_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts steps that are really computed from here on."""
    found: list[int] = []
    step = MemberTrainer.training_step

    def counted(self: MemberTrainer, *args: Any, **kwargs: Any) -> Any:
        found.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(MemberTrainer, "training_step", counted)
    return found


def stopped(place: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A plan whose training ended after step 8, with a checkpoint after step 6."""
    wanted = plan(place, training={"save_every": 3}, **changes)
    with monkeypatch.context() as patched, pytest.raises(Ended):
        end_at(8, patched)
        train(wanted, place / "out")
    return wanted


def test_only_what_is_left_is_computed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = stopped(place, monkeypatch)
    work = place / "out" / ".work" / "bag-100"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-6"]
    steps = steps_of_run(monkeypatch)
    train(wanted, place / "out")
    assert steps == list(range(6, 13))
    assert not (place / "out" / ".work").exists()


def test_a_half_written_checkpoint_is_not_gone_on_from(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stopped(place, monkeypatch)
    work = place / "out" / ".work" / "bag-100"
    shutil.copytree(work / "checkpoint-6", work / "checkpoint-7")
    (work / "checkpoint-7" / COMPLETE).unlink()
    (work / "checkpoint-7" / "optimizer.pt").write_bytes(b"half")
    steps = steps_of_run(monkeypatch)
    train(wanted, place / "out")
    assert steps[0] == 6


@pytest.mark.parametrize("change", ["plan", "data", "libraries", "restart"])
def test_what_changes_the_training_begins_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    wanted = stopped(place, monkeypatch)
    if change == "plan":
        wanted = plan(place, training={"save_every": 3, "weight_decay": 0.1})
    elif change == "data":
        text = (place / "q.jsonl").read_text()
        (place / "q.jsonl").write_text(text.replace("answer 3", "another answer"))
    elif change == "libraries":
        from mergekit_embed.train import record as records

        monkeypatch.setattr(records, "versions", lambda: {"torch": "another"})
    steps = steps_of_run(monkeypatch)
    train(wanted, place / "out", restart=change == "restart")
    assert steps == list(range(13))


def test_more_checkpoints_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(place, monkeypatch)
    steps = steps_of_run(monkeypatch)
    train(plan(place, training={"save_every": 1}), place / "out")
    assert steps[0] == 6


def test_checkpoints_by_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_embed.train import keeping

    monkeypatch.setattr(keeping, "SAVE_SECONDS", 0.0)
    with pytest.raises(Ended):
        end_at(5, monkeypatch)
        train(plan(place), place / "out")
    work = place / "out" / ".work" / "bag-100"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-4"]


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MemberTrainer.training_step

    def interrupted(self: MemberTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MemberTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            train(plan(place), place / "out")
    assert caught.value.__notes__ == [fit.INTERRUPTED]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    steps = steps_of_run(monkeypatch)
    train(plan(place), place / "out")
    assert steps == list(range(4, 13))
    train(plan(place), place / "whole")
    assert weight_bytes(place / "out") == weight_bytes(place / "whole")


def test_a_second_ctrl_c_ends_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: MemberTrainer, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(MemberTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(plan(place), place / "out")
    assert caught.value.__notes__ == [fit.INTERRUPTED]


def test_checkpoints(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text("x")
    assert latest(tmp_path) is None
    seal(tmp_path / "checkpoint-5")
    seal(tmp_path / "checkpoint-20")
    assert latest(tmp_path) == tmp_path / "checkpoint-20"
    prune(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]
