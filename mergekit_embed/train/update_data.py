"""The data sets of an update: those that are new, and those that the model has learnt from."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, Problem, UsageError
from .plan import load
from .schema import NAME, Settings
from .sources import find_rows
from .specs import Kind

Entry = dict[str, Any]
"""What a plan says of a data set."""

KINDS: tuple[str, ...] = typing.get_args(Kind)

RULE = """\
Without a kind it is that of the first row: `label` makes it classification, `score` sts,
`sentence1` without a score pair, `query` or `anchor` retrieval."""


def entries(
    history: Sequence[str], new: Sequence[str], known: Mapping[str, Entry]
) -> tuple[dict[str, Entry], dict[str, Entry], list[str]]:
    """The data sets that a model has learnt from, those that are new, and notes about them.

    Args:
        history: files, perhaps with a kind before them (`sts:FILE`); none: all that are known.
        new: files.
        known: what the plan of the model says of its data sets.

    Raises:
        UsageError: when there are no new ones, or nobody knows the old ones.
        DataError: when a file is not there, or its first row is of no kind.
    """
    if not new:
        raise UsageError("an update needs new data; name it with --new")
    if not history and not known:
        message = "what the model has learnt from is not known; name that data with --history"
        raise UsageError(message)
    old: dict[str, Entry] = {} if history else {name: dict(one) for name, one in known.items()}
    for given in history:
        name, entry = _known(given, known) or _named(given, {*known, *old})
        if name in old:
            raise UsageError(f"--history {given}: is named twice")
        old[name] = entry
    fresh: dict[str, Entry] = {}
    notes = []
    for given in new:
        name, entry = _named(given, {*known, *old, *fresh})
        alike, differing = _common(entry["kind"], known)
        fresh[name] = entry | alike
        if differing:
            listed = ", ".join(f"`{key}`" for key in differing)
            notes.append(f"{name}: data sets of its kind differ in {listed}, which it goes without")
    return old, fresh, notes


def _known(given: str, known: Mapping[str, Entry]) -> tuple[str, Entry] | None:
    """The data set of the plan that is in the same file, or was in one of that name."""
    kind, path = _split(given)
    for name, entry in known.items():
        there, asked = (Path(one).expanduser() for one in (entry["path"], path))
        moved = not there.exists() and there.name == asked.name
        if moved or there.resolve() == asked.resolve():
            if kind not in {None, entry["kind"]}:
                message = f"--history {given}: the model has learnt it as {entry['kind']}"
                raise UsageError(message)
            return name, {**entry, "path": path}
    return None


def _split(given: str) -> tuple[str | None, str]:
    """The kind before the path, if there is one."""
    kind, colon, path = given.partition(":")
    return (kind, path) if colon and kind in KINDS else (None, given)


def _named(given: str, taken: Iterable[str]) -> tuple[str, Entry]:
    """A data set that the plan does not have, called by its file, or with a number after that."""
    kind, path = _split(given)
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(path).stem).lstrip(".-")[:90] or "data"
    assert re.fullmatch(NAME, stem)
    name, number, others = stem, 1, set(taken)
    while name in others:
        number += 1
        name = f"{stem}-{number}"
    return name, {"path": path, "kind": kind or kind_of(path)}


def kind_of(path: str) -> str:
    """The kind of a data set, by its first row.

    Raises:
        DataError: when it is not there, has no rows, or the first one does not tell.
    """
    entry = {"path": path, "kind": "retrieval"}
    spec = load({"model": "none", "data": {"data": entry}}).datasets["data"]
    source = find_rows(spec, (Path(),))
    first = next(iter(source.all()), None)
    if first is None:
        raise DataError([Problem(source.shown, "holds no rows")])
    if isinstance(first.content, ValueError):
        raise DataError([Problem(first.place, str(first.content))])
    found = next(_kinds(first.content), None)
    if found is None:
        listed = ", ".join(map(str, first.content)) or "none"
        example = f"{KINDS[0]}:{path}"
        message = f"has the keys {listed}, which tell no kind; write it before the file: {example}"
        raise DataError([Problem(first.place, message)])
    return found


def _kinds(content: Mapping[str, Any]) -> Iterator[str]:
    """What a row with these keys is, by `RULE`."""
    if content.get("label") is not None:
        yield "classification"
    if content.get("score") is not None:
        yield "sts"
    if "sentence1" in content:
        yield "pair"
    if "query" in content or "anchor" in content:
        yield "retrieval"


def _common(kind: str, known: Mapping[str, Entry]) -> tuple[Entry, list[str]]:
    """What all known data sets of a kind say alike, and the keys in which they differ."""
    same = [entry for entry in known.values() if entry["kind"] == kind]
    alike: Entry = {}
    differing = []
    for key in (*Settings.model_fields, "task"):
        said = [entry.get(key) for entry in same]
        if len({json.dumps(one, sort_keys=True) for one in said}) > 1:
            differing.append(key)
        elif said and said[0] is not None:
            alike[key] = said[0]
    return alike, differing
