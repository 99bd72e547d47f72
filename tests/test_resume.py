"""Merges that are interrupted, killed or out of space go on where they were, to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    Ran,
    boom_merge,
    changed_json,
    changed_tensors,
    files,
    listed,
    recipe,
    siblings,
    write_recipe,
)

import mergekit_embed
from mergekit_embed.engine import fingerprint, journal, keeping, staging
from mergekit_embed.engine.destination import Destination
from mergekit_embed.engine.journal import Entry, Journal, read_journal
from mergekit_embed.engine.plan import Job
from mergekit_embed.engine.staging import JOURNAL

pytestmark = pytest.mark.usefixtures("among_models")

OUT = Path("out")
PARTIAL = Path(".out.partial")


@contextmanager
def interrupted_after(count: int, error: BaseException | None = None) -> Iterator[list[str]]:
    """Merges are interrupted once so many tensors are finished; gives the names of all written."""
    written: list[str] = []
    finished, write = Destination.finished, Destination.write
    left = [count]

    def counting(self: Destination, job: Job, learned: Any) -> None:
        if left[0] == 0:
            raise error or KeyboardInterrupt
        left[0] -= 1
        finished(self, job, learned)

    def writing(self: Destination, job: Job, start: int, raw: Any) -> None:
        written.append(job.name)
        write(self, job, start, raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "finished", counting)
        patch.setattr(Destination, "write", writing)
        yield written


def interrupt(count: int = 10, *arguments: str) -> None:
    """Merge recipe.yaml into `out`, up to an interrupt."""
    with interrupted_after(count):
        assert boom_merge("recipe.yaml", "-o", OUT, *arguments).code == 1
    assert len(entries()) >= count
    assert siblings(OUT.absolute()) == [PARTIAL.name]


def entries() -> list[str]:
    found = read_journal(PARTIAL / JOURNAL)
    return [entry.tensor for entry in found.entries] if found else []


def merged(*arguments: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a merge that succeeded, and what it said of itself."""
    ran = boom_merge("recipe.yaml", "-o", OUT, "--json", *arguments)
    assert ran.code == 0, ran.out
    assert siblings(OUT.absolute()) == []
    assert not list(OUT.rglob("*journal*"))
    return files(OUT), json.loads(ran.last)


def undisturbed() -> dict[str, bytes]:
    """The files of a merge that is left alone; `out` is free afterwards."""
    found, said = merged()
    assert said["resumed"] == 0
    shutil.rmtree(OUT)
    return found


# --- crashes ------------------------------------------------------------------------------


def crashes(how: str, seed: int, lives: int) -> list[dict[str, Any]]:
    program = Path(__file__).with_name("crashing_merges.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, program, how, str(seed), str(lives)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "layers": {"merge_method": "model_stock", "base_model": "base", "granularity": "layer"},
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "parameters": {"density": 0.5},
        "max_shard_size": "40kB",
        "out_dtype": "bfloat16",
    },
}


@pytest.mark.parametrize(
    ("how", "lives"), [("kill", 100), ("power", 40)], ids=["kill -9", "power loss"]
)
def test_a_merge_that_dies_again_and_again_gives_the_bytes_of_one_left_alone(
    how: str, lives: int
) -> None:
    recipe(**RECIPES["ties"])
    expected = undisturbed()
    told = crashes(how, seed=7, lives=lives)
    finished = [one for one in told if "done" in one]
    killed = [one for one in told if "killed" in one]
    assert len(killed) == lives
    assert len(finished) > 5
    assert sum(bool(one["before"]) for one in told) > lives / 2
    for one in told:
        assert not set(one["before"]) & set(one["written"]), "what was done is not done again"
        assert set(one["before"]) <= set(one.get("after", one["before"]))
    for one in finished:
        assert files(Path(one["done"])) == expected


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("count", [1, 12, 41])
def test_an_interrupted_merge_goes_on_with_what_is_missing(name: str, count: int) -> None:
    recipe(**RECIPES[name])
    expected = undisturbed()
    interrupt(count)
    there = entries()
    with interrupted_after(1000) as written:
        found, said = merged()
    assert found == expected
    assert said["resumed"] == len(there)
    assert set(written) == {job.name for job in mergekit_embed.plan("recipe.yaml").jobs} - set(
        there
    )


