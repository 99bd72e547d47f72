"""The rows of data sets: what a line of JSON may be, and what is wrong with one that is not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SHAPES = (
    '{"query": ..., "pos": [...], "neg": [...]}, '
    '{"anchor": ..., "positive": ..., "negative": ...}, '
    '{"text": ..., "label": ...}, '
    '{"sentence1": ..., "sentence2": ..., "score": ...} or {"text": ...}'
)
"""What a row may be."""

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
    """A text by itself, or with the name of its class."""

    text: str
    label: str | None = None


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


def decoded(line: bytes) -> Mapping[str, Any]:
    """The object that a line of JSON holds.

    Raises:
        ValueError: when it holds none.
    """
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"is not an object; a row is {SHAPES}")
    return content


def row_of(content: Mapping[str, Any]) -> Row:
    """The row that an object with these keys is; it may have others.

    Raises:
        ValueError: telling what is wrong with it.
    """
    if "query" in content:
        positives = texts_at(content, "pos")
        if not positives:
            raise ValueError("`pos` is empty; a query needs a text that answers it")
        negatives = texts_at(content, "neg") if content.get("neg") is not None else ()
        return Ranked(text_at(content, "query"), positives, negatives)
    if "anchor" in content:
        return _triplet(content)
    if "sentence1" in content or "sentence2" in content:
        return Scored(text_at(content, "sentence1"), text_at(content, "sentence2"), _score(content))
    if "text" in content:
        return Plain(text_at(content, "text"), _label(content.get("label")))
    listed = ", ".join(map(str, content)) or "none"
    raise ValueError(f"has the keys {listed}; a row is {SHAPES}")


NEGATIVE = re.compile(r"negative(_\d+)?")


def _triplet(content: Mapping[str, Any]) -> Ranked:
    """An anchor, its positive, and any number of negatives (`negative`, `negative_1`, ...)."""
    positives = texts_at(content, "positive")
    if not positives:
        raise ValueError("`positive` is empty; an anchor needs a text that is like it")
    columns = sorted(filter(NEGATIVE.fullmatch, content), key=lambda name: (len(name), name))
    negatives = [
        text for name in columns if content[name] is not None for text in texts_at(content, name)
    ]
    return Ranked(text_at(content, "anchor"), positives, tuple(negatives))


def _label(value: Any) -> str | None:
    """The name of a class: a text, or a number of one; None for what is neither."""
    named = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if named and str(value).strip() else None


def text_at(content: Mapping[str, Any], key: str) -> str:
    """The text under a key.

    Raises:
        ValueError: when there is none, or it is empty.
    """
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{key}` must be a text that is not empty")
    return value


def texts_at(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; a single one may stand by itself.

    Raises:
        ValueError: when it is none, or holds what is no text or empty.
    """
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
    value: Any = content.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max:
        raise ValueError("`score` must be a finite number")
    return float(value)
