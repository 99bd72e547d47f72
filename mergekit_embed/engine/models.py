"""Opening the models of a recipe and holding them against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Checkpoint, NotFoundError
from ..checkpoint.shell import ASPECTS, OPTIONS, difference, same
from ..errors import CheckpointError, Problem, ProblemsError, RecipeError
from ..recipe import Recipe
from ..recipe.source import in_file_order
from ..recipe.values import Path as Place


@dataclass(frozen=True)
class Models:
    """The opened models of a recipe. `shell` is where every file but the weights comes from."""

    members: tuple[Checkpoint, ...]
    places: tuple[Place, ...]
    base: Checkpoint | None
    shell: Checkpoint

    def opened(self, reference: str) -> Checkpoint:
        """The model that the recipe calls by this name."""
        return next(model for model in self.members if model.label == reference)

    @property
    def all(self) -> tuple[Checkpoint, ...]:
        """The members and the base."""
        return (*self.members, *((self.base,) if self.base else ()))

    @property
    def described(self) -> tuple[tuple[Place, Checkpoint], ...]:
        """Every model once, with its place in the recipe."""
        listed = list(zip(self.places, self.members, strict=True))
        if self.base is not None:
            listed.insert(0, (("base_model",), self.base))
        once: dict[tuple[Path, str | None], tuple[Place, Checkpoint]] = {}
        for place, model in listed:
            once.setdefault((model.root, model.recipe), (place, model))
        return tuple(once.values())


Open = Callable[[Recipe, str], Checkpoint]
"""Opens what a recipe calls by a name."""


def open_models(recipe: Recipe, opened: Open) -> Models:
    """Locate and describe every model of the recipe.

    Raises:
        RecipeError: naming every model that is not there.
        CheckpointError: when one of them is broken.
    """
    wanted: list[tuple[str, Place]] = [(m.reference, m.place) for m in recipe.members]
    if recipe.base is not None:
        wanted.append((recipe.base, ("base_model",)))
    found: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    for reference, place in wanted:
        if reference in found:
            continue
        at = place if place == ("base_model",) else (*place, "model")
        try:
            found[reference] = opened(recipe, reference)
        except NotFoundError as error:
            problems.append(recipe.source.problem(at, str(error)))
        except CheckpointError as error:
            raise CheckpointError(error.path, located(recipe, at, error)) from error
        except ProblemsError as error:  # of a nested recipe, located there
            problems += error.problems
    if problems:
        raise RecipeError(in_file_order(problems))
    members = tuple(found[member.reference] for member in recipe.members)
    base = found[recipe.base] if recipe.base is not None else None
    return Models(members, tuple(m.place for m in recipe.members), base, _shell(members, base))


def located(recipe: Recipe, place: Place, error: CheckpointError) -> str:
    """What an error of a model says, and where the recipe names the model."""
    message = str(error).removeprefix(f"{error.path}: ")
    return f"{message} ({recipe.source.where(place)})"


def _shell(members: tuple[Checkpoint, ...], base: Checkpoint | None) -> Checkpoint:
    """The base, unless it is a bare transformer and the members are sentence-transformers."""
    if base is None:
        return members[0]
    if not base.modules and any(member.modules for member in members):
        return next(member for member in members if member.modules)
    return base


def disagreements(recipe: Recipe, models: Models) -> list[Problem]:
    """Every aspect on which a model differs from the shell and that the recipe does not accept."""
    problems = []
    shell = models.shell
    for place, model in models.described:
        if model is shell or model is models.base:
            continue
        for aspect, verb in ASPECTS.items():
            if aspect in recipe.accepted:
                continue
            mine, theirs = model.facts.get(aspect), shell.facts.get(aspect)
            if mine is None or theirs is None or same(mine, theirs):
                continue
            has, others = difference(mine, theirs)
            told = f"{verb} {has}, {shell.label} {verb} {others} ({mine.file}). "
            problems.append(recipe.source.problem(place, told + _advice(aspect, shell)))
            if aspect == "vocabulary":
                break  # what else differs in the tokenizers follows
    return problems


def _advice(aspect: str, shell: Checkpoint) -> str:
    if aspect not in OPTIONS:
        return (
            "Rows of the embedding table would be merged with those of other tokens. Set "
            "`tokenizer_source: union` to merge them by token and keep every token, or "
            f"`tokenizer_source: base` to keep only the tokens of {shell.label}."
        )
    return (
        f"Merging them changes every embedding. Drop this member, or set {OPTIONS[aspect]} to "
        f"accept {shell.label}'s."
    )


def remarks(recipe: Recipe, models: Models) -> list[str]:
    """What the user should know of the models that is no error."""
    notes = []
    if models.base is not None and recipe.method.base.endswith("origin"):
        notes += [
            f"{member.label} is the base itself under another name, and counts as a member with a "
            "delta of zero"
            for member in models.members
            if member.root.resolve() == models.base.root.resolve()
            and (member.adapter, member.recipe) == (models.base.adapter, models.base.recipe)
        ]
    if models.base is not None and models.shell is not models.base:
        notes.append(
            f"{models.base.label} has no modules.json; all files but the weights come from "
            f"{models.shell.label}"
        )
    bare = [m.label for _, m in models.described if not m.modules and models.shell.modules]
    bare = [label for label in bare if models.base is None or label != models.base.label]
    if bare:
        notes.append(f"{', '.join(bare)}: no modules.json, so pooling could not be compared")
    return notes
