"""`boom-train` as a command: what it says, where, and with which exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import Ran
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mergekit_embed.cli import training
from mergekit_embed.cli.training import Bars, Lines

from .runs import base_model, plan, write_data
from .test_plan import boom_train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    base_model(folder / "base")
    write_data(folder)
    return folder


def test_a_training_and_its_merge(place: Path) -> None:
    wanted = plan(place, members=[50, 100], training={"steps": 2})
    ran = boom_train(wanted, "-o", place / "out", "--merge")
    assert (ran.code, ran.err.splitlines()[0]) == (0, "bag-50 (1 of 2): 2 steps")
    assert ran.err.splitlines()[-1].startswith("bag-100 (2 of 2): done, step 2 of 2, loss ")
    assert ran.out.splitlines()[0].startswith(f"trained 2 members into {place / 'out' / 'members'}")
    assert ran.out.splitlines()[1] == f"merged them into {place / 'out' / 'merged'}"
    assert "trained on" in (place / "out" / "merged" / "README.md").read_text()
    again = boom_train(wanted, "-o", place / "out")
    assert again.err == ""
    assert "members, 2 of them before   4 steps" in again.out
    assert f"boom-merge {place / 'out' / 'merge.yaml'}" in again.out


def test_json(place: Path) -> None:
    wanted = plan(place, members=[50], training={"steps": 2})
    ran = boom_train(wanted, "-o", place / "json", "--json")
    told = json.loads(ran.out)
    assert (ran.code, ran.err, told["status"]) == (0, "", "done")
    member = told["members"]["bag-50"]
    assert member["models"] == [str(place / "json" / "members" / "bag-50")]
    assert (member["trained"], member["steps"], member["examples"]) == (True, 2, 8)


def test_what_is_wrong_ends_with_2(place: Path) -> None:
    wanted = plan(place, pooling="mean")
    ran = boom_train(wanted, "-o", place / "wrong")
    assert (ran.code, ran.out) == (2, "")
    assert "has a pooling of its own" in ran.err
    told = json.loads(boom_train(wanted, "-o", place / "wrong", "--json").out)
    assert (told["status"], told["kind"]) == ("failed", "UsageError")
    assert not (place / "wrong").exists()


def test_help_and_dry_run_import_no_torch(place: Path) -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mergekit_embed.cli.train import train\n"
        f"for arguments in (['--help'], [{str(plan(place))!r}, '--dry-run']):\n"
        "    assert CliRunner().invoke(train, arguments).exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# --- progress -----------------------------------------------------------------------------------


def test_lines_tell_where_it_goes_on_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    lines = Lines(said.append)
    lines.started("bag-20", 1, 3, 40, 100)
    for step in range(41, 61):
        now += 1
        lines.stepped("bag-20", step, 0.5 if step % 10 == 0 else None)
    lines.finished("bag-20")
    lines.note("something")
    assert said == [
        "bag-20 (1 of 3): continued after step 40 of 100",
        "bag-20 (1 of 3): step 50 of 100, loss 0.5, 50.0 s left",
        "bag-20 (1 of 3): step 60 of 100, loss 0.5, 40.0 s left",
        "bag-20 (1 of 3): done, step 60 of 100, loss 0.5, 40.0 s left",
        "note: something",
    ]


def test_bars_of_members_side_by_side() -> None:
    file = io.StringIO()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(file=file, width=100)) as shown:
        bars = Bars(shown)
        bars.started("a", 1, 2, 0, 10)
        bars.started("b", 2, 2, 0, 10)
        bars.stepped("a", 10, 0.25)
        bars.started("b", 2, 2, 5, 10)  # on another machine
        assert [task.completed for task in shown.tasks] == [10, 5]
        bars.finished("a")
        bars.note("[bold] is no markup")
    assert "a (1 of 2): done, step 10 of 10, loss 0.25" in file.getvalue()
    assert "note: [bold] is no markup" in file.getvalue()


def test_only_the_first_of_several_processes_speaks(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    ran = boom_train(plan(place, pooling="mean"), "-o", place / "wrong")
    assert ran == Ran(2, "", "")
    with training.shown_training(quiet=True) as progress:
        assert progress is None
