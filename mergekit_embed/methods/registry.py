"""What a merge method is, and how one is registered.

A method is a plain typed function decorated with `@mixture` or `@consensus`. Its signature is its
reference: every annotated argument is a parameter that a recipe may set, and validation, the JSON
Schema and docs/methods are made from it. Other packages add methods through the entry-point group
`mergekit_embed.methods`: each entry point names a module whose import registers them.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, TypeVar

import numpy as np
from numpy.typing import NDArray

from .gram import Array

BaseRole = Literal["origin", "optional origin", "first member", "files"]
"""What `base_model` is to a method: the point deltas start from (needed, or when it is given), the
first of its members, or only where tokenizer and configuration come from."""

Unit = Literal["element", "row", "column", "tensor", "layer", "model"]
"""What counts as one vector: a row runs along the last dimension, a column along the first."""

StatisticsKind = Literal["fisher", "gram"]
"""What a method wants to have been measured of every member: the diagonal of the Fisher matrix, or
the Gram matrices of the linear layers' inputs."""

REQUIRED: Any = inspect.Parameter.empty

GRANULARITIES: tuple[Unit, ...] = ("element", "row", "tensor", "layer", "model")


@dataclass(frozen=True)
class Param:
    """The part of a parameter that its type cannot say; used in `Annotated[float, Param(...)]`.

    `minimum` and `maximum` are allowed themselves, `above` is not.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] | None = None
    name: str | None = None
    per_member: bool = False
    default: Any = REQUIRED


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as recipes see it."""

    name: str
    argument: str
    type: type
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    above: float | None
    choices: tuple[Any, ...] | None
    per_member: bool

    def check(self, value: Any) -> str | None:
        """What is wrong with this value for one member and one tensor; None when it is right."""
        if self.choices is not None:
            if not any(value == choice and type(value) is type(choice) for choice in self.choices):
                listed = ", ".join(spelled(choice) for choice in self.choices)
                return f"must be one of {listed}, not {spelled(value)}"
            return None
        if self.type is bool:
            return None if value in (0, 1) else f"must be true or false, not {spelled(value)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number, not {spelled(value)}"
        if not abs(value) <= sys.float_info.max:
            return f"must be finite, not {str(value)[:20]}"
        if self.type is int and value != int(value):
            return f"must be a whole number, not {value}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum:g}, not {value:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}, not {value:g}"
        if self.above is not None and value <= self.above:
            return f"must be above {self.above:g}, not {value:g}"
        return None

    def convert(self, value: Any) -> Any:
        """The checked value in the type that the method's function expects."""
        if self.choices is not None:
            return value
        return self.type(value)


def spelled(value: Any) -> str:
    """A value as YAML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    return f'"{value}"' if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    `function` takes a `Gram` (mixtures only) and the parameters, and returns coefficients
    (mixtures) or one of `Elementwise`; one with `counts` wants the number of members
    as `members`, one that is `grouped` the group of each member as `groups`. `granularity` is what
    counts as one vector where the recipe does not say. `unit`, when there is one, turns the
    parameters named in `unit_parameters` into what does; None leaves it to the recipe. `statistics`
    is what every member must come with.
    """

    name: str
    family: Literal["mixture", "consensus"]
    function: Callable[..., Any]
    base: BaseRole
    summary: str
    parameters: Mapping[str, Parameter]
    exactly: int | None = None
    at_least: int = 1
    units: tuple[Unit, ...] = GRANULARITIES
    granularity: Unit = "tensor"
    unit: Callable[..., Unit | None] | None = None
    unit_parameters: frozenset[str] = field(default_factory=frozenset)
    geometry: bool = True
    absolute: Callable[..., bool] | None = None
    counts: bool = False
    grouped: bool = False
    statistics: StatisticsKind | None = None

    def arguments(self, values: Mapping[str, Any], members: int) -> dict[str, Any]:
        """Keyword arguments of `function` from resolved parameter values."""
        found = {
            parameter.argument: values[name]
            for name, parameter in self.parameters.items()
            if name not in self.unit_parameters
        }
        if self.grouped:
            found["groups"] = values.get("groups")
        return {**found, "members": members} if self.counts else found

    def unit_of(self, values: Mapping[str, Any]) -> Unit | None:
        """The unit that the parameters ask for, if any."""
        if self.unit is None:
            return None
        chosen = {self.parameters[n].argument: values[n] for n in self.unit_parameters}
        return self.unit(**chosen)


