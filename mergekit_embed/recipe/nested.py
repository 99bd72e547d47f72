"""Members that are recipes themselves: written in place, or in a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from . import source, values
from .source import Source

if TYPE_CHECKING:
    from .model import Recipe

MAX_NESTED = 16
"""Recipes that a recipe may be nested in."""

ENDINGS = (".yaml", ".yml")
"""How the name of a recipe's file ends."""


@dataclass(frozen=True)
class Around:
    """The files of the recipes that one is nested in, and what came of those that were looked at.

    Where every recipe merges another twice, looking at each twice would never end.
    """

    files: tuple[Path | None, ...] = ()
    known: dict[Path, Recipe | RecipeError] = field(default_factory=dict)

    def within(self, origin: Source) -> Around:
        """As it is for the members of a recipe."""
        return Around((*self.files, origin.file.resolve() if origin.file else None), self.known)

    def refusal(self, name: str, inner: Source) -> str | None:
        """What keeps a recipe from being a member here."""
        if _own_file(inner) in {*self.files} - {None}:
            return f"{name} is made of itself"
        if len(self.files) > MAX_NESTED:
            return f"lies within more than {MAX_NESTED} recipes; merge some of them"
        return None

    def once(self, inner: Source, validate: Callable[[Source, Around], Recipe]) -> Recipe:
        """The validated recipe; that of a file is made once.

        Raises:
            RecipeError: with every problem of it.
        """
        file = _own_file(inner)
        if file is None:
            return validate(inner, self)
        if file not in self.known:
            try:
                self.known[file] = validate(inner, self)
            except RecipeError as error:
                self.known[file] = error
        found = self.known[file]
        if isinstance(found, RecipeError):
            raise found
        return found


def _own_file(source: Source) -> Path | None:
    """The file that a recipe is alone in; None for one that is written in place."""
    return source.file.resolve() if source.file and not source.prefix else None


def name_of(model: Any, place: values.Path) -> str:
    """What a model is called: as the recipe writes it, or by its place when it is a recipe there.

    Args:
        model: the value of a `model` or of `base_model`.
        place: of the member, or ("base_model",).
    """
    return source.spell(place) if isinstance(model, Mapping) else str(model)


def without_adapter(reference: str) -> str | None:
    """The name of the recipe's file in `FILE` or `FILE+ADAPTER`; None where there is none."""
    for ending in ENDINGS:
        head, found, rest = reference.partition(ending)
        if found and (not rest or rest.startswith("+")):
            return head + found
    return None


def nested_sources(origin: Source, places: list[values.Path]) -> Iterator[tuple[str, Source]]:
    """The recipes among the models at the places, each with what it is called.

    Raises:
        RecipeError: when a file cannot be read, or is no recipe.
    """
    for place in places:
        model = _at(origin.data, place)
        owner = place if place == ("base_model",) else place[:-1]
        if isinstance(model, Mapping):
            name = name_of(model, (*origin.prefix, *owner))
            yield name, Source(model, origin.file, origin.shown, (*origin.prefix, *place))
        elif isinstance(model, str) and (name := without_adapter(model) or ""):
            file = _file(origin, place, name)
            if file is not None:
                yield name, source.read(file)


def _file(origin: Source, place: values.Path, name: str) -> Path | None:
    """The file; None for a folder that is called like one."""
    tried = [folder / Path(name).expanduser() for folder in origin.folders]
    if any(path.is_dir() for path in tried):
        return None
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        listed = " or ".join(dict.fromkeys(map(str, tried)))
        raise RecipeError([origin.problem(place, f"there is no recipe {listed}")])
    return found


def _at(node: Any, place: values.Path) -> Any:
    for part in place:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node
