"""What a method, and the recipe's own keys, ask of the recipe as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import Problem
from ..methods import GRANULARITIES, Method, Parameter, available
from . import values
from .source import Source


def lists_of_models(data: Any) -> list[tuple[values.Path, list[Any]]]:
    """The lists of models that are merged with each other, each with its place in the recipe."""
    slices = data.get("slices")
    count = len(slices) if isinstance(slices, list) else 0
    places: list[values.Path] = [("models",)]
    places += [("slices", index, "sources") for index in range(count)]
    found = [(place, at(data, place)) for place in places]
    return [(place, models) for place, models in found if isinstance(models, list)]


def spelled(name: str) -> str:
    """Where a parameter of the whole merge belongs."""
    return f"`parameters: {{{name}: ...}}`"


def at(node: Any, path: values.Path) -> Any:
    """What is at a place of the recipe; None where there is nothing."""
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def unsuited(origin: Source, method: Method) -> list[Problem]:
    """What the method asks of the recipe as a whole: a base, a number of members, a value."""
    data = origin.data
    problems = []
    base = data.get("base_model")
    if method.base == "origin" and not base:
        message = f"{method.name} works on deltas and needs a base: the models' common start"
        problems.append(origin.problem(("base_model",), message))
    granularity = data.get("granularity") or method.granularity
    if granularity in GRANULARITIES and granularity not in method.units:
        message = f"{method.name} knows {', '.join(method.units)}, not {granularity}"
        problems.append(origin.problem(("granularity",), message))
    for place, models in lists_of_models(data):
        if models and all(isinstance(m, dict) and "model" in m for m in models):
            count = len(members_among(method, [str(m["model"]) for m in models], base))
            problems.extend(_miscounted(origin, method, count, place))
            problems.extend(_uneven(origin, models, place))
        problems.extend(_grouped(origin, method, models, place))
        problems.extend(_measured(origin, method, models, place))
    problems.extend(_unset(origin, method))
    return problems


def doubled(origin: Source) -> list[Problem]:
    """Edits that are there twice, and a stored type that is told in two places."""
    entries = origin.data.get("post")
    problems: list[Problem] = []
    seen: set[Any] = set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        for name in entry if isinstance(entry, dict) else ():
            here: values.Path = ("post", index, name)
            if name in seen:
                problems.append(origin.problem(here, "is there twice; keep one", key=True))
            elif name == "cast" and origin.data.get("out_dtype") is not None:
                message = "and `out_dtype` say the same; keep one"
                problems.append(origin.problem(here, message, key=True))
            seen.add(name)
    return problems


def _grouped(
    origin: Source, method: Method, models: list[Any], place: values.Path
) -> list[Problem]:
    """Groups are for the methods that know them, and for members."""
    problems = []
    able = sorted(name for name, known in available().items() if known.grouped)
    for index, model in enumerate(models):
        if not isinstance(model, dict) or "group" not in model:
            continue
        here = (*place, index, "group")
        if not method.grouped:
            message = f"{method.name} knows no groups; {', '.join(able)} does"
            problems.append(origin.problem(here, message, key=True))
        elif model.get("model") == origin.data.get("base_model"):
            message = "the base is where deltas start from, and is in no group"
            problems.append(origin.problem(here, message, key=True))
        elif origin.data.get("granularity") == "element":
            message = (
                "a group is measured as a whole, which single elements are not; leave the groups "
                "out, or set `granularity: row`"
            )
            problems.append(origin.problem(here, message, key=True))
    return problems


def _measured(
    origin: Source, method: Method, models: list[Any], place: values.Path
) -> list[Problem]:
    """Statistics are for the methods that weigh by them, which need them of every member."""
    problems = []
    for index, model in enumerate(models):
        if not isinstance(model, dict):
            continue
        given, here = model.get("statistics"), (*place, index)
        if given is not None and method.statistics is None:
            able = sorted(name for name, known in available().items() if known.statistics)
            message = f"{method.name} uses no statistics; {' and '.join(able)} do"
            problems.append(origin.problem((*here, "statistics"), message, key=True))
        elif given is None and method.statistics is not None:
            reference = model.get("model")
            name = reference if isinstance(reference, str) else "MODEL"
            folder = f"stats/{name.rstrip('/').rpartition('/')[2] or 'member'}"
            message = (
                f"{method.name} needs statistics of every member. Run `boom stats {name} "
                f"--data FILE -o {folder}`, and set `statistics: {folder}` beside the model"
            )
            problems.append(origin.problem(here, message))
    return problems


def _uneven(origin: Source, models: list[Any], place: values.Path) -> list[Problem]:
    """Layers are merged one with one, so every source of a slice needs as many."""
    ranges = [model.get("layer_range") for model in models]
    counts = {r[1] - r[0] for r in ranges if isinstance(r, list) and len(r) == 2 and _ints(r)}
    if len(counts) < 2:
        return []
    listed = " and ".join(str(count) for count in sorted(counts))
    return [origin.problem(place, f"a slice needs as many layers of each model, not {listed}")]


def _ints(values_: list[Any]) -> bool:
    return all(isinstance(value, int) for value in values_)


def members_among(method: Method, models: Sequence[str], base: str | None) -> list[int | None]:
    """Which of the listed models are members; None stands for a base that is not listed."""
    listed: list[int | None] = list(range(len(models)))
    if base is None or method.base == "files":
        return listed
    others: list[int | None] = [i for i, model in enumerate(models) if model != base]
    if method.base != "first member":
        return others
    start = models.index(base) if base in models else None
    return [start, *others]


def _miscounted(origin: Source, method: Method, count: int, place: values.Path) -> list[Problem]:
    if method.exactly is not None and count != method.exactly:
        wanted = f"exactly {method.exactly} model{'s' if method.exactly > 1 else ''}"
    elif count < method.at_least:
        wanted = f"at least {method.at_least} model{'s' if method.at_least > 1 else ''}"
    else:
        return []
    based = method.base.endswith("origin") and origin.data.get("base_model")
    beside = " beside the base" if based else ""
    return [origin.problem(place, f"{method.name} merges {wanted}{beside}, not {count}")]


def _unset(origin: Source, method: Method) -> list[Problem]:
    given = at(origin.data, ("parameters",))
    given = given if isinstance(given, dict) else {}
    return [
        origin.problem(("parameters",), f"{method.name} needs {spelled(name)}: {parameter.help}")
        for name, parameter in method.parameters.items()
        if _required(parameter) and name not in given
    ]


def _required(parameter: Parameter) -> bool:
    from ..methods.registry import REQUIRED

    return parameter.default is REQUIRED
