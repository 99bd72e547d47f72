"""What the model card of a model says of its licence, languages and data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import RecipeError
from ...recipe.bombs import refuse_bomb, refuse_deep
from ..told import is_path

CARD = "README.md"

MAX_CARD_BYTES = 2**20
"""Of a card that are looked at."""

MOST = 200
"""Entries of a list that are kept; the Hub knows fewer languages."""

METADATA = re.compile(rb"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
"""The block of YAML that a card begins with."""

NAME = re.compile(r"[\w.+/-]{1,100}")
"""What licences, languages and data sets are called on the Hub; nothing else is passed on, and no
path is."""

WANTED = re.compile(
    r"^(?:license|license_name|language|datasets):.*(?:\n(?![A-Za-z]).*)*", re.MULTILINE
)
"""The keys that are read, each to the next one: results of benchmarks may be thousands of lines."""

MAX_WANTED = 2**14
"""Characters of these keys."""

LISTS = {"language": "languages", "datasets": "datasets"}


def card_of(folder: Path) -> dict[str, Any]:
    """The licence, languages and data sets that a model's card names; nothing where it has none.

    People write cards, and no merge fails for one: a card that cannot be read names nothing.
    """
    path = folder / CARD
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            block = METADATA.match(file.read(MAX_CARD_BYTES))
    except OSError:  # not ours to read, and not needed for the merge
        return {}
    said = _parsed(block[1], str(path)) if block else {}
    found: dict[str, Any] = {}
    licence, named = _names(said.get("license")), _names(said.get("license_name"))
    if licence:
        found["license"] = licence[0]
    if licence[:1] == ["other"] and named:
        found["license_name"] = named[0]
    for key, name in LISTS.items():
        values = _names(said.get(key))
        if values:
            found[name] = values
    return found


def _parsed(block: bytes, shown: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = "\n".join(WANTED.findall(block.decode().replace("\r\n", "\n")))[:MAX_WANTED]
        refuse_deep(text, shown)
        if "&" in text and "*" in text:
            refuse_bomb(YAML(typ="rt").compose(text), shown)
        found = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError, RecipeError):  # says nothing that can be used
        return {}
    return found if isinstance(found, dict) else {}


def _names(value: Any) -> list[str]:
    """A name, or a list of them; `no` is a language, which YAML takes for false."""
    listed = value if isinstance(value, list) else [value]
    spelled = ["no" if one is False else one for one in listed[:MOST]]
    names = [one for one in spelled if isinstance(one, str) and NAME.fullmatch(one)]
    return [one for one in names if not is_path(one)]
