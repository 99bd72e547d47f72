"""What pydantic finds wrong with the shape of a file, as problems with a place and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Problem
from . import source, values
from .source import Source

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

WANTED = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of names to values",
    "finite_number": "must be finite",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "string_type": "must be text",
}
"""What a value must be, by pydantic's name of the error."""

LIMITS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


@dataclass(frozen=True)
class Words:
    """What one kind of file calls things, each by a path in it.

    `unknown_key` is the message for a key that is not known, `example` what a mapping looks like
    there, `item` what a list holds there.
    """

    unknown_key: Callable[[values.Path], str]
    example: Callable[[values.Path], str]
    item: Callable[[values.Path], str]


def shape_problem(origin: Source, detail: ErrorDetails, words: Words) -> Problem:
    """One error of pydantic, at its place in the file."""
    path: values.Path = tuple(detail["loc"])
    kind, given = detail["type"], detail["input"]
    if path[-1] == "[key]" and kind != "string_type":
        message = f"the name {detail['msg'].removeprefix('Value error, ')}"
        return origin.problem(path[:-1], message, key=True)
    if kind == "invalid_key" or path[-1] == "[key]":
        parent = path[: -2 if path[-1] == "[key]" else -1]
        shown = f"{source.spell(parent)}: " if parent else ""
        message = f"{shown}the key {values.kind_of(given)} must be text; put it in quotes"
        return Problem(origin.where((*parent, given), key=True), message)
    if kind == "extra_forbidden":
        return origin.problem(path, words.unknown_key(path), key=True)
    if kind == "missing":
        return origin.problem(path, "is required and not there")
    if kind == "model_type":
        message = f"must be a mapping such as `{words.example(path)}`, not {values.kind_of(given)}"
        return origin.problem(path, message)
    if kind in WANTED:
        return origin.problem(path, f"{WANTED[kind]}, not {values.kind_of(given)}")
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("'", '"')
        return origin.problem(path, f"must be {expected}, not {values.kind_of(given)}")
    if kind == "string_too_short":
        return origin.problem(path, "must not be empty")
    if kind == "too_short":
        return origin.problem(path, f"must list at least one {words.item(path)}")
    if kind in LIMITS:
        (limit,) = detail["ctx"].values()
        bound = int(limit) if limit == int(limit) else limit
        return origin.problem(path, f"must be {LIMITS[kind]} {bound}, not {values.kind_of(given)}")
    return origin.problem(path, detail["msg"].removeprefix("Value error, "))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest that is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    suggestion = f', did you mean "{near[0]}"?' if near else f"; known: {', '.join(sorted(known))}"
    return f"unknown {what}{suggestion}"
