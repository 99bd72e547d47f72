"""Which statistics belong to which tensors, and what keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import Checkpoint, Component, Matcher, Statistics, Tensor, open_statistics
from ..errors import CheckpointError, Problem, RecipeError
from ..methods import StatisticsKind
from ..recipe import Member, Recipe
from .matching import SHOWN, Match
from .models import Models
from .plan import Measured


def match_statistics(
    recipe: Recipe, models: Models, matches: Sequence[Match]
) -> tuple[dict[str, Measured], list[Problem], list[str]]:
    """What was measured of every tensor to be merged, every problem, and notes.

    Tensors that have not been measured in any member are left out: they are merged by their
    weighted mean.

    Raises:
        RecipeError: when statistics are not there.
        CheckpointError: when a file of them is broken.
    """
    kind = recipe.method.statistics
    if kind is None:
        return {}, [], []
    members = [member for one in recipe.slices for member in one]
    views = {view.member.place: view for view in _views(recipe, models, kind, members)}
    found: dict[str, Measured] = {}
    bare: list[str] = []
    for match in matches:
        own = [views[member.place] for member in recipe.slices[match.wanted.slice]]
        measured = _measured(match, own)
        if measured is not None:
            found[match.name] = measured
        elif not any(view.has(match, at) for at, view in enumerate(own)):
            bare.append(match.name)
    problems = [problem for view in views.values() for problem in view.problems(recipe)]
    what = {"fisher": "Fisher", "gram": "Gram matrix"}[kind]
    notes = [f"no {what} of {_listed(bare)}: merged by the weighted mean"]
    return found, problems, notes if bare else []


def _views(
    recipe: Recipe, models: Models, kind: StatisticsKind, members: Sequence[Member]
) -> list[_View]:
    found, problems = [], []
    for member in members:
        place = (*member.place, "statistics")
        assert member.statistics is not None  # the recipe has been checked
        try:
            folder = statistics_folder(recipe, member.statistics)
        except FileNotFoundError as error:
            advice = f"measure the model with `boom stats {member.reference} --data FILE -o DIR`"
            problems.append(recipe.source.problem(place, f"{error}; {advice}"))
            continue
        try:
            statistics = open_statistics(folder, kind)
        except CheckpointError as error:
            message = str(error).removeprefix(f"{error.path}: ")
            where = recipe.source.where(place)
            raise CheckpointError(error.path, f"{message} ({where})") from error
        found.append(_View(member, models.opened(member.reference), statistics, kind))
    if problems:
        raise RecipeError(problems)
    return found


def statistics_folder(recipe: Recipe, reference: str) -> Path:
    """The folder of statistics: counted from the recipe's folder, then the working directory.

    Raises:
        FileNotFoundError: when it is in neither.
    """
    tried = []
    for start in recipe.source.folders:
        path = start / Path(reference).expanduser()
        if path.is_dir():
            return path
        tried.append(str(path))
    raise FileNotFoundError(f"there is no folder {' or '.join(dict.fromkeys(tried))}")


class _View:
    """The statistics of one member, seen through the names of its tensors."""

    def __init__(
        self, member: Member, model: Checkpoint, statistics: Statistics, kind: StatisticsKind
    ):
        self.member, self.model, self.statistics, self.kind = member, model, statistics, kind
        self.matcher = Matcher(statistics.tensors)
        self.missing: list[str] = []
        self.misfits: list[str] = []

    def key(self, match: Match, at: int) -> str | None:
        """What the statistics call the tensor that this member, at `at` in its slice, gives."""
        assert match.members is not None
        component: Component = self.model.components[match.component.role]
        return self.matcher.find(component.key(match.members[at].name))

    def has(self, match: Match, at: int) -> bool:
        """True when the tensor has been measured."""
        return self.key(match, at) is not None

    def misfit(self, name: str, tensor: Tensor) -> str | None:
        """What keeps a statistic from being that of a tensor."""
        shape = self.statistics.tensors[name].shape
        if self.kind == "fisher":
            wanted = tensor.shape
        elif len(tensor.shape) != 2:
            return f"{name} is of a tensor {list(tensor.shape)}, which is no linear layer's"
        else:
            wanted = (tensor.shape[0 if name in self.statistics.transposed else 1],) * 2
        if shape == wanted:
            return None
        return f"{name} has shape {list(shape)}, and {list(wanted)} would fit the model"

    def problems(self, recipe: Recipe) -> list[Problem]:
        """What does not fit, all of it."""
        mine = {c.key(name) for c in self.model.components.values() for name in c.tensors}
        model = Matcher(mine)
        foreign = [name for name in self.statistics.tensors if model.find(name) is None]
        advice = f"Measure it anew: `boom stats {self.member.reference} --data FILE -o DIR`"
        told = []
        if foreign:
            told.append(f"are of another model: {_listed(foreign)} are not in it. {advice}")
        if self.missing:
            told.append(f"lack {_listed(self.missing)}, which others have. {advice}")
        told += [f"do not fit: {misfit}" for misfit in self.misfits[:SHOWN]]
        if len(self.misfits) > SHOWN:
            told.append(f"do not fit in {len(self.misfits) - SHOWN} more tensors")
        place = (*self.member.place, "statistics")
        folder, label = self.statistics.root, self.model.label
        return [recipe.source.problem(place, f"{folder}, of {label}, {one}") for one in told]


def _measured(match: Match, views: Sequence[_View]) -> Measured | None:
    """What was measured of one tensor; None where it is not whole, which the views then know."""
    assert match.members is not None
    names = [view.key(match, at) for at, view in enumerate(views)]
    if all(name is None for name in names):
        return None
    tensors, norms, turned = [], [], set()
    for view, name, tensor in zip(views, names, match.members, strict=True):
        if name is None:
            view.missing.append(match.name)
            continue
        wrong = view.misfit(name, tensor)
        if wrong:
            view.misfits.append(wrong)
            continue
        tensors.append(view.statistics.tensors[name])
        norms.append(view.statistics.norm or 1.0)
        turned.add(name in view.statistics.transposed)
    if len(tensors) < len(names):
        return None
    if len(turned) > 1:
        views[-1].misfits.append(f"{match.name} is stored (in, out) in some members alone")
        return None
    labels = tuple(str(view.statistics.root) for view in views)
    elementwise = views[0].kind == "fisher"
    return Measured(tuple(tensors), labels, tuple(norms), elementwise, turned.pop())


def _listed(names: Sequence[str]) -> str:
    count = len(names)
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return f"{count} tensor{'s' if count > 1 else ''} ({', '.join(names[:SHOWN])}{more})"
