"""A recipe file as parsed YAML that still knows the line and column of everything in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Problem, RecipeError
from . import values

MAX_BYTES = 2**18
"""Thousands of members; YAML takes seconds to read as much."""


@dataclass(frozen=True)
class Source:
    """Where a recipe came from: its data, its file (None: a dict in Python), and its positions.

    `prefix` leads to the data in the file, for a recipe that is written in place of a model. Of a
    point of a sweep, `original` is what the file says, and `moved` where in it the values stand
    that the data has elsewhere.
    """

    data: Any
    file: Path | None
    shown: str
    prefix: values.Path = ()
    original: Any = None
    moved: Mapping[values.Path, values.Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that relative references count from first."""
        return self.file.parent if self.file else Path()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that relative references count from."""
        return (self.folder, Path())

    @property
    def fingerprint(self) -> str:
        """The same text for recipes that say the same of the same models."""
        folder = str(self.folder.absolute())
        return json.dumps([folder, self.data], sort_keys=True, default=str)

    def where(self, path: values.Path, *, key: bool = False) -> str:
        """`recipe.yaml:12:7` for the value at `path`, or for its key.

        A path that leads nowhere gives the position of the last part that exists.
        """
        if self.file is None:
            return self.shown
        for target, place in self.moved.items():
            if path[: len(target)] == target:
                path = (*place, *path[len(target) :])
        node = self.data if self.original is None else self.original
        start = getattr(node, "lc", None) if self.prefix else None
        line, column = (start.line, start.col) if start else (0, 0)
        for index, part in enumerate(path):
            position = _position(node, part, key=key and index == len(path) - 1)
            if position is None:
                break
            line, column = position
            node = node[part]
        return f"{self.shown}:{line + 1}:{column + 1}"

    def problem(self, path: values.Path, message: str, *, key: bool = False) -> Problem:
        """A problem at `path`, with the path spelled before the message."""
        spelled = spell((*self.prefix, *path))
        return Problem(self.where(path, key=key), f"{spelled}: {message}" if spelled else message)


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Every problem once, by line and column; those at the same place as they were found."""

    def position(problem: Problem) -> list[int]:
        return [0, 0, *map(int, re.findall(r":(\d+)(?=:|$)", problem.where))][-2:]

    return sorted(dict.fromkeys(problems), key=position)


def spell(path: values.Path) -> str:
    """`models[1].parameters.weight` for a path."""
    spelled = ""
    for part in path:
        spelled += f"[{part}]" if isinstance(part, int) else f".{part}" if spelled else part
    return spelled


def plain(value: Any) -> Any:
    """What Python code may hand in, as YAML would have given it: paths, tuples, NumPy numbers."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PathLike):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _position(node: Any, part: str | int, *, key: bool) -> tuple[int, int] | None:
    places = getattr(node, "lc", None)
    try:
        if places is None:
            return None
        if isinstance(part, int):
            found = places.item(part)
        else:
            found = places.key(part) if key else places.value(part)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return (found[0], found[1]) if found else None


@dataclass(frozen=True)
class Document:
    """A kind of YAML file: what it is called, and what it is a mapping with."""

    noun: str
    wanted: str


RECIPE = Document("recipe", "`merge_method:` and `models:`")


def read(path: Path, document: Document = RECIPE) -> Source:
    """Parse a recipe file, or another kind of YAML file.

    Raises:
        RecipeError: when it cannot be read, is not YAML, or is not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    from .bombs import refuse_bomb, refuse_deep

    shown = str(path)
    text = _text(path, document)
    refuse_deep(text, shown)
    try:
        if "&" in text and "*" in text:
            refuse_bomb(YAML(typ="rt").compose(text), shown)
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        message = " ".join(str(error.problem or error.context).split())
        raise RecipeError([Problem(where, f"is not valid YAML: {message}")]) from error
    except ReaderError as error:
        lines = text[: error.position].split("\n")
        where = f"{shown}:{len(lines)}:{len(lines[-1]) + 1}"
        message = f"holds the character U+{error.character:04X}, which YAML forbids"
        raise RecipeError([Problem(where, message)]) from error
    except (YAMLError, RecursionError, ValueError) as error:
        message = " ".join(str(error).split())
        raise RecipeError([Problem(shown, f"is not valid YAML: {message}")]) from error
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {values.kind_of(data)}"
        wanted = f"a {document.noun} is a mapping with {document.wanted}"
        raise RecipeError([Problem(shown, f"{found}; {wanted}")])
    return Source(data, path, shown)


def _text(path: Path, document: Document) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            limit = f"no more than {MAX_BYTES:,} bytes are read of a {document.noun}"
            raise RecipeError([Problem(str(path), f"is too large; {limit}")])
        return raw.decode()
    except OSError as error:
        raise RecipeError([Problem(str(path), _reason(path, error, document))]) from error
    except UnicodeDecodeError as error:
        raise RecipeError([Problem(str(path), "is not a text file in UTF-8")]) from error


def _reason(path: Path, error: OSError, document: Document) -> str:
    if isinstance(error, FileNotFoundError):
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        return f"there is no such {document.noun}" + (
            f"; beside it: {', '.join(near[:8])}" if near else ""
        )
    if isinstance(error, IsADirectoryError):
        return f"is a folder; a {document.noun} is a YAML file"
    return f"cannot be read: {error.strerror}"