_METHODS: dict[str, Method] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def parameters_of(function: Callable[..., Any], skip: int = 0) -> dict[str, Parameter]:
    """Read the parameters off a function's signature.

    Raises:
        TypeError: when an argument is not annotated with a type and a `Param`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found: dict[str, Parameter] = {}
    for argument in list(inspect.signature(function).parameters.values())[skip:]:
        hint = hints.get(argument.name)
        if hint is Members or hint == Groups:
            continue
        extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        param = next((extra for extra in extras if isinstance(extra, Param)), None)
        if hint is None or param is None:
            raise TypeError(
                f"{function.__name__}: annotate the argument {argument.name!r} as "
                "Annotated[float, Param('what it does')]"
            )
        declared = typing.get_args(hint)[0]
        parameter = Parameter(
            name=param.name or argument.name,
            argument=argument.name,
            type=float if param.per_member else declared,
            default=param.default if argument.default is REQUIRED else argument.default,
            help=param.help,
            minimum=param.minimum,
            maximum=param.maximum,
            above=param.above,
            choices=param.choices,
            per_member=param.per_member,
        )
        found[parameter.name] = parameter
    return found


def mixture(
    name: str,
    *,
    base: BaseRole,
    exactly: int | None = None,
    at_least: int = 1,
    units: tuple[Unit, ...] = GRANULARITIES[1:],
    granularity: Unit = "tensor",
    unit: Callable[..., Unit | None] | None = None,
    geometry: bool = True,
    absolute: Callable[..., bool] | None = None,
) -> Callable[[Function], Function]:
    """Register a mixture: a function `(gram, **parameters) -> coefficients (..., K)`.

    The merged vector is `o + sum c_k (x_k - o)`, with the base as `o` where `base` makes it the
    origin, else 0. `units` lists the granularities that make sense, `granularity` is the default
    one. Without `geometry` the function looks at nothing of the Gram matrix but its size, and the
    pass that computes it is saved; `absolute(**parameters)` says whether it wants L1 lengths too.
    """

    def register(function: Function) -> Function:
        own = parameters_of(function, skip=1)
        chosen = parameters_of(unit) if unit else {}
        _add(
            Method(
                name=name,
                family="mixture",
                function=function,
                base=base,
                summary=_summary(function),
                parameters={**own, **chosen},
                exactly=exactly,
                at_least=at_least,
                units=units,
                granularity=granularity,
                unit=unit,
                unit_parameters=frozenset(chosen),
                geometry=geometry,
                absolute=absolute,
                grouped="groups" in inspect.signature(function).parameters,
            )
        )
        return function

    return register


def consensus(
    name: str,
    *,
    base: BaseRole = "origin",
    exactly: int | None = None,
    statistics: StatisticsKind | None = None,
) -> Callable[[Function], Function]:
    """Register an elementwise method: a function `(**parameters) -> Elementwise`.

    `statistics` is what the method wants to have been measured of every member.
    """

    def register(function: Function) -> Function:
        _add(
            Method(
                name=name,
                family="consensus",
                function=function,
                base=base,
                summary=_summary(function),
                parameters=parameters_of(function),
                exactly=exactly,
                units=("tensor",),
                counts="members" in inspect.signature(function).parameters,
                statistics=statistics,
            )
        )
        return function

    return register


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").strip().split("\n")[0]


def _add(method: Method) -> None:
    present = _METHODS.get(method.name)
    if present is not None and present.function.__module__ != method.function.__module__:
        raise ValueError(
            f"the merge method {method.name!r} of {method.function.__module__} is already taken "
            f"by {present.function.__module__}"
        )
    _METHODS[method.name] = method


def registered() -> Mapping[str, Method]:
    """The methods registered so far, by name."""
    return dict(_METHODS)


Members = NewType("Members", int)
"""The annotation of an argument that is told how many members there are."""

Groups = Annotated[NDArray[np.int64] | None, "the group of each member"]
"""The annotation of an argument `groups` that is told which members belong together: int64 (K,),
the number of each member's group, or None where the recipe has no groups. A method without such an
argument refuses recipes with groups."""

Weights = Annotated[Array, Param("how much of the member", per_member=True, default=1.0)]
"""The annotation of the usual `weight` argument: float64, shape (K,)."""

PositiveWeights = Annotated[
    Array, Param("how much of the member", per_member=True, default=1.0, minimum=0.0)
]
"""Weights of a mean that makes no sense for negative ones."""
