"""What a loss is to a plan: a name, the rows it takes, and parameters read off a signature.

A loss is a plain typed function decorated with `@loss` that builds a module with the interface
that sentence-transformers' trainer expects; `@wrapping` marks one that is put around another loss.
As with merge methods, every argument annotated with a `Param` is a parameter that a plan may set,
and checks, errors and the tables of docs/losses.md are made from it. They import torch when called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from ...errors import Problem, UsageError
from ...methods.registry import REQUIRED, parameters_of
from ...recipe.shape import unknown
from .settings import Setting

Model: TypeAlias = Any
"""A SentenceTransformer. Its class is not named here, because that would import torch."""

Module: TypeAlias = Any
"""A torch module with sentence-transformers' interface of a loss."""

RowKind = Literal["groups", "scored pairs", "teacher scores", "teacher vectors"]
"""What a row is to a loss, column by column: an anchor, its positives and its negatives; two texts
and the score of their similarity; a query, its documents and a teacher's scores of them; texts and
a teacher's embeddings of them."""


@dataclass(frozen=True)
class Entry:
    """What losses and wrappers share: a name, a summary, parameters, and the function behind."""

    name: str
    summary: str
    settings: Mapping[str, Setting]
    function: Callable[..., Module]

    def problems(self, parameters: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Everything that is wrong with these parameters; `where` is the parameter's name."""
        found = []
        for name, value in parameters.items():
            setting = self.settings.get(name)
            wrong = setting.check(value) if setting else unknown("parameter", name, self.settings)
            if wrong:
                found.append(Problem(name, wrong))
        found += [
            Problem(name, f"{self.name} needs it: {setting.help}")
            for name, setting in self.settings.items()
            if setting.default is REQUIRED and name not in parameters
        ]
        return tuple(found)

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as the function takes them: checked, converted.

        Raises:
            UsageError: when there is a problem with one.
        """
        if found := self.problems(parameters):
            raise UsageError("\n".join(f"{self.name}: {problem}" for problem in found))
        return {
            self.settings[name].value.argument: self.settings[name].convert(value)
            for name, value in parameters.items()
        }


@dataclass(frozen=True)
class Loss(Entry):
    """A loss by its name. `rows` is what it takes."""

    rows: RowKind

    def build(self, model: Model, positives: int = 1, **parameters: Any) -> Module:
        """The loss as a module for this model.

        Args:
            model: a SentenceTransformer.
            positives: how many columns after the first are positives; more than one only where
                `rows` is "groups".
            parameters: see `settings`.

        Raises:
            UsageError: when parameters are not right, do not go together, or do not suit the
                model.
        """
        values = self.values(parameters)
        if self.rows == "groups":
            return self.function(model, positives, **values)
        if positives != 1:
            raise UsageError(f"{self.name} takes {self.rows}, not {positives} positives a row")
        return self.function(model, **values)


@dataclass(frozen=True)
class Wrapper(Entry):
    """Something put around a loss, by its name."""

    def build(self, model: Model, inner: Module, **parameters: Any) -> Module:
        """The loss `inner` of this model with the wrapper around it; errors as those of `Loss`."""
        return self.function(model, inner, **self.values(parameters))


_LOSSES: dict[str, Loss] = {}
_WRAPPERS: dict[str, Wrapper] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def loss(name: str, *, rows: RowKind) -> Callable[[Function], Function]:
    """Register `(model, **parameters) -> module`, or `(model, positives, ...)` of "groups"."""

    def register(function: Function) -> Function:
        settings = _settings(function, skip=2 if rows == "groups" else 1)
        _LOSSES[name] = Loss(name, _summary(function), settings, function, rows)
        return function

    return register


def wrapping(name: str) -> Callable[[Function], Function]:
    """Register a function `(model, inner, **parameters) -> module`."""

    def register(function: Function) -> Function:
        _WRAPPERS[name] = Wrapper(name, _summary(function), _settings(function, skip=2), function)
        return function

    return register


def _settings(function: Callable[..., Any], skip: int) -> dict[str, Setting]:
    return {name: Setting.of(found) for name, found in parameters_of(function, skip).items()}


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").strip().split("\n")[0]


def available() -> Mapping[str, Loss]:
    """Every loss by name."""
    return dict(_LOSSES)


def wrappers() -> Mapping[str, Wrapper]:
    """Everything that can be put around a loss, by name."""
    return dict(_WRAPPERS)


def named(name: str) -> Loss:
    """The loss of this name.

    Raises:
        UsageError: when there is none; it names the nearest.
    """
    if name not in _LOSSES:
        raise UsageError(f"{name}: {unknown('loss', name, _LOSSES)}")
    return _LOSSES[name]


def wrapper(name: str) -> Wrapper:
    """The wrapper of this name.

    Raises:
        UsageError: when there is none; it names the nearest.
    """
    if name not in _WRAPPERS:
        raise UsageError(f"{name}: {unknown('wrapper', name, _WRAPPERS)}")
    return _WRAPPERS[name]
