"""What a tool's arguments mean, by the tool's own JSON Schema: equal meanings, equal JSON.

Each value is brought into one spelling, led by the part of the schema that it stands under: 5.0 is
5, a member of an ``enum`` has the case that the schema gives it, dates and times are instants, the
items of ``uniqueItems`` are sorted, properties equal to their declared default are left out, text
is NFC with single spaces. References, ``allOf`` and choices (``anyOf``, ``oneOf``: the first branch
that fits) are followed. Where a schema says nothing, or is no schema, only spelling is evened out.

Schemas and arguments come from traffic: what takes too many steps raises `TooMuchWorkError`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import unquote

from flywheel.schemas import MAX_SCHEMA, is_schema
from flywheel.scoring.instants import FORMATS, instant
from flywheel.scoring.text import one_space
from flywheel.types import Json, canonical_bytes, json_text

MAX_STEPS = 50_000
"""Parts of a schema looked at for one call's values: a tenth of a second."""
_DEFAULT_STEPS = 500
"""Of them for one default; a default that takes more is none."""
_MAX_NODES = 500
"""Nodes that one schema keeps compiled from call to call, 2 kB each."""
_MAX_REFERENCES = 100
"""References of one schema that are followed."""
_VALUES, _SHORT = 256, 200
"""Values that one schema keeps the meaning of, and how many bytes they have at most."""
_SCHEMAS = 128
"""Schemas that are kept compiled; the least recently used leave."""
_FIT_DEPTH = 3
"""How far into a value a choice is decided."""


class TooMuchWorkError(ValueError):
    """The schema leads too far for these arguments; they are to be read without it."""


def parameters_of(schema: Any) -> Parameters:
    """What a tool with this parameter schema is called with; equal schemas are compiled once."""
    return _parameters(json_text(schema))


@lru_cache(maxsize=_SCHEMAS)
def _parameters(text: str) -> Parameters:
    return Parameters(text)


class Parameters:
    """A tool's parameter schema, ready to read arguments by."""

    problem: str
    """Why arguments are read without the schema; empty where they are not."""

    def __init__(self, text: str) -> None:
        """Compile the schema, given as JSON; ``null`` says nothing about the arguments."""
        self._text, self.problem = _checked(text)
        self._schema = _Schema(json.loads(self._text))

    def read(self, arguments: Json) -> Arguments:
        """The meaning of arguments.

        Raises:
            TooMuchWorkError: Only without the schema they can be read in time.
            RecursionError: They are nested too deep.
        """
        try:
            return Arguments(self._schema, arguments)
        finally:
            self._forget()

    def meaning(self, value: Any) -> Any:
        """The meaning of a whole value that the schema is about, of whatever JSON type.

        Raises:
            TooMuchWorkError: Only without the schema it can be read in time.
            RecursionError: It is nested too deep.
        """
        try:
            return _Reading(self._schema).meaning(self._schema.root, value)
        finally:
            self._forget()

    def _forget(self) -> None:
        if len(self._schema.nodes) > _MAX_NODES:
            self._schema = _Schema(json.loads(self._text))


class Arguments:
    """The meaning of one call's arguments."""

    by_name: dict[str, bytes]
    """What was sent, in one spelling."""

    def __init__(self, schema: _Schema, raw: Json) -> None:
        reading = _Reading(schema)
        self._raw = raw
        self._node = reading.choose(schema.root, raw)
        self.by_name = {
            name: reading.spelled(self._node.child(name), value) for name, value in raw.items()
        }

    def written(self, name: str) -> Any:
        """An argument as it was sent."""
        return self._raw[name]

    @property
    def defaults(self) -> Mapping[str, bytes]:
        """What arguments mean that are not sent."""
        return self._node.defaults

    @cached_property
    def key(self) -> frozenset[tuple[str, bytes]]:
        """Equal for arguments that mean the same."""
        return frozenset(self.by_name.items() - self.defaults.items())

    def is_of_type(self, name: str, wanted: Arguments) -> bool:
        """Whether this argument has the JSON type that was wanted, and that its schema takes."""
        got, due = _types(self._raw[name]), _types(wanted._raw[name])
        taken = wanted._node.child(name).types
        return not got.isdisjoint(due) and (taken.isdisjoint(due) or not taken.isdisjoint(got))


