"""Which tensors of the models belong together, and what keeps them apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint import Checkpoint, Component, Matcher, Tensor, is_derived_buffer
from ..checkpoint.names import LAYER
from ..dtypes import Kind
from ..errors import Problem
from ..recipe import Recipe
from ..recipe.values import Path as Place
from .models import Models
from .slicing import Wanted, wanted_tensors

SHOWN = 4
"""How many names of tensors an error lists."""


@dataclass(frozen=True)
class Match:
    """A tensor of the shell and the same tensor of the other models.

    `members` are those of the slice that `wanted` names; they and `base` are None where the tensor
    is copied from the shell as it is.
    """

    wanted: Wanted
    members: tuple[Tensor, ...] | None
    base: Tensor | None

    @property
    def component(self) -> Component:
        """The part of the model that the tensor belongs to."""
        return self.wanted.component

    @property
    def tensor(self) -> Tensor:
        """The shell's tensor, under the name it has in the result."""
        return self.wanted.tensor

    @property
    def name(self) -> str:
        """The name that users and filters see."""
        return self.component.key(self.tensor.name)


def match_tensors(recipe: Recipe, models: Models) -> tuple[list[Match], list[Problem], list[str]]:
    """Every tensor of the result, every problem of every model, and notes."""
    views = {
        member.reference: _View(model, models.shell, place)
        for member, model, place in zip(recipe.members, models.members, models.places, strict=True)
    }
    base_view = None
    if _needs_base(recipe) and models.base is not None:
        base_view = _View(models.base, models.shell, ("base_model",))
    matches = [
        _match(wanted, [views[m.reference] for m in recipe.slices[wanted.slice]], base_view)
        for wanted in wanted_tensors(recipe, models)
    ]
    problems: list[Problem] = []
    for view in (*views.values(), *([base_view] if base_view else [])):
        may_have_more = view is base_view and models.base is not models.shell
        problems += view.problems(recipe, may_have_more)
    return _kept(matches, recipe), problems, _notes(matches)


def _needs_base(recipe: Recipe) -> bool:
    return recipe.base is not None and recipe.method.base in {"origin", "optional origin"}


class _View:
    """One model seen through the shell's names, and what does not fit."""

    def __init__(self, model: Checkpoint, shell: Checkpoint, place: Place):
        self.model, self.shell, self.place = model, shell, place
        self.matchers = {r: Matcher(c.tensors) for r, c in model.components.items()}
        self.found: set[tuple[str, str]] = set()
        self.missing: list[str] = []
        self.misfits: list[str] = []

    def find(self, wanted: Wanted, layer: int | None) -> Tensor | None:
        """Our tensor for one of the shell's; None when it is missing or does not fit."""
        component, tensor, asked = wanted.component, wanted.tensor, wanted.asked(layer)
        matcher = self.matchers.get(component.role)
        name = matcher.find(asked) if matcher else None
        shown = component.key(asked)
        if name is None:
            if not is_derived_buffer(tensor.name):
                self.missing.append(shown)
            return None
        self.found.add((component.role, name))
        mine = self.model.components[component.role].tensors[name]
        if is_derived_buffer(tensor.name):
            return mine if (mine.shape, mine.dtype) == (tensor.shape, tensor.dtype) else None
        if mine.shape != tensor.shape:
            theirs = f"{list(tensor.shape)} in {self.shell.label}"
            self.misfits.append(f"{shown} has shape {list(mine.shape)}, {theirs}")
            return None
        both_float = mine.dtype.is_float and tensor.dtype.is_float
        if mine.dtype is not tensor.dtype and not both_float:
            self.misfits.append(f"{shown} is {mine.dtype}, {tensor.dtype} in {self.shell.label}")
            return None
        return mine

    def extra(self, layered: bool) -> list[str]:
        """Our tensors that the shell does not have, apart from buffers and tied copies.

        Where the result is put together from layers, it need not take all that we have.
        """
        found = []
        shell = {role: Matcher(c.tensors) for role, c in self.shell.components.items()}
        for role, component in self.model.components.items():
            used = [component.tensors[name] for r, name in self.found if r == role]
            places = {(tensor.file, tensor.offset) for tensor in used}
            for name, tensor in component.tensors.items():
                known = (role, name) in self.found or is_derived_buffer(name)
                if layered and not known:
                    in_shell = role in shell and shell[role].find(name) is not None
                    known = in_shell or LAYER.match(name) is not None
                if not known and (tensor.file, tensor.offset) not in places:
                    found.append(component.key(name))
        return found

    def problems(self, recipe: Recipe, may_have_more: bool) -> Iterable[Problem]:
        """What does not fit, as far as the recipe does not accept it."""

        def problem(message: str) -> Problem:
            return recipe.source.problem(self.place, f"{self.model.label} {message}")

        other = self.shell.label
        if self.missing and not (recipe.copy_missing_tensors or recipe.drop_extra_tensors):
            yield problem(
                f"lacks {_listed(self.missing)}, which {other} has. Set `missing_tensors: copy` "
                f"to take what is missing, unmerged, from {other}, or `extra_tensors: drop` to "
                "leave it out"
            )
        extra = [] if may_have_more or recipe.drop_extra_tensors else self.extra(recipe.is_layered)
        if extra:
            yield problem(
                f"has {_listed(extra)}, which {other} lacks. Set `extra_tensors: drop` to leave "
                "out what not all have"
            )
        for misfit in self.misfits[:SHOWN]:
            yield problem(f"does not fit: {misfit}")
        if len(self.misfits) > SHOWN:
            yield problem(f"does not fit in {len(self.misfits) - SHOWN} more tensors")


def _match(wanted: Wanted, views: list[_View], base_view: _View | None) -> Match:
    layers = wanted.layers or (None,) * len(views)
    found = [view.find(wanted, layer) for view, layer in zip(views, layers, strict=True)]
    base = base_view.find(wanted, wanted.base_layer) if base_view else None
    members = tuple(mine for mine in found if mine is not None)
    if len(members) < len(found) or (base_view and base is None):
        return Match(wanted, None, None)
    return Match(wanted, members, base)


def _kept(matches: list[Match], recipe: Recipe) -> list[Match]:
    """What goes into the result: with `extra_tensors: drop`, only what every model has."""
    if not recipe.drop_extra_tensors or recipe.copy_missing_tensors:
        return matches
    return [m for m in matches if m.members is not None or is_derived_buffer(m.tensor.name)]


def _listed(names: list[str]) -> str:
    count = len(names)
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return f"{count} tensor{'s' if count > 1 else ''} ({', '.join(names[:SHOWN])}{more})"


def _notes(matches: list[Match]) -> list[str]:
    mixed = [
        m.name
        for m in matches
        if m.members and m.tensor.dtype.kind is Kind.FLOAT and len({t.dtype for t in m.members}) > 1
    ]
    if not mixed:
        return []
    return [f"members store different float types, in {_listed(mixed)}; each is read as it is"]
