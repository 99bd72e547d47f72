"""What a merge leaves where it writes, however it ends: the whole new model, or what was there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    WEIGHTS,
    boom_merge,
    changed_json,
    files,
    hollow_model,
    listed,
    recipe,
    siblings,
    write_recipe,
)
from safetensors import safe_open
from tiny_models import read_tensors, to_pickle

import mergekit_embed
from mergekit_embed.engine import destination, execute, locking, staging
from mergekit_embed.engine.journal import read_journal
from mergekit_embed.engine.staging import JOURNAL

OUT = Path("out")
PARTIAL = Path(".out.partial")


pytestmark = pytest.mark.usefixtures("among_models")


def merged(*arguments: str) -> dict[str, bytes]:
    """The files of a merge that succeeded."""
    ran = boom_merge("recipe.yaml", "-o", OUT, *arguments)
    assert ran.code == 0, ran.err
    assert siblings(OUT.absolute()) == []
    return files(OUT)


class Intercepted:
    """A module in which some functions are replaced, for those who see it as this object."""

    def __init__(self, module: Any, **functions: Callable[..., Any]):
        self._module, self._functions = module, functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(self._module, name)


# --- a merge that fails -------------------------------------------------------------------


class Failing:
    """Whatever the destination asks of the system, failing at the given call and only there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException):
        self.calls, self.at, self._error = 0, 0, error
        calls = {name: self._counted(getattr(os, name)) for name in ("open", "fsync", "pwrite")}
        calls["posix_fallocate"] = self._counted(os.posix_fallocate)
        monkeypatch.setattr(staging, "os", Intercepted(os, **calls))
        copyfile = self._counted(shutil.copyfile)
        monkeypatch.setattr(destination, "shutil", Intercepted(shutil, copyfile=copyfile))
        for name in ("mkdir", "rename"):
            monkeypatch.setattr(Path, name, self._counted(getattr(Path, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise self._error
            return function(*arguments, **options)

        return called


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", ["nothing", "a model"])
def test_whatever_fails_there_is_the_old_model_or_the_new_and_what_the_next_run_continues(
    before: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe("m1")
    new = merged()
    around = {path.name for path in Path().iterdir()} - {"out"}
    failing = Failing(monkeypatch, error)
    stopped = continued = 0
    for at in range(1, 1000):
        failing.calls, failing.at = 0, 0
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.rmtree(PARTIAL, ignore_errors=True)
        if before == "a model":
            shutil.copytree("m2", OUT)
        old = files(OUT)
        failing.calls, failing.at = 0, at
        ran = boom_merge("recipe.yaml", "-o", OUT, "--overwrite")
        if failing.calls < at:
            break  # beyond the last call
        there = files(OUT)
        assert there == (old if ran.code else new) or (there == new and at == failing.calls)
        assert OUT.exists() == bool(there)
        assert {path.name for path in Path().iterdir()} - {"out", PARTIAL.name} == around
        stopped += there == old
        if PARTIAL.exists() and at % 4 == 0:
            failing.at = 0
            ran = boom_merge("recipe.yaml", "-o", OUT, "--overwrite", "--json")
            assert json.loads(ran.last)["resumed"] > 0
            assert files(OUT) == new
            continued += 1
    assert stopped > 80  # every place where it can fail has been visited
    assert continued > 10


def test_folders_made_for_the_result_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models").mkdir()
    recipe()

    def fail(*arguments: Any) -> int:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(staging, "os", Intercepted(os, pwrite=fail))
    with pytest.raises(RuntimeError, match="in the middle"):
        boom_merge("recipe.yaml", "-o", "models/new/folder/out")
    assert files(Path("models")) == {}
    assert not Path("models/new").exists()
    assert Path("models").is_dir()


@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full(
    function: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    recipe()
    monkeypatch.setattr(staging, "os", Intercepted(os, **{function: full}))
    ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 1
    assert ran.err == "error: out: the disk is full; free some space, or write elsewhere\n"
    assert not OUT.exists()
    assert siblings(OUT.absolute()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_can_do_little_will_do(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    expected = merged()
    shutil.rmtree(OUT)

    def unsupported(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(staging, "os", Intercepted(os, posix_fallocate=unsupported))
    monkeypatch.setattr(locking, "fcntl", Intercepted(fcntl, flock=unsupported))
    assert merged() == expected


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(
    option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Any:
        return type("Usage", (), {"free": 100_000})

    recipe()
    monkeypatch.setattr(shutil, "disk_usage", usage)
    before = files(Path())
    ran = boom_merge("recipe.yaml", "-o", "new/out", *option)
    assert ran.code == 1
    assert ran.err == (
        "error: new/out: needs 0.14 MB on a disk with 0.10 MB free; free some, or write "
        "elsewhere with -o\n"
    )
    assert files(Path()) == before
    assert not Path("new").exists()


# --- a merge that is not alone ------------------------------------------------------------


def test_what_appears_during_a_merge_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, *arguments: Any) -> int:
        OUT.mkdir(exist_ok=True)
        Path("out/thesis.tex").write_text("Once")
        return os.pwrite(descriptor, *arguments)

    recipe()
    monkeypatch.setattr(staging, "os", Intercepted(os, pwrite=write))
    ran = boom_merge("recipe.yaml", "-o", OUT, "--overwrite")
    assert ran.code == 2
    assert ran.err.startswith("error: out: holds files that are not a model")
    assert files(OUT) == {"thesis.tex": b"Once"}
    assert ran.err.endswith("42 of 42 tensors are done; the same command continues\n")
    assert siblings(OUT.absolute()) == [".out.partial"]


def test_a_model_that_appears_during_a_merge_is_not_replaced_unasked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(descriptor: int, *arguments: Any) -> int:
        shutil.copytree("m3", OUT, dirs_exist_ok=True)
        return os.pwrite(descriptor, *arguments)

    recipe()
    monkeypatch.setattr(staging, "os", Intercepted(os, pwrite=write))
    ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 2
    assert ran.err.startswith("error: out: holds a model already; pass --overwrite")
    assert files(OUT) == files(Path("m3"))


def test_of_many_merges_to_one_place_each_is_whole_or_refused() -> None:
    plans = {
        name: mergekit_embed.plan(
            {"merge_method": "linear", "models": listed(name)}, OUT, overwrite=True
        )
        for name in ("m1", "m2", "m3")
    }
    for name in plans:
        Path(name, "who.txt").write_text(name)

    def commit(name: str) -> str:
        try:
            execute([plans[name]], device="cpu")
        except mergekit_embed.OutputError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(6) as pool:
        said = set(pool.map(commit, [*plans] * 40))
    assert "done" in said
    assert said <= {
        "done",
        "out: another run is writing to it; wait for its end, or choose another folder with -o",
    }
    assert Path("out/who.txt").read_text() in plans
    made = {"who.txt", *files(Path("m1")).keys() - {"README.md"}}
    assert files(OUT).keys() == made
    assert siblings(OUT.absolute()) == []


def test_what_a_live_run_removes_while_it_is_counted_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (PARTIAL / "folder").mkdir(parents=True)
    for name in ("one", "two", "folder/three"):
        (PARTIAL / name).write_bytes(os.urandom(4096))
        with (PARTIAL / name).open("rb") as file:
            os.fsync(file.fileno())  # or it may have no blocks yet
    one = 512 * (PARTIAL / "one").stat().st_blocks
    assert staging.left_behind(OUT) == 3 * one > 0

    def walk(top: Path) -> Iterator[Any]:
        for folder, folders, names in os.walk(top):
            (PARTIAL / "two").unlink()
            shutil.rmtree(PARTIAL / "folder")
            yield folder, folders, names

    monkeypatch.setattr(staging, "os", Intercepted(os, walk=walk))
    assert staging.left_behind(OUT) == one


# --- a merge that is killed ---------------------------------------------------------------

COMMAND = Path(sysconfig.get_path("scripts"), "boom-merge")


@contextmanager
def large_merge_under_way() -> Iterator[subprocess.Popen[str]]:
    """`boom-merge` of 3 x 256 MB into `out`, as soon as it has begun to write."""
    for name in ("large0", "large1", "large2"):
        hollow_model(Path(name), tensors=4, elements=2**24)
    large = {"merge_method": "ties", "models": listed("large1", "large2"), "base_model": "large0"}
    write_recipe(Path("large.yaml"), large)
    command = [COMMAND, "large.yaml", "-o", "out", "--overwrite", "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not Path(".out.partial", WEIGHTS).exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.002)
            time.sleep(0.05)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_merge_leaves_the_old_model(number: int) -> None:
    shutil.copytree("m1", OUT)
    old = files(OUT)
    with large_merge_under_way() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert files(OUT) == old
    if PARTIAL.exists():
        found = read_journal(PARTIAL / JOURNAL)
        assert found and found.entries
        count = len(found.entries)
        said = f"interrupted: {count} of 4 tensors are done; the same command continues"
        assert err.strip() == said
        assert siblings(OUT.absolute()) == [PARTIAL.name]
    else:
        assert err.strip() == "interrupted: nothing half-written was left"
        assert siblings(OUT.absolute()) == []


def test_what_a_killed_merge_leaves_is_cleared_by_the_next() -> None:
    with large_merge_under_way() as process:
        process.kill()
    assert siblings(OUT.absolute()) == [".out.lock", ".out.partial"]
    assert not OUT.exists()
    recipe()
    assert merged().keys() == files(Path("m1")).keys() - {"README.md"}


def test_a_second_merge_to_the_same_place_is_refused_while_the_first_runs() -> None:
    recipe()
    with large_merge_under_way() as process:
        ran = boom_merge("recipe.yaml", "-o", OUT)
        _, err = process.communicate(timeout=60)
    assert ran.code == 1
    assert ran.err == (
        "error: out: another run is writing to it; wait for its end, or choose another folder "
        "with -o\n"
    )
    assert process.returncode == 0
    # Nothing but progress, of which a busy machine sees a line after ten seconds.
    assert all(" of 4 tensors, " in line for line in err.splitlines()), err
    assert (OUT / WEIGHTS).stat().st_size > 4 * 2**26
    assert siblings(OUT.absolute()) == []


@pytest.mark.parametrize("next_one", ["fails", "succeeds"])
def test_a_model_set_aside_by_a_killed_merge_comes_back(next_one: str) -> None:
    shutil.copytree("m1", ".out.replaced")
    old = files(Path(".out.replaced"))
    shutil.copytree("m2", ".out.partial")
    recipe()
    ran = boom_merge("recipe.yaml", "-o", OUT, *(["--overwrite"] * (next_one == "succeeds")))
    assert ran.code == (0 if next_one == "succeeds" else 2)
    assert (files(OUT) == old) == (next_one == "fails")
    assert siblings(OUT.absolute()) == []


# --- what the result is -------------------------------------------------------------------


def test_every_file_is_on_the_disk_before_it_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: set[int] = set()
    unsynced: list[str] = []

    def sync(descriptor: int) -> None:
        os.fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def rename(self: Path, target: Path) -> Path:
        unsynced.extend(str(p) for p in [self, *self.rglob("*")] if p.stat().st_ino not in synced)
        return original(self, target)

    original = Path.rename
    monkeypatch.setattr(staging, "os", Intercepted(os, fsync=sync))
    monkeypatch.setattr(Path, "rename", rename)
    recipe(max_shard_size="40kB", out_dtype="float16")
    result = merged()
    assert unsynced == []
    assert {(OUT / name).stat().st_ino for name in result} <= synced


def test_the_result_is_what_the_official_library_expects() -> None:
    recipe(max_shard_size="40kB")
    merged()
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    total = 0
    for file in OUT.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = opened.keys()  # no mapping, only this list
            for name in names:
                assert index["weight_map"][name] == file.name
                total += opened.get_tensor(name).nbytes
    assert index["metadata"]["total_size"] == total
    assert len(index["weight_map"]) == len(read_tensors(Path("m1"))) - 2
    assert not list(Path("out/2_Dense").glob("*.index.json"))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("option", ["dtype", "out_dtype"])
def test_the_configuration_tells_the_stored_type(key: str, option: str) -> None:
    with changed_json(Path("m1/config.json")) as config:
        config.pop("dtype")
        config[key] = "float32"
    recipe(**{option: "bfloat16"})
    merged()
    expected = json.loads(Path("m1/config.json").read_text()) | {key: "bfloat16"}
    assert json.loads(Path("out/config.json").read_text()) == expected
    assert {dtype for dtype, _ in read_tensors(OUT).values()} == {"BF16", "I64"}


def test_files_of_a_member_s_own_making_stay_behind() -> None:
    left = [
        "README.md",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/openvino_model.xml",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "training_args.bin",
        "trainer_state.json",
        "checkpoint-500/config.json",
        "checkpoint-500/model.safetensors",
        "eval/similarity.csv",
        "runs/events.out",
        "tf_model.h5",
        "model.q8.gguf",
        "pytorch_model.bin.index.json",
        ".git/config",
        ".gitattributes",
    ]
    taken = ["LICENSE", "modeling_custom.py", "additional/chat_template.jinja", "vocab.txt"]
    for name in left + taken:
        Path("m1", name).parent.mkdir(exist_ok=True)
        Path("m1", name).write_text(name)
    recipe()
    result = merged()
    assert not result.keys() & set(left)
    assert {name: result[name].decode() for name in taken} == {name: name for name in taken}
    assert {path.name for path in OUT.iterdir() if path.is_dir()} == {
        "1_Pooling",
        "2_Dense",
        "3_Normalize",
        "additional",
    }


def test_a_folder_that_a_module_needs_is_there_even_when_it_is_empty() -> None:
    for member in ("m1", "m2"):
        Path(member, "3_Normalize/config.json").unlink()
    recipe("m1", "m2")
    merged()
    assert Path("out/3_Normalize").is_dir()


def test_pickled_members_give_a_safetensors_model() -> None:
    recipe()
    expected = merged()
    for member in ("m1", "m3"):
        to_pickle(Path(member))
    result = merged("--overwrite")
    assert result == expected


@pytest.mark.parametrize("order", [("m1", "m2"), ("m2", "m1")])
def test_other_files_come_from_the_first_listed_member_always(order: tuple[str, str]) -> None:
    for member in order:
        Path(member, "LICENSE").write_text(member)
    recipe(*order)
    first = merged()
    assert first["LICENSE"] == order[0].encode()
    assert merged("--overwrite") == first


def test_other_files_come_from_the_base_where_there_is_one() -> None:
    for name in ("base", "m1", "m2"):
        Path(name, "LICENSE").write_text(name)
    for method in ("linear", "ties", "multislerp"):
        recipe("m1", "m2", merge_method=method, base_model="base")
        assert merged("--overwrite")["LICENSE"] == b"base"


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_base_without_modules_leaves_the_files_to_the_first_member(method: str) -> None:
    for name in ("modules.json", "config_sentence_transformers.json"):
        Path("base", name).unlink()
    for name in ("1_Pooling", "2_Dense", "3_Normalize"):
        shutil.rmtree(Path("base", name))
    recipe("m1", "m2", merge_method=method, base_model="base", missing_tensors="copy")
    ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 0
    assert ran.err == ("note: base has no modules.json; all files but the weights come from m1\n")
    result = files(OUT)
    for name, content in files(Path("m1")).items():
        if not name.endswith((".safetensors", "README.md")):
            assert result[name] == content
    dense = {name: read_tensors(Path(name))["2_Dense/linear.weight"][1] for name in ("m1", "m2")}
    merged_dense = read_tensors(OUT)["2_Dense/linear.weight"][1]
    expected = (dense["m1"] + dense["m2"]) / 2 if method == "linear" else dense["m1"]
    np.testing.assert_allclose(merged_dense, expected, rtol=1e-6, atol=1e-9)
