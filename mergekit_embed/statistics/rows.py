"""The rows of a probe set: JSON Lines, one example a line."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, Problem
from ..rows import SHAPES, Row, decoded, row_of

SHOWN = 20
"""How many bad rows an error lists."""


@dataclass(frozen=True)
class ProbeSet:
    """The rows to measure on, in the order in which they are used.

    Attributes:
        found: how many rows the files hold.
        digest: SHA-256 of the files' bytes, one after the other.
    """

    rows: tuple[Row, ...]
    found: int
    digest: str


def read_rows(files: Sequence[Path], seed: int, most: int | None) -> ProbeSet:
    """Read JSON Lines files, shuffle their rows, and keep the first `most`.

    Raises:
        DataError: with `file:line` of every bad row, or when there is no row or no file.
    """
    digest = hashlib.sha256()
    rows: list[Row] = []
    problems: list[Problem] = []
    for file in files:
        try:
            raw = file.read_bytes()
        except OSError as error:
            problems.append(Problem(str(file), f"cannot be read: {error.strerror}"))
            continue
        digest.update(raw)
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(row_of(decoded(line)))
            except ValueError as error:
                problems.append(Problem(f"{file}:{number}", str(error)))
    if len(problems) > SHOWN:
        more = Problem("", f"and {len(problems) - SHOWN} more bad rows")
        problems = [*problems[:SHOWN], more]
    if not problems and not rows:
        listed = ", ".join(map(str, files))
        problems.append(Problem(listed, f"holds no rows; a row is {SHAPES}"))
    if problems:
        raise DataError(problems)
    random.Random(seed).shuffle(rows)
    return ProbeSet(tuple(rows[:most]), len(rows), digest.hexdigest())
