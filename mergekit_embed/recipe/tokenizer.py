"""The keys that choose the result's vocabulary, in both of mergekit's forms."""

from __future__ import annotations

import os.path

from ..errors import Problem
from . import values
from .source import Source
from .suited import at, lists_of_models

TOKENS_REFUSED = (
    "rows are not chosen token by token here: a model that lacks a token takes the base's row, or "
    "the mean of the members that have it. Leave `tokens` out"
)

SOURCES = ("base", "union")


def _references(origin: Source) -> list[str]:
    """Every model of the recipe as it is spelled there, each once."""
    named = [origin.data.get("base_model")]
    for _, models in lists_of_models(origin.data):
        named += [model.get("model") for model in models if isinstance(model, dict)]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def vocabulary_of(source: str | None, origin: Source) -> str | None:
    """`base`, `union`, or a model as the recipe spells it elsewhere: `./m1` may be called `m1`."""
    if source is None or source in SOURCES:
        return source
    references = _references(origin)
    if source in references:
        return source
    alike = [name for name in references if os.path.normpath(name) == os.path.normpath(source)]
    return alike[0] if alike else None


def misnamed_vocabulary(origin: Source) -> list[Problem]:
    """A vocabulary of no model of the recipe, and what is told in both forms."""
    problems: list[Problem] = []
    both = [("tokenizer_source", "source"), ("pad_to_multiple_of", "pad_to_multiple_of")]
    for key, inner in both:
        if (
            at(origin.data, (key,)) is not None
            and at(origin.data, ("tokenizer", inner)) is not None
        ):
            message = f"and `{key}` say the same; keep one"
            problems.append(origin.problem(("tokenizer", inner), message, key=True))
    places: tuple[values.Path, ...] = (("tokenizer_source",), ("tokenizer", "source"))
    for place in places:
        source = at(origin.data, place)
        if isinstance(source, str) and source and vocabulary_of(source, origin) is None:
            known = ", ".join((*SOURCES, *_references(origin)))
            message = f"must be one of {known}, not {values.kind_of(source)}"
            problems.append(origin.problem(place, message))
    return problems
