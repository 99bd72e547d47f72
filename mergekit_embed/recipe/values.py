"""Parameter values that differ from tensor to tensor.

A value is a scalar; a list of numbers, interpolated over the depth of the layers; or a list of
`{filter: PATTERN, value: V}` tried in order.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.registry import spelled

Path = tuple[str | int, ...]
"""Keys and indexes that lead to a place of the recipe, such as ("models", 1, "parameters")."""


@dataclass(frozen=True)
class Constant:
    """The same for every tensor."""

    scalar: Any

    def at(self, tensor: str, depth: float) -> Any:
        """The value for a tensor of this name at this depth in [0, 1]; None when there is none."""
        return self.scalar

    def scalars(self) -> Iterator[Any]:
        """Every scalar that the value is made of."""
        yield self.scalar


@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over the depth, first layer to last, linear in between."""

    anchors: tuple[float, ...]

    def at(self, tensor: str, depth: float) -> Any:
        """The interpolated number at this depth."""
        if len(self.anchors) == 1:
            return self.anchors[0]
        position = depth * (len(self.anchors) - 1)
        left = min(int(position), len(self.anchors) - 2)
        part = position - left
        return (1.0 - part) * self.anchors[left] + part * self.anchors[left + 1]

    def scalars(self) -> Iterator[Any]:
        """The anchors; what lies between them is within their range."""
        yield from self.anchors


@dataclass(frozen=True)
class Filtered:
    """The value of the first pattern that matches the tensor's name."""

    choices: tuple[tuple[str | None, Constant | Gradient], ...]

    def at(self, tensor: str, depth: float) -> Any:
        """The value of the first match, or None."""
        for pattern, value in self.choices:
            if pattern is None or matches(pattern, tensor):
                return value.at(tensor, depth)
        return None

    def scalars(self) -> Iterator[Any]:
        """The scalars of every choice."""
        for _, value in self.choices:
            yield from value.scalars()


Value = Constant | Gradient | Filtered


def matches(pattern: str, tensor: str) -> bool:
    """True when the name holds the pattern: /regular expression/, glob with `*`, or substring."""
    if is_regular_expression(pattern):
        return re.search(pattern[1:-1], tensor) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(tensor, pattern)
    return pattern in tensor


def is_regular_expression(pattern: str) -> bool:
    """True for `/.../`."""
    return len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/")


Report = Callable[[Path, str], None]
"""Called with a path and a message for every problem found there."""


def parse(raw: Any, path: Path, report: Report) -> Value | None:
    """Read a parameter's value; problems are reported and give None."""
    if isinstance(raw, dict):
        report(path, "must be a number, a list of numbers, or a list of {filter, value}")
        return None
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        return Constant(raw)
    if not raw:
        report(path, "an empty list has no value")
        return None
    if any(isinstance(item, dict) for item in raw):
        return _parse_filtered(raw, path, report)
    return _parse_gradient(raw, path, report)


def _parse_gradient(raw: Sequence[Any], path: Path, report: Report) -> Gradient | None:
    wrong = [i for i, item in enumerate(raw) if not _is_number(item)]
    for index in wrong:
        report((*path, index), f"a gradient holds numbers only, not {kind_of(raw[index])}")
    return None if wrong else Gradient(tuple(float(item) for item in raw))


def _parse_filtered(raw: Sequence[Any], path: Path, report: Report) -> Filtered | None:
    choices: list[tuple[str | None, Constant | Gradient]] = []
    for index, item in enumerate(raw):
        here = (*path, index)
        if not isinstance(item, dict) or "value" not in item or set(item) - {"filter", "value"}:
            report(here, "must be {filter: PATTERN, value: V}, or {value: V} for the rest")
            continue
        pattern = item.get("filter")
        if pattern is not None and not _valid_pattern(pattern, (*here, "filter"), report):
            continue
        if pattern is None and index + 1 < len(raw):
            report(here, "has no filter and so hides the choices after it; put it last")
            continue
        chosen = item["value"]
        if isinstance(chosen, list) and any(isinstance(part, dict) for part in chosen):
            report((*here, "value"), "filters cannot be nested")
            continue
        value = parse(chosen, (*here, "value"), report)
        if isinstance(value, Constant | Gradient):
            choices.append((pattern, value))
    return Filtered(tuple(choices)) if len(choices) == len(raw) else None


def _valid_pattern(pattern: Any, path: Path, report: Report) -> bool:
    if not isinstance(pattern, str) or not pattern:
        report(path, f"a filter is a piece of a tensor's name, not {kind_of(pattern)}")
        return False
    if is_regular_expression(pattern):
        try:
            re.compile(pattern[1:-1])
        except (re.error, RecursionError, OverflowError) as error:
            report(path, f"is not a regular expression: {error}")
            return False
    return True


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def kind_of(value: Any) -> str:
    """What a value of the wrong kind is, in short: a scalar as YAML spells it, or its kind."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return spelled(value)
