"""Model cards of what commands have merged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write(folders: Iterable[Path]) -> None:
    """Write the card of each merged model.

    Raises:
        OutputError: when one cannot be written.
    """
    from ..publish.card import write_card

    for folder in folders:
        write_card(folder)