def test_a_merge_may_be_interrupted_many_times() -> None:
    recipe()
    expected = undisturbed()
    for count in (3, 5, 7):
        before = len(entries())
        interrupt(count)
        assert len(entries()) >= before + count
    assert merged()[0] == expected


def test_the_user_is_told_what_is_kept_and_what_was_continued() -> None:
    recipe()
    with interrupted_after(10, OSError(errno.EIO, "Input/output error")):
        ran = failed_with_output_error()
    kept = len(entries())
    assert ran.err.splitlines()[-1] == f"{kept} of 42 tensors are done; the same command continues"
    ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == f"continued: {kept} of 42 tensors were there"
    assert " of " in ran.out.splitlines()[1].rpartition(", ")[2]  # ... kB of ... kB read


def failed_with_output_error() -> Ran:
    """A merge whose disk fails; `finished` raises what `put` would."""
    with pytest.MonkeyPatch.context() as patch:
        original = Destination.finished

        def explained(self: Destination, job: Job, learned: Any) -> None:
            with self.explained():
                original(self, job, learned)

        patch.setattr(Destination, "finished", explained)
        return boom_merge("recipe.yaml", "-o", OUT)


@pytest.mark.parametrize("where", ["weights", "journal"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_what_is_done(
    where: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    expected = undisturbed()
    calls = [0]

    def full(function: Callable[..., int]) -> Callable[..., int]:
        def called(*arguments: Any) -> int:
            calls[0] += 1
            if calls[0] > 20:
                raise OSError(code, os.strerror(code))
            return function(*arguments)

        return called

    with monkeypatch.context() as patch:
        if where == "weights":
            patch.setattr(staging, "os", Replaced(os, pwrite=full(os.pwrite)))
        else:
            patch.setattr(Destination, "finished", saving)
            patch.setattr(journal, "os", Replaced(os, write=full(os.write)))
        ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 1
    first, second = ran.err.splitlines()
    assert first == "error: out: the disk is full; free some space, or write elsewhere"
    assert second == f"{len(entries())} of 42 tensors are done; the same command continues"
    found, said = merged()
    assert found == expected
    assert said["resumed"] > 0


finished = Destination.finished


def saving(self: Destination, job: Job, learned: Any) -> None:
    """`finished`, with the journal written for every tensor."""
    finished(self, job, learned)
    self.save()


class Replaced:
    """A module in which some functions are replaced."""

    def __init__(self, module: Any, **functions: Callable[..., Any]):
        self._module, self._functions = module, functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(self._module, name)


def slow_down(patch: pytest.MonkeyPatch) -> None:
    """Let the journal be written several times during a merge."""
    import time

    write = Destination.write

    def slow(self: Destination, job: Job, start: int, raw: Any) -> None:
        time.sleep(0.005)
        write(self, job, start, raw)

    patch.setattr(Destination, "write", slow)


def test_what_could_not_be_synced_is_never_taken_for_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux reports a failed write once; the next sync succeeds, though the bytes are lost."""
    recipe()
    expected = undisturbed()
    calls = [0]

    def failing_once(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "SECONDS", 0.0)
        patch.setattr(keeping, "LOOK_SECONDS", 0.001)
        slow_down(patch)
        patch.setattr(staging, "os", Replaced(os, fdatasync=failing_once))
        ran = boom_merge("recipe.yaml", "-o", OUT)
    assert ran.code == 1
    assert calls[0] == 1
    assert entries() == []
    assert siblings(OUT.absolute()) == []
    assert merged()[0] == expected


def test_a_second_interrupt_while_the_first_is_cleaned_up_loses_nothing_that_was_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe()
    expected = undisturbed()
    interrupt(10)
    there = entries()
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "keeps", lambda self, error: interrupt_again())
        with interrupted_after(5):
            assert boom_merge("recipe.yaml", "-o", OUT).code == 1
    assert entries() == there
    found, said = merged()  # the lock was let go
    assert found == expected
    assert said["resumed"] == len(there)


def interrupt_again() -> bool:
    raise KeyboardInterrupt


# --- what is not continued ----------------------------------------------------------------


def touched() -> str:
    os.utime("m1/model.safetensors")
    return f"{Path('m1/model.safetensors').absolute()} has changed"


def other_member() -> str:
    with changed_tensors(Path("m2")) as tensors:
        name = next(iter(tensors))
        tensors[name] = tensors[name] + np.float32(0.5)
    return f"{Path('m2/model.safetensors').absolute()} has changed"


def other_weight() -> str:
    with changed_json(Path("recipe.yaml")) as told:
        told["models"][0]["parameters"] = {"weight": 0.25}
    return "the recipe is another"


def other_dtype() -> str:
    with changed_json(Path("recipe.yaml")) as told:
        told["out_dtype"] = "float16"
    return "the recipe is another"


def other_shards() -> str:
    with changed_json(Path("recipe.yaml")) as told:
        told["max_shard_size"] = "50kB"
    return "the recipe is another"


def other_version() -> str:
    found = read_journal(PARTIAL / JOURNAL)
    assert found is not None
    Journal(PARTIAL / JOURNAL, {**found.fingerprint, "numerics": 0}, found.entries).close()
    return "another version of mergekit_embed began it"


CHANGES = [touched, other_member, other_weight, other_dtype, other_shards, other_version]


@pytest.mark.parametrize("change", CHANGES)
def test_a_merge_that_has_become_another_starts_over(change: Callable[[], str]) -> None:
    recipe()
    interrupt()
    reason = change()
    found, said = merged()
    assert said["resumed"] == 0
    assert said["notes"] == [f"out: started over, not continued: {reason}"]
    assert found == (shutil.rmtree(OUT), merged()[0])[1]


def test_another_base_starts_over() -> None:
    recipe(**RECIPES["ties"])
    interrupt()
    with changed_tensors(Path("base")) as tensors:
        tensors[
            "2_Dense/linear.weight" if "2_Dense/linear.weight" in tensors else next(iter(tensors))
        ] *= 2
    found, said = merged()
    assert said["resumed"] == 0
    assert found == (shutil.rmtree(OUT), merged()[0])[1]


def test_a_comment_in_the_recipe_changes_nothing() -> None:
    recipe()
    interrupt()
    Path("recipe.yaml").write_text("# the same\n" + Path("recipe.yaml").read_text())
    assert merged()[1]["resumed"] >= 10


def test_restart_ignores_what_is_there() -> None:
    recipe()
    expected = undisturbed()
    interrupt()
    found, said = merged("--restart")
    assert (found, said["resumed"], said["notes"]) == (expected, 0, [])


@pytest.mark.parametrize("how", ["torn", "garbled", "glued"])
def test_a_broken_line_of_the_journal_is_one_tensor_less(how: str) -> None:
    recipe()
    expected = undisturbed()
    interrupt()
    count = len(entries())
    path = PARTIAL / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "torn":
        lines[-1] = lines[-1][: len(lines[-1]) // 2]
    elif how == "garbled":
        lines[3] = lines[3].replace(b'"size":', b'"size":1')
    else:
        lines[4] = lines[4][:-1]
    path.write_bytes(b"".join(lines))
    lost = 2 if how == "glued" else 1
    assert len(entries()) == count - lost
    found, said = merged()
    assert found == expected
    assert said["resumed"] == count - lost


@pytest.mark.parametrize("content", [b"", b"\n\n", b"nonsense", b"\xff\xfe\x00" * 100])
def test_what_is_no_journal_is_no_reason_to_continue(content: bytes) -> None:
    recipe()
    expected = undisturbed()
    interrupt()
    (PARTIAL / JOURNAL).write_bytes(content)
    found, said = merged()
    assert (found, said["resumed"]) == (expected, 0)


def test_a_journal_of_another_format_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe()
    expected = undisturbed()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "FORMAT", 99)
        interrupt()
    found, said = merged()
    assert (found, said["resumed"]) == (expected, 0)


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_tensors_of_a_file_that_is_not_whole_are_merged_again(change: str) -> None:
    recipe(max_shard_size="40kB")
    expected = undisturbed()
    interrupt(30)
    shards = sorted(PARTIAL.glob("*.safetensors"))
    assert len(shards) > 3
    if change == "gone":
        shards[0].unlink()
    else:
        os.truncate(shards[0], shards[0].stat().st_size + (8 if change == "longer" else -8))
    before = len(entries())
    found, said = merged()
    assert found == expected
    assert 0 < said["resumed"] < before


def test_files_that_do_not_belong_there_do_not_come_into_the_model() -> None:
    recipe()
    expected = undisturbed()
    interrupt()
    Path(PARTIAL, "2_Dense").mkdir(exist_ok=True)
    for name in ("stale.json", "2_Dense/stale.json", "model-00001-of-00002.safetensors"):
        Path(PARTIAL, name).write_text("{}")
    assert merged()[0] == expected


def unreadable() -> mergekit_embed.CheckpointError:
    error = mergekit_embed.CheckpointError("m1/model.safetensors", "cannot be read: Input/output")
    error.__cause__ = OSError(errno.EIO, os.strerror(errno.EIO))
    return error


ERRORS = {
    "not a number": (mergekit_embed.NonFiniteError("m1: tensor x holds not-a-number"), False),
    "another integer": (mergekit_embed.PlanError([]), False),
    "broken": (mergekit_embed.CheckpointError("m1", "has become shorter"), False),
    "changed": (mergekit_embed.ChangedError("m1", "has changed"), False),
    "unreadable": (unreadable(), True),
    "a bug": (RuntimeError("in the middle"), True),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_what_no_retry_can_mend_leaves_nothing(wrong: str) -> None:
    recipe()
    interrupt(10)
    error, is_kept = ERRORS[wrong]
    with interrupted_after(3, error), pytest.raises(type(error)):
        mergekit_embed.merge("recipe.yaml", OUT)
    assert siblings(OUT.absolute()) == ([PARTIAL.name] if is_kept else [])
    assert not OUT.exists()


def test_a_refused_destination_keeps_what_was_done() -> None:
    recipe()
    interrupt()
    OUT.mkdir()
    Path("out/thesis.tex").write_text("Once")
    assert boom_merge("recipe.yaml", "-o", OUT).code == 2
    shutil.rmtree(OUT)
    assert merged()[1]["resumed"] >= 10


def test_what_is_kept_counts_as_free_space(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe()
    interrupt()
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert merged()[1]["resumed"] >= 10
    assert boom_merge("recipe.yaml", "-o", "elsewhere").code == 1


# --- what is verified ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "result", "member", "both"])
def test_verify_merges_again_what_is_not_what_it_was(what: str) -> None:
    recipe()
    interrupt(41)
    plan = mergekit_embed.plan("recipe.yaml", OUT)
    jobs = [job for job in plan.jobs if job.name in entries() and job.bytes_out > 8]
    if what in {"result", "both"}:
        flip(PARTIAL / plan.files[jobs[0].file].path, jobs[0].offset + 5)
    if what in {"member", "both"}:  # a change that neither size nor time tells of
        source = jobs[1].sources[1]
        status = source.file.stat()
        flip(source.file, source.offset + 1)
        os.utime(source.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    kept = len(entries())
    found, said = merged("--verify")
    wrong = {"nothing": 0, "result": 1, "member": 1, "both": 2}[what]
    assert said["resumed"] == kept - wrong
    assert bool(said["notes"]) == bool(wrong)
    assert found == (shutil.rmtree(OUT), merged()[0])[1]


def flip(path: Path, offset: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_without_verify_a_hidden_change_of_the_result_goes_unnoticed() -> None:
    """What `--verify` is for; reading all of a large model again is not worth it by default."""
    recipe()
    expected = undisturbed()
    interrupt(41)
    plan = mergekit_embed.plan("recipe.yaml", OUT)
    job = next(job for job in plan.jobs if job.name in entries() and job.bytes_out > 8)
    flip(PARTIAL / plan.files[job.file].path, job.offset)
    assert merged()[0] != expected


# --- several at once, and merges within merges --------------------------------------------


def test_models_of_one_run_go_on_each_from_its_own_journal() -> None:
    for name, weight in {"one": 0.5, "two": 2.0}.items():
        models = [*listed("m1", weight=weight), *listed("m2")]
        write_recipe(Path(f"{name}.yaml"), {"merge_method": "linear", "models": models})
    command = ("one.yaml", "two.yaml", "-o", OUT)
    assert boom_merge(*command).code == 0
    expected = files(OUT)
    shutil.rmtree(OUT)
    with interrupted_after(20), pytest.raises(KeyboardInterrupt) as caught:
        mergekit_embed.merge_many(["one.yaml", "two.yaml"], OUT)
    there = {name: read_journal(OUT / f".{name}.partial" / JOURNAL) for name in ("one", "two")}
    counts = {name: len(found.entries) if found else 0 for name, found in there.items()}
    assert sum(counts.values()) >= 20
    kept = f"{sum(counts.values())} of 84 tensors are done; the same command continues"
    assert caught.value.__notes__ == [kept]
    ran = boom_merge(*command, "--json")
    resumed = [json.loads(line)["resumed"] for line in ran.out.splitlines()]
    assert resumed == [counts["one"], counts["two"]]
    assert files(OUT) == expected


def test_a_nested_merge_goes_on_and_starts_over_with_its_inner_recipe() -> None:
    inner = {**RECIPES["layers"], "models": listed("m1", "m2", "m3")}
    write_recipe(Path("inner.yaml"), inner)
    recipe("inner.yaml", "m3")
    expected = undisturbed()
    interrupt()
    found, said = merged("--verify")
    assert found == expected
    assert said["resumed"] >= 10
    shutil.rmtree(OUT)
    interrupt()
    write_recipe(Path("inner.yaml"), inner | {"granularity": "model"})
    assert merged()[1]["resumed"] == 0


def test_notes_of_what_was_done_before_are_told_again() -> None:
    with changed_tensors(Path("m1")) as one:
        opposite = {name: -value for name, value in one.items() if value.dtype == np.float32}
    with changed_tensors(Path("m2")) as two:
        two.update(opposite)
    recipe("m1", "m2", merge_method="multislerp")
    _, before = merged()
    assert any("42" in note or "tensor" in note for note in before["notes"])
    shutil.rmtree(OUT)
    interrupt(30)
    assert merged()[1]["notes"] == before["notes"]


# --- members that change ------------------------------------------------------------------


@pytest.mark.parametrize("change", ["written", "replaced", "touched"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_member_that_changes_on_the_way_is_refused(when: str, change: str) -> None:
    recipe()
    path = Path("m2/model.safetensors")
    plan = mergekit_embed.plan("recipe.yaml", OUT)

    def change_it() -> None:
        if change == "written":
            flip(path, path.stat().st_size - 1)
        elif change == "replaced":
            shutil.copy(path, "fresh")
            Path("fresh").replace(path)
        os.utime(path)

    from mergekit_embed.engine import execute

    write, done, changing = Destination.write, [], threading.Lock()

    def writing(self: Destination, job: Job, start: int, raw: Any) -> None:
        with changing:
            if not done:
                done.append(change_it())
        write(self, job, start, raw)

    with pytest.MonkeyPatch.context() as patch:
        if when == "before":
            change_it()
        else:
            patch.setattr(Destination, "write", writing)
        with pytest.raises(
            mergekit_embed.ChangedError, match=r"m2/model\.safetensors: has changed"
        ):
            execute([plan])
    assert not OUT.exists()
    assert siblings(OUT.absolute()) == []


# --- the journal itself -------------------------------------------------------------------


def test_a_journal_tells_what_was_put_into_it(tmp_path: Path) -> None:
    made = [
        Entry(f"täñsor\n{i}", i, "ab" * 16, ("cd" * 16, None), ("cancels", "naïve"))
        for i in range(9)
    ]
    written = Journal(tmp_path / "journal", {"recipe": "x", "list": [1, 2]}, made[:2])
    written.add(made[2:5])
    written.add(made[5:])
    written.close()
    found = read_journal(tmp_path / "journal")
    assert found is not None
    assert found.fingerprint == {"recipe": "x", "list": [1, 2]}
    assert list(found.entries) == made
    assert [path.name for path in tmp_path.iterdir() if "journal" in path.name] == ["journal"]


def test_the_fingerprint_of_a_merge_is_that_of_the_same_merge_only() -> None:
    plan = mergekit_embed.plan(recipe(), OUT)
    again = mergekit_embed.plan(recipe(), "elsewhere")
    known = json.loads(json.dumps(fingerprint.fingerprint(plan)))
    assert fingerprint.difference(known, fingerprint.fingerprint(again)) is None
    for other in ({"seed": 1}, {"parameters": {"normalize": False}}, {"allow_non_finite": True}):
        changed = mergekit_embed.plan(recipe(**other), OUT)
        told = fingerprint.difference(known, fingerprint.fingerprint(changed))
        assert told == "the recipe is another"
