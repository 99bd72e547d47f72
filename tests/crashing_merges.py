"""Merges that die: a program that runs one merge again and again, and kills it at random moments.

    python crashing_merges.py kill|power SEED LIVES

Every life is a forked process that merges recipe.yaml into `out`. At a random call to the system it
kills itself, as `kill -9` would; "power" also takes back, before that, whatever was not yet synced:
bytes of files, names in folders. The next life goes on with what is left. When one comes to its
end, the model is moved to `done-N` and the next begins anew. So it goes on until LIVES lives were
killed; one that was quicker than its death does not count. What happened is printed as JSON lines,
for test_resume.py to judge.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mergekit_embed
from mergekit_embed import kernels
from mergekit_embed.engine import journal, keeping, staging
from mergekit_embed.engine.destination import Destination
from mergekit_embed.engine.plan import Job
from mergekit_embed.engine.staging import JOURNAL
from mergekit_embed.kernels.torch_backend import TorchKernels, choose_device

PARTIAL = Path(".out.partial")
LOG = Path("written.log")
MOST = 10  # lives for each that has to be killed: about every second one is


class Disk:
    """Stands in for `os` and lets the process die at a given call.

    All calls take turns, so that what is synced and what is not is never in doubt.
    """

    def __init__(self, dies_at: int, loses_power: bool):
        self._left, self._loses_power = dies_at, loses_power
        self._turn = threading.RLock()
        self._undo: list[tuple[int, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _event(self, tear: Callable[[], None] = lambda: None) -> None:
        self._left -= 1
        if self._left > 0:
            return
        tear()
        self.die()

    def die(self) -> NoReturn:
        with self._turn:
            if self._loses_power:
                for _, undo in reversed(self._undo):
                    undo()
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        with self._turn:
            self._event()
            is_new = flags & os.O_CREAT and not Path(path).exists()
            descriptor = os.open(path, flags, mode)
            if is_new:
                folder = Path(path).parent.stat().st_ino
                self._undo.append((folder, lambda: Path(path).unlink(missing_ok=True)))
            return descriptor

    def pwrite(self, descriptor: int, data: Any, position: int) -> int:
        with self._turn:
            self._event(lambda: os.pwrite(descriptor, data[: len(data) // 2], position) and None)
            old = os.pread(descriptor, len(data), position)
            self._undo.append(
                (self._file(descriptor), lambda: os.pwrite(descriptor, old, position))
            )
            return os.pwrite(descriptor, data, position)

    def write(self, descriptor: int, data: Any) -> int:
        with self._turn:
            size = os.fstat(descriptor).st_size
            self._undo.append((self._file(descriptor), lambda: os.ftruncate(descriptor, size)))
            self._event(lambda: os.write(descriptor, data[: len(data) // 2]) and None)
            return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        with self._turn:
            self._event()
            synced = self._file(descriptor)
            self._undo = [one for one in self._undo if one[0] != synced]

    fdatasync = fsync

    def rename(self, path: Path, target: Path) -> Path:
        with self._turn:
            self._event()
            folder = path.parent.stat().st_ino
            content = target.read_bytes() if target.is_file() else None
            found = renamed(path, target)

            def undo() -> None:
                renamed(target, path)
                if content is not None:
                    target.write_bytes(content)

            self._undo.append((folder, undo))
            return found

    @staticmethod
    def _file(descriptor: int) -> int:
        return os.fstat(descriptor).st_ino


renamed = Path.rename


def live(dies_at: int, *, loses_power: bool) -> None:
    """One life: merge, and die at that call."""
    disk, patch = Disk(dies_at, loses_power), pytest.MonkeyPatch()
    for module in (staging, journal):
        patch.setattr(module, "os", disk)
    patch.setattr(Path, "rename", lambda self, target: disk.rename(self, Path(target)))
    patch.setattr(keeping, "SECONDS", 0.002)
    patch.setattr(keeping, "LOOK_SECONDS", 0.001)
    log = LOG.open("a")
    write = Destination.write

    def slow(self: Destination, job: Job, start: int, raw: Any) -> None:
        log.write(job.name + "\n")
        log.flush()
        time.sleep(0.001)
        write(self, job, start, raw)

    patch.setattr(Destination, "write", slow)
    # Already imported, where Numba would load its compiled kernels in every life.
    patch.setattr(kernels, "has_numba", lambda: False)
    mergekit_embed.merge("recipe.yaml", "out", device="cpu")


def journalled() -> list[str]:
    if not PARTIAL.exists():
        return []
    aside = Path(".out.journal")  # where it waits while the folder is renamed
    found = journal.read_journal(aside if aside.exists() else PARTIAL / JOURNAL)
    return [entry.tensor for entry in found.entries] if found else []


def main(how: str, seed: int, lives: int) -> None:
    TorchKernels(choose_device("cpu"))  # imports what is needed, once for all lives
    mergekit_embed.plan("recipe.yaml", "out")
    chance = random.Random(seed)
    killed = done = 0
    for _ in range(MOST * lives):
        told: dict[str, Any] = {"before": journalled()}
        was_killed, told["written"] = one_life(chance.randrange(1, 260), how)
        if was_killed:
            killed += 1
            told["killed"] = True
        if Path("out").exists():  # so too when killed after the rename
            done += 1
            told["done"] = f"done-{done}"
            shutil.move("out", told["done"])
        else:
            assert was_killed, "came to its end, and made nothing"
            told["after"] = journalled()
        print(json.dumps(told), flush=True)
        if killed == lives:
            return
    sys.exit(f"of {MOST * lives} lives only {killed} were killed, not {lives}: too few calls?")


def one_life(dies_at: int, how: str) -> tuple[bool, list[str]]:
    """Fork a life; whether it was killed, and the tensors that it wrote."""
    LOG.write_text("")
    child = os.fork()
    if child == 0:
        live(dies_at, loses_power=how == "power")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"neither done nor killed, but {code}"
    return code != 0, sorted(set(LOG.read_text().split("\n")) - {""})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
