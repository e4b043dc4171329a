"""Whether the tool calls of an answer keep to the JSON Schemas of the tools they call.

Schemas come out of logs, so they are as hostile as the rest of a line. None is fetched from
anywhere, patterns match in linear time, and what judging can cost is counted before it begins: a
schema that is broken, refers elsewhere, or would take too long is one that nothing contradicts.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

import jsonschema_rs

from flywheel.redaction import mask_text
from flywheel.types import Json, canonical_json

MAX_SCHEMA = 32_768
"""Characters of a schema; longer ones are not judged by."""
MAX_PATTERNS = 50
"""Regular expressions of a schema: each may take `_PATTERN_BYTES`."""
MAX_WORK = 10_000_000
"""Keywords looked at for a value, times the size of the arguments: half a second at worst."""
_PATTERN_WORK = 1000
"""A pattern at its worst takes 43 us a character, where a keyword takes 50 ns."""
_PATTERN_BYTES = 256 * 1024
_SHALLOW = 4
"""Brackets of arguments that are small at a glance."""
_LEVELS = 200
"""How deep references and nesting may lead."""

_INSIDE = {
    "additionalItems", "additionalProperties", "contains", "items", "prefixItems",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
"""Keywords whose schemas apply to what is inside a value."""
_NAMED = {"properties", "patternProperties", "dependentSchemas", "dependencies"}
"""Keywords whose schemas have names."""
_ELSEWHERE = {"$dynamicRef", "$recursiveRef", "$id"}
"""Keywords that make a reference mean something else than its place in the schema."""
_LINEAR = jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES)
"""The engine without backtracking."""


def violation(calls: list[Json], tools: list[Json]) -> str:
    """How the calls contradict the tools, in one sentence; empty where they do not.

    A call to a tool that was not offered is a contradiction, unless no tools were logged at all.

    Args:
        calls: Tool calls whose arguments are JSON text.
        tools: The request's tools.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    for i, call in enumerate(calls if functions else []):
        function = functions.get(call["function"]["name"])
        if function is None:
            return f"tool_calls[{i}] calls a tool that the request does not offer"
        arguments = _value(call["function"]["arguments"])
        if place := signature(function.get("parameters")).contradiction(arguments):
            return f"tool_calls[{i}].arguments contradict the tool's schema at {place}"
    return ""


def is_schema(value: Any) -> bool:
    """Whether a value is a JSON Schema of a draft that is known; nothing is fetched to find out."""
    try:
        return bool(jsonschema_rs.meta.is_valid(value, _OFFLINE))
    except (ValueError, jsonschema_rs.ReferencingError):  # too deep; of a draft nobody knows
        return False


def signature(parameters: Json | None) -> Signature:
    """What a tool with this parameter schema accepts; equal schemas are compiled once."""
    return _signature(canonical_json(parameters))


class Signature:
    """A tool's parameter schema, ready to judge arguments."""

    def __init__(self, text: str) -> None:
        """Compile the schema, given as JSON; without one (``null``) everything is accepted."""
        schema = _value(text) if len(text) <= MAX_SCHEMA else None
        self._work = _Work(schema)
        self._validator = _compiled(schema)

    def contradiction(self, arguments: Any, text: str = "") -> str:
        """The place in the schema that the arguments contradict; empty where they do not.

        Empty, too, where the schema is no schema or judging by it would take too long. Their JSON
        text, where it is at hand, spares measuring small arguments.
        """
        if self._validator is None:
            return ""
        if not (text and self._small(text)) and not self._affordable(arguments):
            return ""
        if self._validator.is_valid(arguments):
            return ""
        error = next(self._validator.iter_errors(arguments))
        return mask_text("/" + "/".join(map(str, error.schema_path)))[:100]

    def _small(self, text: str) -> bool:
        """Whether arguments of this text are affordable even if all brackets nest."""
        brackets = text.count("{") + text.count("[")
        work = self._work.at(brackets) if brackets <= _SHALLOW else None
        return work is not None and work * 2 * len(text) <= MAX_WORK

    def _affordable(self, arguments: Any) -> bool:
        depth, size = _measure(arguments)
        work = self._work.at(depth)
        return work is not None and work * size <= MAX_WORK


@lru_cache(maxsize=64)
def _signature(text: str) -> Signature:
    return Signature(text)


