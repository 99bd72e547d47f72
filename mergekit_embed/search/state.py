"""What a search remembers on the disk, so that one that was killed continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from ..disk import write_whole
from ..errors import OutputError
from ..train.data import Dataset
from ..version import __version__
from .specs import SearchSpec

STATE = ".search.state.json"
"""Beside what is found; gone when the search is done."""


def fingerprint(
    spec: SearchSpec, datasets: Mapping[str, Dataset], inputs: Sequence[tuple[str, str]]
) -> str:
    """The same for searches that do the same: the recipe, the rows, the members' files."""
    said = [
        spec.recipe.source.fingerprint,
        {name: dataset.digest for name, dataset in datasets.items()},
        list(inputs),
        __version__,
    ]
    text = json.dumps(said, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def read_state(folder: Path, wanted: str) -> dict[str, Any] | None:
    """What a search of this fingerprint has left; None where there is nothing of the kind."""
    path = folder / STATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); begin anew with --restart") from error
    same = isinstance(content, dict) and content.get("fingerprint") == wanted
    return content if same else None


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all; Python reads back what is not finite in it.

    Raises:
        OutputError: when it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: when it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
