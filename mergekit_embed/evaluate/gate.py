"""Gates: what a model must reach, as `mean >= base - 0.2`.

The grammar, whole:

    gate     = quantity ( ">=" | ">" | "<=" | "<" ) ( NUMBER | model [ ( "+" | "-" ) NUMBER ] )
    quantity = "mean" | "mean_of_types" | "in_domain" | "out_of_domain" | "task:" NAME
    model    = "base" | "first" | NAME

`first` is the first model of the command line, and so is `base` where no model is called so. Around
the last `+` or `-` there is a space, as names may have those signs in them.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import UsageError
from .compare import Comparison, Group, Row

NUMBER = r"\d+(?:\.\d+)?"
GATE = re.compile(
    r"\s*(?P<quantity>mean|mean_of_types|in_domain|out_of_domain|task:\s*(?P<task>[^<>=]*?))"
    r"\s*(?P<sign>>=|<=|>|<)\s*"
    rf"(?:(?P<number>-?{NUMBER})"
    rf"|(?P<model>[^<>=]*?)(?:\s+(?P<step>[+-])\s+(?P<change>{NUMBER}))?)\s*"
)
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
GROUPS: Mapping[str, Group] = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}


@dataclass(frozen=True)
class Gate:
    """A gate as it was written, and its parts; `change` is added to what `model` reaches."""

    text: str
    quantity: str
    task: str | None
    sign: str
    model: str | None
    change: float


@dataclass(frozen=True)
class Miss:
    """A gate that a row does not pass: what it reaches, and what it should."""

    gate: Gate
    row: Row
    value: float
    wanted: float

    def __str__(self) -> str:
        told = f"{self.row.label} misses `{self.gate.text.strip()}`"
        return f"{told}: {self.value:.2f}, not {self.gate.sign} {self.wanted:.2f}"


def parse(text: str) -> Gate:
    """The gate that is written so.

    Raises:
        UsageError: when it is none.
    """
    found = GATE.fullmatch(text)
    if not found or found["task"] == "" or found["model"] == "":
        raise UsageError(
            f"--gate {text!r} is no gate; write `mean >= base - 0.2`, `task:NAME > 71.5` or "
            "`out_of_domain >= NAME` (mean, mean_of_types, in_domain, out_of_domain, task:NAME)"
        )
    change = float(found["number"] or found["change"] or 0)
    if found["step"] == "-":
        change = -change
    quantity = "task" if found["task"] else found["quantity"]
    return Gate(text, quantity, found["task"], found["sign"], found["model"], change)


def check(gate: Gate, comparison: Comparison) -> list[Miss]:
    """The rows that do not pass a gate. The model that it names is not held against itself.

    Raises:
        UsageError: when it names a task, a group or a model that is not compared.
    """
    against = None if gate.model is None else _row(gate, comparison)
    wanted = gate.change + (0.0 if against is None else _value(gate, comparison, against))
    found = []
    for row in comparison.rows:
        if row is against:
            continue
        value = _value(gate, comparison, row)
        equal = math.isclose(value, wanted, rel_tol=0, abs_tol=1e-9)  # 70.2 - 0.2 is 70
        passes = gate.sign in (">=", "<=") if equal else SIGNS[gate.sign](value, wanted)
        if not passes:
            found.append(Miss(gate, row, value, wanted))
    return found


def _row(gate: Gate, comparison: Comparison) -> Row:
    names = [name for row in comparison.rows for name in (row.label, row.model)]
    if gate.model in names:
        return comparison.row(str(gate.model))
    if gate.model in ("base", "first"):
        return comparison.rows[0]
    listed = ", ".join(row.label for row in comparison.rows)
    raise UsageError(f"--gate {gate.text!r}: there is no model {gate.model}, but {listed}")


def _value(gate: Gate, comparison: Comparison, row: Row) -> float:
    if gate.task is not None:
        if gate.task not in row.scores:
            listed = ", ".join(row.scores)
            raise UsageError(f"--gate {gate.text!r}: there is no task {gate.task}, but {listed}")
        return row.scores[gate.task]
    if gate.quantity == "mean_of_types":
        return comparison.mean_of_types(row)
    if gate.quantity == "mean":
        return comparison.mean(row)
    group = GROUPS[gate.quantity]
    tasks = comparison.members_of(group)
    if not tasks:
        option = f"--{group} TASK,..."
        raise UsageError(f"--gate {gate.text!r}: no task is {group}; name some with {option}")
    return comparison.mean(row, tasks)


def refuse_unknown(
    gates: list[Gate], models: list[str], tasks: list[str], groups: set[Group | None]
) -> None:
    """Refuse gates of what is not compared, before anything is.

    Raises:
        UsageError: naming it.
    """
    for gate in gates:
        scores = dict.fromkeys(tasks, 0.0)
        rows = tuple(Row(name, "", None, scores) for name in models)
        if gate.model is not None:
            _row(gate, Comparison((), rows))
        grouped = gate.quantity in GROUPS and GROUPS[gate.quantity] not in groups
        if gate.task is not None or grouped:
            _value(gate, Comparison((), rows), rows[0])
