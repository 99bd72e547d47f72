"""The JSON Schema of training plans, for editors."""

from __future__ import annotations

from typing import Any

from . import losses
from .schedules import ORDERS
from .schema import NAME, PERCENT_SCHEMA, PlanFile


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a plan, with the names of losses and schedules.

    The short forms that the schema's validators know stand beside the long ones.
    """
    schema = PlanFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    names = {
        "LossEntry": sorted(losses.available()),
        "WrapperEntry": sorted(losses.wrappers()),
        "OrderEntry": list(ORDERS),
    }
    short: dict[str, dict[str, Any]] = {"MemberEntry": PERCENT_SCHEMA}
    for entry, known in names.items():
        short[entry] = {"enum": known}
        schema["$defs"][entry]["properties"]["name"]["enum"] = known
    schema["$defs"]["MemberEntry"]["oneOf"] = [
        {"required": ["ratio"], "properties": {"each": False}},
        {"required": ["complement"], "properties": {"each": False}},
        {"required": ["dirichlet"], "properties": {"each": False}},
        {"required": ["each"], "properties": {"complement": False, "dirichlet": False}},
    ]
    schema["properties"]["data"]["propertyNames"] = {"pattern": f"^{NAME}$"}
    return {key: _with_short_forms(value, short) for key, value in schema.items()}


def _with_short_forms(node: Any, short: dict[str, dict[str, Any]]) -> Any:
    """The same schema, with the short form beside every reference to an entry that has one."""
    if isinstance(node, list):
        return [_with_short_forms(item, short) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: _with_short_forms(value, short) for key, value in node.items()}
    entry = str(inner.get("$ref", "")).removeprefix("#/$defs/")
    if entry not in short:
        return inner
    reference = {"$ref": inner.pop("$ref")}
    return {**inner, "anyOf": [short[entry], reference]}
