"""Gram matrices that were measured before, kept for merges of the same members.

They lie in the folder of caches, under `grams`: a small JSON file for each set of weight files,
named after what tells one state of these files from another: path, device and inode, size, and the
times of the last change of content and of status. The last cannot be set back, so a file that was
changed and given its old time is another file too.

A matrix does not depend on the order in which the members are named, so it is kept in the order of
the tensors' own names and turned into that of the recipe.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..disk import cache_folder
from ..methods import Gram
from .fingerprint import NUMERICS, Described, as_text
from .hashing import digest_of
from .plan import Job, Plan
from .stamps import Stamp

GRAMS = "grams"
"""The cache's name."""

FRESH_NS = 2 * 10**9
"""A file that was written less than this before the measurement could change again unnoticed, since
file systems tell times no finer than this."""

BROKEN = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a file that is not as it was written may raise."""

MOST_FILES = 100
"""Files of matrices that are kept; the ones used longest ago go first."""


class Remembered:
    """What is kept for these plans alone; read when it is first asked for. Safe from any thread.

    Attributes:
        remarks: what could not be used, and why.
    """

    def __init__(self, plans: Sequence[Plan]):
        self._plans = {id(plan): plan for plan in plans}
        self._kept: dict[int, tuple[Described, Mapping[str, Gram]]] = {}
        self._lock = threading.Lock()
        self.remarks: list[str] = []

    def gram(self, plan: Plan, job: Job, *, absolute: bool) -> Gram | None:
        """The Gram matrix of a job's tensor, in the order of its sources; None: not known.

        With `absolute` only one that comes with the lengths in L1 will do.
        """
        with self._lock:
            if id(plan) not in self._plans:
                return None
            if id(plan) not in self._kept:
                self._kept[id(plan)] = Described(), self._read(plan)
            described, grams = self._kept[id(plan)]
            if not grams:
                return None
            key, order = _named(described, job)
        found = grams.get(key)
        if found is None or (absolute and found.absolute is None):
            return None
        back = np.argsort(order, kind="stable")
        matrix = found.matrix[np.ix_(back, back)]
        return Gram(
            matrix, found.absolute[back] if absolute and found.absolute is not None else None
        )

    def _read(self, plan: Plan) -> Mapping[str, Gram]:
        path = _path_of(plan, latest=time.time_ns())
        if path is None:
            return {}
        try:
            found = _parsed(path.read_text(encoding="utf-8"))
            with suppress(OSError):  # in a folder that others may only read
                os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except BROKEN as error:
            self.remarks.append(f"{path} is broken and was not used ({error}); it may be deleted")
            return {}
        return found


@dataclass(frozen=True)
class Keeper:
    """Keeps what is measured of a plan's tensors, under how the files were before.

    `path` is None where it could not be told later whether they have changed.
    """

    plan: Plan
    path: Path | None

    def keep(self, grams: Mapping[str, Gram]) -> str | None:
        """Keep matrices by the names of their jobs; what went wrong, if anything did."""
        if self.path is None:
            return None
        described = Described()
        found: dict[str, Any] = {}
        for job in self.plan.jobs:
            gram = grams.get(job.name)
            if gram is None or not np.isfinite(gram.matrix).all():
                continue
            key, order = _named(described, job)
            absolute = None if gram.absolute is None else gram.absolute[order].tolist()
            found[key] = [gram.matrix[np.ix_(order, order)].tolist(), absolute]
        try:
            _write(self.path, found)
        except OSError as error:
            return f"{self.path}: the Gram matrices could not be kept ({error.strerror})"
        return None


def keeper(plan: Plan) -> Keeper:
    """Take note of the files of a plan, before anything is read from them."""
    return Keeper(plan, _path_of(plan, latest=time.time_ns() - FRESH_NS))


def _path_of(plan: Plan, latest: int) -> Path | None:
    """The file for the state that all files of a plan are in.

    None where one is gone, not as it was when the plan was made, or was changed after `latest`.
    """
    root = cache_folder(GRAMS)
    if root is None:
        return None
    states = []
    for path, stamp in sorted(plan.inputs.items()):
        try:
            status = path.stat()
        except OSError:  # the merge itself will say so
            return None
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if Stamp.of(status) != stamp or changed > latest:
            return None
        states.append([str(path.absolute()), *stamp, status.st_ctime_ns])
    return root / f"{digest_of(as_text([NUMERICS, states]).encode())}.json"


def _named(described: Described, job: Job) -> tuple[str, list[int]]:
    """The name of a job's matrix, and the job's sources in the order in which it is kept."""
    names = [described.tensor(source) for source in job.sources]
    order = sorted(range(len(names)), key=names.__getitem__)
    origin = None if job.origin is None else described.tensor(job.origin)
    return digest_of(as_text([[names[k] for k in order], origin]).encode()), order


def _parsed(text: str) -> dict[str, Gram]:
    """The content of a file.

    Raises:
        ValueError, KeyError, TypeError: when it is broken.
    """
    content = json.loads(text)
    if content["digest"] != digest_of(as_text(content["grams"]).encode()):
        raise ValueError("its digest is another")
    return {
        key: Gram(np.array(matrix), None if absolute is None else np.array(absolute))
        for key, (matrix, absolute) in content["grams"].items()
    }


def _write(path: Path, grams: Mapping[str, Any]) -> None:
    """Write a file whole, with what is in it already; Python writes float64 so that none changes.

    Raises:
        OSError: when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    merged: dict[str, Any] = {}
    with suppress(*BROKEN):
        text = path.read_text(encoding="utf-8")
        merged = json.loads(text)["grams"] if _parsed(text) else {}
    for key, (matrix, absolute) in grams.items():
        known = merged.get(key, [matrix, None])[1]
        merged[key] = [matrix, known if absolute is None else absolute]
    content = {"digest": digest_of(as_text(merged).encode()), "grams": merged}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content), encoding="utf-8")
    beside.replace(path)
    with suppress(OSError):  # another process may tidy up as well
        kept = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime_ns)
        for old in kept[:-MOST_FILES]:
            old.unlink(missing_ok=True)