class _Reading:
    """One reading of arguments, with the steps it may take."""

    def __init__(self, schema: _Schema, steps: int = MAX_STEPS) -> None:
        self._schema = schema
        self._steps = steps

    def spelled(self, node: _Node, value: Any) -> bytes:
        """The meaning of a value as JSON; short values recur, so the last ones are kept."""
        written = canonical_bytes(value)
        known = self._schema.known
        if kept := known.get((id(node), written)):
            spelled, steps = kept
            self._spend(steps)
            return spelled
        before = self._steps
        spelled = canonical_bytes(self.meaning(node, value))
        if len(written) <= _SHORT:
            if len(known) >= _VALUES:
                known.clear()
            known[id(node), written] = spelled, before - self._steps
        return spelled

    def meaning(self, node: _Node, value: Any) -> Any:
        """The one spelling of a value under a node."""
        self._spend(node.cost)
        if node.choices:
            node = self.choose(node, value)
        kind = type(value)
        if kind is str:
            return node.text(value)
        if kind is float:
            return _number(value)
        if kind is dict:
            return self._members(node, value)
        if kind is list:
            items = [self.meaning(node.item(i), item) for i, item in enumerate(value)]
            return sorted(items, key=canonical_bytes) if node.unordered else items
        return value

    def choose(self, node: _Node, value: Any) -> _Node:
        """Add to a node, of each of its choices, the first branch that fits the value."""
        while node.choices:
            fitting = (b for b in node.choices[0] if self._fits(self._schema.node((b,)), value))
            node = node.decided(next(fitting, True))
            self._spend(node.cost)
        return node

    def _members(self, node: _Node, value: Json) -> Json:
        meant = {name: self.meaning(node.child(name), item) for name, item in value.items()}
        for name, default in node.defaults.items():
            if name in meant and canonical_bytes(meant[name]) == default:
                del meant[name]
        return meant

    def _fits(self, node: _Node, value: Any, depth: int = _FIT_DEPTH) -> bool:
        """Whether a node may well mean a value: types, enums, properties, a few levels deep."""
        self._spend(node.cost)
        if not node.takes(value):
            return False
        if not depth or not (node.choices or isinstance(value, dict | list)):
            return True
        inside: Iterable[tuple[_Node, Any]] = ()
        if isinstance(value, dict):
            inside = ((node.child(name), item) for name, item in value.items())
        elif isinstance(value, list):
            inside = ((node.item(i), item) for i, item in enumerate(value))
        return all(self._fits(child, item, depth - 1) for child, item in inside) and all(
            any(self._fits(self._schema.node((b,)), value, depth - 1) for b in branches)
            for branches in node.choices
        )

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TooMuchWorkError("the schema leads too far")


