"""Search: the parameters of a merge found on a small labelled sample, the probe set.

A recipe with a `search` block goes in, one that `boom-merge` runs without data comes out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import load_search
    from .preview import SearchPreview, preview_search
    from .run import SearchResult, search

_HOMES = {
    "SearchPreview": "preview",
    "SearchResult": "run",
    "load_search": "load",
    "preview_search": "preview",
    "search": "run",
}

__all__ = ["SearchPreview", "SearchResult", "load_search", "preview_search", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
