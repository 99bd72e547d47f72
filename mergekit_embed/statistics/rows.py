"""The rows of a probe set: JSON Lines, one example a line."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, Problem

SHAPES = (
    '{"query": ..., "pos": [...], "neg": [...]}, {"text": ..., "label": ...}, '
    '{"sentence1": ..., "sentence2": ..., "score": ...} or {"text": ...}'
)
"""What a row may be."""

SHOWN = 20
"""How many bad rows an error lists."""

Role = Literal["query", "document", "text"]
"""How a text is embedded: with the prompt of queries, with that of documents, or with the default
one."""


@dataclass(frozen=True)
class Ranked:
    """A query, the documents that answer it, and documents that do not."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Two texts and how alike they are; a higher score is more alike."""

    left: str
    right: str
    score: float


@dataclass(frozen=True)
class Plain:
    """A text by itself. A label, where the row has one, is not used."""

    text: str


Row = Ranked | Scored | Plain


def texts_of(row: Row) -> Iterator[tuple[Role, str]]:
    """Every text of a row, and how it is embedded."""
    if isinstance(row, Ranked):
        yield "query", row.query
        yield from (("document", text) for text in (*row.positives, *row.negatives))
    elif isinstance(row, Scored):
        yield "text", row.left
        yield "text", row.right
    else:
        yield "text", row.text


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
            row = _row(line)
            if isinstance(row, str):
                problems.append(Problem(f"{file}:{number}", row))
            else:
                rows.append(row)
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


def _row(line: bytes) -> Row | str:
    """The row of a line, or what is wrong with it."""
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(content, dict):
        return f"is not an object; a row is {SHAPES}"
    try:
        if "query" in content:
            positives = _texts(content, "pos")
            if not positives:
                return "`pos` is empty; a query needs a text that answers it"
            negatives = _texts(content, "neg") if content.get("neg") is not None else ()
            return Ranked(_text(content, "query"), positives, negatives)
        if "sentence1" in content or "sentence2" in content:
            return Scored(_text(content, "sentence1"), _text(content, "sentence2"), _score(content))
        if "text" in content:
            return Plain(_text(content, "text"))
    except ValueError as error:
        return str(error)
    listed = ", ".join(map(str, content)) or "none"
    return f"has the keys {listed}; a row is {SHAPES}"


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{key}` must be a text that is not empty")
    return value


def _texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; a single one may stand by itself."""
    value = content.get(key)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"`{key}` must be a list of texts")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`{key}` must hold texts that are not empty")
    return tuple(value)


def _score(content: Mapping[str, Any]) -> float:
    value = content.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError("`score` must be a finite number")
    return float(value)  # type: ignore[arg-type]
