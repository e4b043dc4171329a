from __future__ import annotations

import socket
from typing import Any

import pytest

from flywheel.schemas import MAX_SCHEMA, signature, violation
from flywheel.types import canonical_json
from tests.cpu_time import cpu_within

BOOKING = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z]"},
        "guests": {"type": "integer", "minimum": 1},
        "meal": {"enum": ["lunch", "dinner"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#"}}},
}
FILTER = {
    "$defs": {
        "filter": {
            "anyOf": [
                {"type": "object", "required": ["field"]},
                {"properties": {"and": {"items": {"$ref": "#/$defs/filter"}}}, "required": ["and"]},
                {"properties": {"or": {"items": {"$ref": "#/$defs/filter"}}}, "required": ["or"]},
            ]
        }
    },
    "properties": {"filter": {"$ref": "#/$defs/filter"}},
}


def tool(parameters: Any, name: str = "book") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(arguments: Any, name: str = "book") -> dict[str, Any]:
    return {"function": {"name": name, "arguments": canonical_json(arguments)}}


def judged(schema: Any, arguments: Any) -> str:
    return signature(schema).contradiction(arguments)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"city": "Paris"}, ""),
        ({"city": "Paris", "guests": 2.0, "meal": "lunch"}, ""),
        ({}, "/required"),
        ({"city": 5}, "/properties/city/type"),
        ({"city": "paris"}, "/properties/city/pattern"),
        ({"city": "Paris", "guests": 0}, "/properties/guests/minimum"),
        ({"city": "Paris", "guests": "2"}, "/properties/guests/type"),
        ({"city": "Paris", "meal": "tea"}, "/properties/meal/enum"),
        ({"city": "Paris", "secret@example.com": 1}, "/additionalProperties"),
    ],
)
def test_arguments_that_contradict_the_schema_are_found_with_their_place(
    arguments: Any, place: str
) -> None:
    assert judged(BOOKING, arguments) == place


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (TREE, {"children": [{"name": "a", "children": [{"name": "b"}]}]},
         {"children": [{"name": 1}]}),
        (FILTER, {"filter": {"and": [{"or": [{"field": "a"}]}]}},
         {"filter": {"and": [{"or": [{}]}]}}),
        ({"$defs": {"a/b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}},
         {"x": "a"}, {"x": 1}),
        ({"$schema": "http://json-schema.org/draft-07/schema#",
          "properties": {"x": {"items": [{"type": "string"}, {"type": "integer"}]}}},
         {"x": ["a", 1]}, {"x": [1, "a"]}),
        ({"properties": {"properties": {"type": "string"}, "items": {"type": "integer"}}},
         {"properties": "a", "items": 1}, {"items": "a"}),
    ],
)  # fmt: skip
def test_references_recursion_and_older_drafts_are_judged(schema: Any, good: Any, bad: Any) -> None:
    assert judged(schema, good) == ""
    assert judged(schema, bad) != ""


DOUBLING = {
    f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
    for i in range(60)
}
NESTED: Any = {"type": "string"}
for _ in range(28):
    NESTED = {"unevaluatedProperties": False, "allOf": [NESTED]}
UNJUDGED = {
    "none": None,
    "no schema": {"type": "no such type"},
    "not a regular expression": {"properties": {"x": {"pattern": "("}}},
    "look-ahead, which takes backtracking": {"properties": {"x": {"pattern": "^(?!a)"}}},
    "a huge automaton": {"properties": {"x": {"pattern": "((a{0,99}){0,99}){0,99}"}}},
    "many patterns": {
        "patternProperties": {f"x{{1,{i}}}": {"type": "null"} for i in range(1, 200)}
    },
    "refers to a file": {"properties": {"x": {"$ref": "file:///etc/hostname"}}},
    "refers to nothing": {"properties": {"x": {"$ref": "#/$defs/missing"}}},
    "refers to itself": {"$ref": "#"},
    "refers to itself in a circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
    },
    "refers to itself for a property": {
        "properties": {"x": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    },
    "doubles at each reference": {
        "$ref": "#/$defs/d0",
        "$defs": {**DOUBLING, "d60": {"type": "string"}},
    },
    "evaluates twice at each level": NESTED,
    "leads through too many references": {
        "$ref": "#/$defs/d0",
        "$defs": {
            **{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(900)},
            "d900": {"type": "string"},
        },
    },
    "moves its base": {"$id": "http://example.com/a", "properties": {"x": {"type": "null"}}},
    "refers dynamically": {"$dynamicRef": "#meta"},
    "draft 4": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "null"},
    "an unknown dialect": {"$schema": "http://example.com/dialect", "type": "null"},
    "too long": {"description": "x" * MAX_SCHEMA, "type": "null"},
}


@pytest.mark.parametrize("schema", UNJUDGED.values(), ids=UNJUDGED.keys())
def test_a_schema_that_cannot_be_judged_by_is_contradicted_by_nothing(schema: Any) -> None:
    with cpu_within(1):
        assert judged(schema, {"x": "abc"}) == ""


def test_no_schema_is_fetched_from_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        for schema in ({"$ref": url}, {"$schema": url}, {"$id": url, "$ref": "other"},
                       {"properties": {"x": {"allOf": [{"$ref": f"{url}#/a"}]}}}):  # fmt: skip
            assert judged(schema, {"x": 1}) == ""
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": "a" * 100_000 + "!"}),
        ({"properties": {"x": {"pattern": "(x+x+)+y"}}}, {"x": "x" * 100_000}),
        ({"properties": {"x": {"pattern": "(a|b)*a(a|b){1900}c"}}}, {"x": "abba" * 2_450}),
        ({"properties": {"x": {"pattern": "(a|b)*a(a|b){1900}c"}}}, {"x": "abba" * 100_000}),
        (
            {"properties": {"x": {"allOf": [{"pattern": f"a(a|b){{{i}}}c"} for i in range(50)]}}},
            {"x": "abba" * 1000},
        ),
        ({"properties": {"x": {"uniqueItems": True}}}, {"x": [[i] for i in range(50_000)]}),
        ({"properties": {"x": {"items": {"enum": list(range(3000))}}}}, {"x": [-1] * 50_000}),
        (FILTER, {"filter": {"and": [{"or": [{"and": [{"or": [{}] * 20}] * 20}] * 20}] * 20}}),
    ],
)
def test_judging_takes_no_longer_than_a_second(schema: Any, arguments: Any) -> None:
    with cpu_within(1):
        judged(schema, arguments)


def test_a_call_to_a_tool_that_was_not_offered_is_a_violation() -> None:
    assert "does not offer" in violation([call({}, name="pay")], [tool(BOOKING)])
    assert violation([call({}, name="pay")], []) == ""


def test_the_first_call_that_contradicts_is_named() -> None:
    calls = [call({"city": "Paris"}), call({"city": 5})]
    assert violation(calls, [tool(BOOKING), tool({}, name="pay")]) == (
        "tool_calls[1].arguments contradict the tool's schema at /properties/city/type"
    )
    assert violation(calls[:1], [tool(BOOKING)]) == ""
    assert violation([call({"any": 1})], [{"function": {"name": "book"}}]) == ""


def test_the_place_is_masked() -> None:
    schema = {"properties": {"jane@example.com": {"type": "string"}}}
    assert judged(schema, {"jane@example.com": 5}) == "/properties/<EMAIL_1>/type"


def test_a_judgement_does_not_depend_on_earlier_ones() -> None:
    deep: Any = {"children": []}
    for _ in range(20):
        deep = {"children": [deep]}
    assert judged(TREE, deep) == ""
    assert judged(TREE, {"name": 1}) == "/properties/name/type"
