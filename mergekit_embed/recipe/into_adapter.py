"""What a recipe must not ask for when its result is an adapter."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import Problem
from ..methods import Method
from .source import Source

ADVICE = (
    "Leave `adapter_output` out, and make an adapter of the merged model with `boom extract-lora`"
)


def unsuited_for_an_adapter(origin: Source, method: Method) -> list[Problem]:
    """Everything in a recipe with `adapter_output` that no sum of the members' factors can give."""
    if origin.data.get("adapter_output") in (None, False):
        return []
    return [*_methods(origin, method), *_keys(origin)]


def _methods(origin: Source, method: Method) -> Iterator[Problem]:
    """An adapter is a sum of adapters where the result is `base + sum c_k (x_k - base)`."""
    if method.family != "mixture":
        told = f"{method.name} decides element by element, which gives no sum of adapters"
        yield origin.problem(("merge_method",), f"{told}. {ADVICE}")
    elif method.geometry and not method.base.endswith("origin"):
        told = f"{method.name} measures whole weights, and gives no sum of adapters"
        yield origin.problem(("merge_method",), f"{told}. {ADVICE}")
    elif method.geometry and not origin.data.get("base_model"):
        told = "measures whole weights without a base; set it, so that it merges what was learned"
        yield origin.problem(("base_model",), f"{method.name} {told}")
    granularity = origin.data.get("granularity")
    if granularity in {"row", "element"}:
        told = f"a {granularity} of its own coefficients gives no sum of adapters"
        yield origin.problem(
            ("granularity",), f"{told}; use tensor, layer or model, or else: {ADVICE}"
        )


def _keys(origin: Source) -> Iterator[Problem]:
    data = origin.data
    if data.get("slices") is not None:
        told = "an adapter changes the layers that its base has, and cannot move them"
        yield origin.problem(("slices",), f"{told}; use `models`")
    edits = data.get("post")
    for index, edit in enumerate(edits if isinstance(edits, list) else []):
        if isinstance(edit, dict) and "cast" not in edit:
            yield origin.problem(("post", index), f"edits need whole weights. {ADVICE}")
    if data.get("allow_non_finite") is True:
        told = "an adapter that is not finite is never written; leave it out"
        yield origin.problem(("allow_non_finite",), told)