class _Schema:
    """A JSON Schema and its nodes, which are made when a value first stands under them."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self.nodes: dict[tuple[int, ...], _Node] = {}
        self.known: dict[tuple[int, bytes], tuple[bytes, int]] = {}
        """By node and JSON: what a value means, and the steps it took to find out."""
        self._targets: dict[str, Any] = {}
        self.root = self.node((document,))

    def node(self, parts: tuple[Any, ...], decided: tuple[int, ...] = ()) -> _Node:
        """What these parts of the document say together, some choices being decided."""
        key = (*map(id, parts), -1, *decided)
        if key not in self.nodes:
            self.nodes[key] = _Node(self, parts, decided)
        return self.nodes[key]

    def gathered(self, parts: tuple[Any, ...]) -> list[Json]:
        """The parts, and what they refer to and consist of, each once."""
        found: dict[int, Json] = {}
        waiting = list(reversed(parts))
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict) and id(part) not in found:
                found[id(part)] = part
                waiting += reversed(part.get("allOf", ()))
                if "$ref" in part:
                    waiting.append(self._target(part["$ref"]))
        return list(found.values())

    def _target(self, ref: str) -> Any:
        """What a reference leads to in this document; nothing is known of what lies elsewhere."""
        if ref not in self._targets and len(self._targets) < _MAX_REFERENCES:
            self._targets[ref] = self._looked_up(ref)
        return self._targets.get(ref, True)

    def _looked_up(self, ref: str) -> Any:
        root, _, pointer = ref.partition("#")
        place: Any = self._document if not root and pointer[:1] in ("", "/") else True
        for step in unquote(pointer).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            try:
                place = place[int(name)] if isinstance(place, list) else place[name]
            except (KeyError, IndexError, TypeError, ValueError):
                return True
        return place if is_schema(place) else True


class _Node:
    """What a schema says about the values at one place."""

    def __init__(self, schema: _Schema, given: tuple[Any, ...], decided: tuple[int, ...]) -> None:
        self._schema, self._given, self._decided = schema, given, decided
        self._parts = schema.gathered(given)
        self._children: dict[str | int | None, _Node] = {}
        self.cost = len(self._parts)
        choices = [group for key in ("anyOf", "oneOf") for group in self._all(key)]
        self.choices = [group for group in choices if id(group) not in decided]
        kinds = [frozenset([t] if isinstance(t, str) else t) for t in self._all("type")]
        self.types: frozenset[str] = frozenset.intersection(*kinds) if kinds else frozenset()
        items = [*self._all("prefixItems"), *self._all("items")]
        self._tuples = [part for part in items if isinstance(part, list)]
        self._items = tuple(part for part in items if not isinstance(part, list))
        self.unordered = any(self._all("uniqueItems")) and not self._tuples
        self._required = {name for names in self._all("required") for name in names}
        self._properties = {name for members in self._all("properties") for name in members}
        self._closed = False in self._all("additionalProperties")
        self._closed &= not self._all("patternProperties")
        self._enum = [*self._all("enum"), *([value] for value in self._all("const"))][:1]
        self._names = _by_folded(self._enum[0]) if self._enum else {}
        self._form = next(iter(self._all("format")), "")
        if not (self._form or self._enum or self._all("pattern")):
            self._form = "date-time"  # a text that is one from end to end

    @cached_property
    def defaults(self) -> dict[str, bytes]:
        """By property that may be left out: what it means then."""
        defaults: dict[str, bytes] = {}
        self.__dict__["defaults"] = defaults  # what a default that holds itself finds
        for name in self._properties - self._required:
            child = self.child(name)
            reading = _Reading(self._schema, _DEFAULT_STEPS)
            for value in child._all("default")[:1]:
                with suppress(TooMuchWorkError):
                    defaults[name] = canonical_bytes(reading.meaning(child, value))
        return defaults

    def decided(self, branch: Any) -> _Node:
        """The node that has the first of its choices decided for a branch."""
        group = id(self.choices[0])
        return self._schema.node((*self._given, branch), (*self._decided, group))

    def child(self, name: str) -> _Node:
        """What is said about a property."""
        known = name if name in self._properties else None
        if known not in self._children:
            named = [m[name] for m in self._all("properties") if name in m]
            parts = named or self._all("additionalProperties")
            self._children[known] = self._schema.node(tuple(parts))
        return self._children[known]

    def item(self, index: int) -> _Node:
        """What is said about an item."""
        index = min(index, max(map(len, self._tuples), default=0))
        if index not in self._children:
            parts = tuple(items[index] for items in self._tuples if index < len(items))
            self._children[index] = self._schema.node(parts or self._items)
        return self._children[index]

    def text(self, value: str) -> str:
        """The one spelling of a text."""
        text = one_space(value)
        if self._names:
            return self._names.get(text.casefold(), text)
        return instant(text, self._form) if self._form in FORMATS else text

    def takes(self, value: Any) -> bool:
        """Whether a value may stand here, as far as can be seen without looking into it."""
        if self.types and self.types.isdisjoint(_types(value)):
            return False
        if self._enum and not self._is_member(value):
            return False
        if not isinstance(value, dict):
            return True
        open_for = not self._closed or self._properties >= value.keys()
        return open_for and self._required <= value.keys()

    def _is_member(self, value: Any) -> bool:
        if isinstance(value, str):
            return one_space(value).casefold() in map(_folded, self._enum[0])
        return any(type(value) is type(member) and value == member for member in self._enum[0])

    def _all(self, keyword: str) -> list[Any]:
        return [part[keyword] for part in self._parts if keyword in part]


def _checked(text: str) -> tuple[str, str]:
    """The schema to read by, and what is wrong with the one that was given."""
    if len(text) > MAX_SCHEMA:
        return "true", f"longer than {MAX_SCHEMA:,} characters"
    try:
        schema = json.loads(text)
        usable = schema is None or is_schema(schema)
    except (ValueError, RecursionError):
        usable = False
    return (text, "") if usable else ("true", "invalid")


def _by_folded(members: list[Any]) -> dict[str, str]:
    """Texts of an enum by what they are without case, but for those that only case tells apart."""
    texts = {member for member in members if isinstance(member, str)}
    counts = Counter(map(_folded, texts))
    return {_folded(text): text for text in texts if counts[_folded(text)] == 1}


def _folded(value: Any) -> Any:
    return one_space(value).casefold() if isinstance(value, str) else None


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _types(value: Any) -> frozenset[str]:
    """What JSON Schema calls a value's type."""
    if isinstance(value, float) and value.is_integer():
        return _TYPES[int]
    return _TYPES[type(value)]


_TYPES: dict[type, frozenset[str]] = {
    str: frozenset({"string"}),
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    dict: frozenset({"object"}),
    list: frozenset({"array"}),
    type(None): frozenset({"null"}),
}