def _compiled(schema: Any) -> jsonschema_rs.Validator | None:
    if not isinstance(schema, dict) or _patterns(schema) > MAX_PATTERNS:
        return None
    if "draft-04" in str(schema.get("$schema")):  # its ``id`` may move what a reference means
        return None
    try:
        return jsonschema_rs.validator_for(
            schema, validate_formats=False, pattern_options=_LINEAR, offline=True
        )
    except (ValueError, jsonschema_rs.ReferencingError):
        return None


def _patterns(node: Any) -> int:
    """How many regular expressions a schema holds, at least."""
    if isinstance(node, list):
        return sum(map(_patterns, node))
    if not isinstance(node, dict):
        return 0
    mapped = node.get("patternProperties")
    own = ("pattern" in node) + (len(mapped) if isinstance(mapped, dict) else 0)
    return own + sum(map(_patterns, node.values()))


def _measure(arguments: Any) -> tuple[int, int]:
    """How deep the arguments are nested, and how large they are in values and characters."""
    depth, size, level = -1, 0, [arguments]
    while level:
        depth += 1
        size += sum(1 + len(v) if isinstance(v, str | dict | list) else 1 for v in level)
        level = [c for v in level for c in _children(v)]
    return depth, size


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


class _Work:
    """How many keywords a schema looks at for one value, all its references followed.

    What is nested ``depth`` deep is looked at by no more keywords than the schema reaches in
    ``depth`` steps inside. A property is judged by one of ``properties``, so of those the most
    expensive counts; everything else adds up.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[tuple[str, int], int] = {}
        self._at: dict[int, int | None] = {}

    def at(self, depth: int) -> int | None:
        """The work for arguments nested that deep; ``None`` where it cannot be told."""
        if depth not in self._at:
            self._known.clear()
            try:
                self._at[depth] = self._of(self._schema, depth, _LEVELS)
            except ValueError:
                self._at[depth] = None
        return self._at[depth]

    def _of(self, node: Any, depth: int, levels: int) -> int:
        if depth < 0:
            return 0
        if not levels:
            raise ValueError("references lead too deep")
        if isinstance(node, list):
            return 1 + self._sum(node, depth, levels - 1)
        if not isinstance(node, dict):
            return 1
        if _ELSEWHERE & node.keys():
            raise ValueError("a reference may lead elsewhere")
        work = sum([1, *[self._keyword(k, v, depth, levels - 1) for k, v in node.items()]])
        # To know what is left unevaluated, the rest is evaluated once more.
        return work * (1 + any(k.startswith("unevaluated") for k in node))

    def _sum(self, nodes: list[Any], depth: int, levels: int) -> int:
        return sum([self._of(node, depth, levels) for node in nodes])

    def _keyword(self, key: str, value: Any, depth: int, levels: int) -> int:
        if key == "$ref" and isinstance(value, str):
            return self._reference(value, depth, levels)
        if key in ("$defs", "definitions"):
            return 0  # counted where they are referred to
        if key == "pattern":
            return _PATTERN_WORK
        if key in _NAMED and isinstance(value, dict):
            return self._named(key, list(value.values()), depth, levels)
        return self._of(value, depth - (key in _INSIDE), levels)

    def _named(self, key: str, schemas: list[Any], depth: int, levels: int) -> int:
        inside = depth - (key in ("properties", "patternProperties"))
        works = [self._of(schema, inside, levels) for schema in schemas]
        if key == "properties":
            return len(works) + max(works, default=0)
        return len(works) * (_PATTERN_WORK if key == "patternProperties" else 1) + sum(works)

    def _reference(self, ref: str, depth: int, levels: int) -> int:
        known = self._known.get((ref, depth))
        if known == 0:
            raise ValueError("a schema refers to itself for the same value")
        if known is None:
            self._known[ref, depth] = 0
            known = self._of(self._target(ref), depth, levels)
            self._known[ref, depth] = known
        return known

    def _target(self, ref: str) -> Any:
        root, slash, pointer = ref.partition("/")
        if root != "#":
            raise ValueError("a reference leads elsewhere")
        node = self._schema
        for step in unquote(pointer).split("/") if slash else []:
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(name)] if isinstance(node, list) else node[name]
            except (KeyError, IndexError, TypeError):
                raise ValueError("a reference leads nowhere") from None
        return node


def _value(text: str) -> Any:
    return json.loads(text)


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} lies elsewhere")


_OFFLINE = jsonschema_rs.Registry([], retriever=_refuse)
