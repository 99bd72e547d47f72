"""One parameter of a loss: what a plan may give for it, and what the loss then gets."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...methods.registry import Parameter, spelled


@dataclass(frozen=True)
class Setting:
    """One parameter of a loss, as plans see it: a value, perhaps none, or a list of values."""

    value: Parameter
    optional: bool = False
    many: bool = False

    @classmethod
    def of(cls, parameter: Parameter) -> Setting:
        """Read `X`, `tuple[X, ...]`, or either `| None`, off the type of a parameter."""
        kinds = typing.get_args(parameter.type)
        optional = type(None) in kinds
        kind = next(k for k in kinds if k is not type(None)) if optional else parameter.type
        many = typing.get_origin(kind) is tuple
        one = replace(parameter, type=typing.get_args(kind)[0] if many else kind)
        return cls(one, optional=optional, many=many)

    @property
    def help(self) -> str:
        """What the parameter does, in one line."""
        return self.value.help

    @property
    def default(self) -> Any:
        """Its value where a plan does not say; `REQUIRED` when there is none."""
        return self.value.default

    def check(self, value: Any) -> str | None:
        """What is wrong with this value; None when it is right."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self.value.check(value)
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            return f"must be a list of numbers, not {spelled(value)}"
        return next((wrong for item in value if (wrong := self.value.check(item))), None)

    def convert(self, value: Any) -> Any:
        """The checked value in the type that the loss expects."""
        if value is None:
            return None
        if self.many:
            return tuple(self.value.convert(item) for item in value)
        return self.value.convert(value)

    def allowed(self) -> str:
        """The values it may have, in words."""
        one = _allowed(self.value)
        words = f"list of numbers, each {one}" if self.many else one
        return f"{words}; or nothing" if self.optional else words


def _allowed(parameter: Parameter) -> str:
    if parameter.choices is not None:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.type is bool:
        return "true, false"
    if parameter.above is not None:
        return f"above {parameter.above:g}"
    low, high = parameter.minimum, parameter.maximum
    if low is None or high is None:
        return "any" if low is None else f"{low:g} or more"
    return f"{low:g} to {high:g}"
