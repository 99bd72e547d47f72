"""Whole processes, measured from outside: seconds, memory, bytes from and to the disk."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OURS = "from mergekit_embed.cli.merge import main; main()"
MERGEKIT = "from mergekit.scripts.run_yaml import main; main()"

SAMPLED_EVERY_S = 0.002
BLOCK = 512
"""The unit of the kernel's ru_inblock and ru_oublock, in bytes."""

LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Variables that would keep a contestant from the cores that it takes by itself."""

PACKAGES = ("mergekit", "sentence-transformers", "transformers", "safetensors", "torch", "numpy")
VERSIONS = """
import importlib.metadata as m, json, sys
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))
"""


class Failed(Exception):
    """A process ended with another status than 0; says the last line that it wrote."""

    def __init__(self, said: str, status: int) -> None:
        lines = said.strip().splitlines()
        super().__init__(lines[-1] if lines else f"exit status {status}")
        self.said = said
        self.status = status


@dataclass(frozen=True)
class Usage:
    """What one process took.

    `peak_mb` is the kernel's high-water mark of resident memory, mapped files with it.
    `peak_anonymous_mb` is the largest sample of what no file backs and cannot be dropped.
    `disk_read_mb` is what was not in the page cache; `disk_written_mb` what was made dirty.
    Megabytes are 10^6 bytes.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    peak_anonymous_mb: float
    disk_read_mb: float
    disk_written_mb: float


def ours(recipes: Sequence[Path], target: Path, *flags: str) -> list[str]:
    """The command that merges recipes into `target` here, on the CPU."""
    names = map(str, recipes)
    return [sys.executable, "-c", OURS, *names, "-o", str(target), "--device", "cpu", *flags]


def environment(command: Sequence[str]) -> dict[str, str]:
    """Offline, on the CPU, with all of its cores; only our own commands see this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in LIMITS}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT) if command[0] == sys.executable else "",
    }


def measured(command: Sequence[str]) -> tuple[Usage, str]:
    """Run a command to its end; what it took and what it printed. Failed if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=said, env=environment(command))
        sampler = _Sampler(process.pid)
        sampler.start()
        _, code, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(code)
        sampler.stop()
        out.seek(0)
        printed = out.read().decode(errors="replace")
        if process.returncode:
            said.seek(0)
            raise Failed(printed + said.read().decode(errors="replace"), process.returncode)
    taken = Usage(
        wall,
        usage.ru_utime + usage.ru_stime,
        sampler.peak / 1e6,
        sampler.anonymous / 1e6,
        usage.ru_inblock * BLOCK / 1e6,
        usage.ru_oublock * BLOCK / 1e6,
    )
    return taken, printed


class _Sampler(threading.Thread):
    """Reads /proc/PID/status until told to stop.

    Not ru_maxrss: until a new process has replaced its image, its memory is its parent's, and
    ru_maxrss remembers that. The file is opened once, so that it can never be another process's.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = self.anonymous = 0
        self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLED_EVERY_S):
            try:
                text = os.pread(self._status, 8192, 0).decode()
            except ProcessLookupError:
                return
            found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            if "VmHWM" not in found:  # it has ended and waits to be reaped
                return
            self.peak = max(self.peak, _bytes(found["VmHWM"]))
            anonymous = _bytes(found["RssAnon"]) + _bytes(found["RssShmem"])
            self.anonymous = max(self.anonymous, anonymous)

    def stop(self) -> None:
        self._done.set()
        self.join()
        os.close(self._status)


def _bytes(value: str) -> int:
    return int(value.split()[0]) * 1024


def drop_from_cache(files: Sequence[Path]) -> None:
    """Make the kernel forget the files' pages, so that the next reader waits for the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def versions(python: str) -> dict[str, str]:
    """What is installed beside an interpreter, of what matters here."""
    command = [python, "-c", VERSIONS, *PACKAGES, "mergekit-embed", "numba"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def machine(folder: Path) -> dict[str, str | int | float]:
    """Processor, memory, kernel, file system of `folder`, Python, and the load average now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The kind of the mount that holds `folder`: the longest mount point above it."""
    path = str(folder.resolve()) + "/"
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, found, *_ = line.split()
        if path.startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, found
    return kind
