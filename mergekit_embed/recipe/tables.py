"""Tables of the keys of a schema, for the pages that are made from one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..methods.registry import spelled
from .schema import IN_PLACE


def keys(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Every key of a model: its name, what it takes and by default has, what it means."""
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        kind = _kind(properties[name])
        default = "required" if field.is_required() else _default(field.default)
        yield f"`{name}`", f"{kind}{', ' + default if default else ''}", str(field.description)


def _default(default: Any) -> str:
    if not isinstance(default, bool | str | int | float):
        return ""
    if isinstance(default, float):
        return f"default {default:g}"
    return f"default {spelled(default) if isinstance(default, bool) else default}"


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    if "$ref" in schema:
        return "map"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        kinds = [_kind(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema == IN_PLACE:
        return "recipe"
    words = {"string": "text", "object": "map", "array": "list", "boolean": "true or false"}
    kind = str(schema.get("type", ""))
    return words.get(kind, kind)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a table in Markdown."""
    body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    if not body:
        return ["No parameters.\n"]
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {r} |" for r in body), ""]
