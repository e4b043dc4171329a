"""What is wrong with a file, in the words of who wrote it: file, field, value, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flywheel.types import Json

_TYPES = ("bool", "int", "float", "str", "datetime")
"""What pydantic calls the types that a field may have; no field has such a name."""


def explained(source: str, problems: Sequence[Any], schema: Json) -> list[str]:
    """One line for each field: what each of a field's types finds wrong stands together.

    Args:
        source: The file.
        problems: As pydantic lists them.
        schema: JSON Schema of what was to be read; says what is allowed.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        parts = [p for p in problem["loc"] if not (isinstance(p, str) and "[" in p)]
        if parts and parts[-1] in _TYPES:
            parts.pop()
        message, shown = _explain(problem, parts, schema)
        where = ".".join(map(str, parts)) or "experiment"
        messages = found.setdefault((where, shown), [])
        if message not in messages:
            messages.append(message)
    return [
        f"{source}: {where}: {', or '.join(messages)}{shown}"
        for (where, shown), messages in found.items()
    ]


def _explain(problem: Any, parts: Sequence[Any], schema: Json) -> tuple[str, str]:
    """What is wrong with the field, and what stands there if it may be shown."""
    if problem["type"] == "extra_forbidden":
        return f"unknown field; allowed: {', '.join(_fields_at(parts[:-1], schema))}", ""
    if problem["type"] == "missing":
        return "is required and missing", ""
    value = problem["input"]
    hidden = isinstance(value, dict) or parts[-1:] == ["api_key_env"]  # may be the key itself
    shown = "" if hidden else f" (got {_shorten(repr(value))})"
    return problem["msg"].removeprefix("Value error, "), shown


def _fields_at(path: Sequence[Any], schema: Json) -> list[str]:
    place: Json = schema
    for part, after in zip(path, [*path[1:], ""], strict=False):
        options = [place] if isinstance(part, int) else [place.get("properties", {}).get(part, {})]
        if isinstance(part, int):
            options = [place.get("items", {})]
        option = options[0]
        for choice in option.get("anyOf", option.get("oneOf", [option])):
            if ("items" if isinstance(after, int) else "$ref") in choice:
                option = choice
        if "$ref" in option:
            option = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
        place = option
    return sorted(place.get("properties", {}))


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
