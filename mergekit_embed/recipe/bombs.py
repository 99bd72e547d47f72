"""Recipes of a few lines that nobody could ever read to the end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import Problem, RecipeError

if TYPE_CHECKING:
    from .source import Source
    from .values import Path

MAX_DEPTH = 1000
"""Brackets within brackets."""

MAX_VALUES = 20_000
"""What a recipe may stand for where it says things by reference (`*name`)."""

MAX_NUMBER = 2**63
"""No key takes a larger number, and many things that are done with one fail."""


def refuse_deep(text: str, shown: str) -> None:
    """Refuse nesting that would be parsed for minutes, and then be too deep for Python anyway.

    Raises:
        RecipeError: where brackets are open without end; those in texts count too.
    """
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            message = f"is not valid YAML: more than {MAX_DEPTH:,} brackets are open"
            raise RecipeError([Problem(shown, message)])


def refuse_bomb(root: Any, shown: str) -> None:
    """Refuse lists that hold one list many times, which holds another many times, and so on.

    They take a few lines, and no time to parse; but whoever looks at every value never ends.

    Raises:
        RecipeError: where that is so, or something holds itself.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_VALUES + 1  # what it counts for inside of itself
            inner = node.value if isinstance(node.value, list) else []
            parts = [part for item in inner for part in (item if type(item) is tuple else (item,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if root is not None and size(root) > MAX_VALUES:
        message = f"stands for more than {MAX_VALUES:,} values by its references (`*`)"
        raise RecipeError([Problem(shown, message)])


def refuse_large_numbers(origin: Source) -> None:
    """Refuse whole numbers that only Python can hold.

    Raises:
        RecipeError: with the place of each.
    """
    problems = []
    left: list[tuple[Path, Any]] = [((), origin.data)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            left += [((*path, index), item) for index, item in enumerate(value)]
        elif isinstance(value, int) and abs(value) >= MAX_NUMBER:
            problems.append(origin.problem(path, "is too large a number"))
    if problems:
        raise RecipeError(problems[::-1])
