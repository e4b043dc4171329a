"""Which tool calls mean the same, by their own schemas, and what is said of those that do not."""

from __future__ import annotations

import copy
import json
import random
import socket
from typing import Any

import pytest

from flywheel.scoring import METRICS, misses_by_kind, score
from flywheel.scoring.tool_calls import Comparison, UnscorableError, compare
from flywheel.types import Completion, Json, Miss, Record, Score, ScoreStatus
from tests.cpu_time import cpu_within

STRING: Json = {"type": "string"}
MOMENT: Json = {"type": "string", "format": "date-time"}
UNIT: Json = {"type": "string", "enum": ["Celsius", "Fahrenheit"]}


def tool(properties: Json, name: str = "f", **more: Any) -> Json:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def message(*calls: tuple[str, Any], content: str | None = None) -> Json:
    sent = [
        {"id": "c", "type": "function", "function": {"name": name, "arguments": text_of(given)}}
        for name, given in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": sent}


def text_of(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given)


def calls(due: Json, sent: Json, *tools: Json, order: str = "free") -> Comparison:
    return compare(due, sent, list(tools), order)


def arguments(due: Any, sent: Any, *tools: Json) -> Comparison:
    return calls(message(("f", due)), message(("f", sent)), *tools)


def values(schema: Json, due: Any, sent: Any) -> tuple[Miss, ...]:
    """How one argument with this schema misses, in either direction alike."""
    there = arguments({"x": due}, {"x": sent}, tool({"x": schema})).misses
    assert bool(arguments({"x": sent}, {"x": due}, tool({"x": schema})).misses) == bool(there)
    return there


@pytest.mark.parametrize(
    ("schema", "due", "sent"),
    [
        ({"type": "number"}, 5, 5.0),
        ({"type": "integer"}, 5, 5.0),
        ({}, [1.0, {"a": -0.0}], [1, {"a": 0}]),
        (UNIT, "Celsius", "celsius"),
        (UNIT, "celsius", " CELSIUS "),
        ({"enum": ["Straße", 5]}, "Straße", "STRASSE"),
        ({"const": "On"}, "On", "on"),
        ({"enum": ["aa", "Aa", "bb", "bb"]}, "bb", "BB"),
        ({"type": "array", "items": UNIT}, ["Celsius"], ["CELSIUS"]),
        (MOMENT, "2026-11-24T10:00:00Z", "2026-11-24T11:00:00+01:00"),
        (MOMENT, "2026-11-24T10:00:00Z", "2026-11-24t10:00:00.000z"),
        (MOMENT, "2026-11-24T10:00", "2026-11-24 10:00:00"),
        (STRING, "2026-11-24T10:00:00Z", "2026-11-24T05:00:00-05:00"),
        ({"type": "string", "format": "date"}, "2026-11-24", "20261124"),
        ({"type": "string", "format": "time"}, "10:00", "10:00:00"),
        ({"type": "string", "format": "time"}, "23:30:00Z", "00:30:00+01:00"),
        ({"type": "array", "uniqueItems": True}, [1, "b", {"c": 2}], [{"c": 2.0}, "b", 1]),
        ({"type": "array", "items": MOMENT, "uniqueItems": True},
         ["2026-11-24T10:00:00Z", "2026-11-25T10:00:00Z"],
         ["2026-11-25T11:00:00+01:00", "2026-11-24T10:00:00Z"]),
        (STRING, "New  York\n", "New York"),
        (STRING, "café", "cafe\u0301"),
        ({"type": "object"}, {"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        ({"properties": {"unit": {**UNIT, "default": "Celsius"}}}, {}, {"unit": "celsius"}),
        ({"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": True}]}, [1, 2], [2, 1]),
        ({"oneOf": [{"type": "string", "maxLength": 3}, UNIT]}, "Celsius", "Celsius "),
        ({"allOf": [{"uniqueItems": True}, {"items": UNIT}]},
         ["Celsius", "Fahrenheit"], ["fahrenheit", "CELSIUS"]),
        ({"additionalProperties": UNIT}, {"any": "Celsius"}, {"any": "celsius"}),
        ({"prefixItems": [UNIT], "items": MOMENT},
         ["Celsius", "2026-11-24T10:00:00Z"], ["celsius", "2026-11-24T10:00Z"]),
    ],
)  # fmt: skip
def test_values_that_mean_the_same_by_their_schema(schema, due, sent):
    assert values(schema, due, sent) == ()


@pytest.mark.parametrize(
    ("schema", "due", "sent"),
    [
        ({"type": "number"}, 5, 6),
        (STRING, "Paris", "paris"),
        (UNIT, "Celsius", "Fahrenheit"),
        ({"enum": ["aa", "Aa"]}, "aa", "Aa"),
        (MOMENT, "2026-11-24T10:00:00Z", "2026-11-24T10:00:00+01:00"),
        (MOMENT, "2026-11-24T10:00:00Z", "2026-11-24T10:00:00"),
        (MOMENT, "2026-02-30T10:00:00Z", "2026-02-30T11:00:00+01:00"),
        (STRING, "20261124", "2026-11-24"),
        ({"enum": ["2026-11-24T10:00", "2026-11-24T10:00:00"]},
         "2026-11-24T10:00", "2026-11-24T10:00:00"),
        ({"type": "string", "pattern": "."}, "2026-11-24T10:00", "2026-11-24T10:00:00"),
        ({"type": "array"}, [1, 2], [2, 1]),
        ({"type": "array", "uniqueItems": True}, [1, 1, 2], [1, 2]),
        ({"uniqueItems": True, "prefixItems": [STRING, STRING]}, ["a", "b"], ["b", "a"]),
        ({"type": "boolean"}, True, False),
        ({"properties": {"unit": UNIT}}, {}, {"unit": "Celsius"}),
        ({"properties": {"unit": {"default": "C"}}, "required": ["unit"]}, {}, {"unit": "C"}),
        ({"type": "number"}, 10**400, 10**400 + 1),
    ],
)  # fmt: skip
def test_values_that_do_not(schema, due, sent):
    assert values(schema, due, sent) == (Miss.WRONG_VALUE,)


@pytest.mark.parametrize(
    ("schema", "due", "sent"),
    [
        ({"type": "integer"}, 5, "5"),
        ({"type": "integer"}, 5, 5.5),
        ({"type": "boolean"}, True, "true"),
        ({}, True, 1),
        (STRING, "a", None),
        (STRING, "a", ["a"]),
        ({"type": "object"}, {"a": 1}, '{"a": 1}'),
    ],
)
def test_another_json_type_is_a_wrong_type(schema, due, sent):
    assert arguments({"x": due}, {"x": sent}, tool({"x": schema})).misses == (Miss.WRONG_TYPE,)


def test_references_are_followed_however_they_nest():
    node = {"type": "object", "properties": {"unit": UNIT, "next": {"$ref": "#/$defs/node"}}}
    schema = tool({"x": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": node}})
    due: Json = {"unit": "Celsius"}
    for _ in range(20):
        due = {"unit": "Celsius", "next": due}
    sent = json.loads(json.dumps(due).replace("Celsius", "celsius"))
    assert arguments({"x": due}, {"x": sent}, schema).misses == ()


def test_a_choice_is_read_by_the_branch_that_fits():
    circle = {"properties": {"kind": {"const": "circle"}, "r": {"default": 1}}}
    square = {"properties": {"kind": {"const": "square"}, "r": {"default": 2}}}
    shape = tool({"shape": {"anyOf": [circle, square]}})
    assert not arguments(
        {"shape": {"kind": "square"}}, {"shape": {"kind": "square", "r": 2}}, shape
    ).misses
    assert arguments(
        {"shape": {"kind": "square"}}, {"shape": {"kind": "square", "r": 1}}, shape
    ).misses


@pytest.mark.parametrize(
    ("due", "sent", "misses", "counts"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, (Miss.EXTRA_ARGUMENT,), (1, 2, 1)),
        ({"a": 1, "b": 2}, {"a": 1}, (Miss.MISSING_ARGUMENT,), (2, 1, 1)),
        ({"a": 1, "b": 2}, {"a": "1", "c": 2}, (Miss.MISSING_ARGUMENT, Miss.EXTRA_ARGUMENT,
                                               Miss.WRONG_TYPE), (2, 2, 0)),
        ({"a": 1}, {"a": 1, "unit": "c"}, (), (2, 2, 2)),
        ({"a": 1, "unit": "C"}, {"a": 1}, (), (2, 2, 2)),
        ({"a": 1}, {"a": 1, "unit": "F"}, (Miss.EXTRA_ARGUMENT,), (1, 2, 1)),
        ({"a": 1, "unit": "F"}, {"a": 1}, (Miss.MISSING_ARGUMENT,), (2, 1, 1)),
        ({"a": 1, "unit": "C"}, {"a": 1, "unit": "F"}, (Miss.WRONG_VALUE,), (2, 2, 1)),
    ],
)  # fmt: skip
def test_arguments_are_counted_one_by_one(due, sent, misses, counts):
    found = arguments(due, sent, tool({"a": {}, "unit": {"enum": ["C", "F"], "default": "C"}}))
    assert (found.misses, (found.due, found.sent, found.right)) == (misses, counts)


F, G, H = ("f", {"a": 1}), ("g", {"a": 1}), ("h", {})


@pytest.mark.parametrize(
    ("due", "sent", "misses"),
    [
        ([F, G], [G, F], ()),
        ([F], [], (Miss.NO_CALL,)),
        ([], [F], (Miss.CALL_NOT_DUE,)),
        ([F], [G], (Miss.WRONG_TOOL,)),
        ([F, G], [G, H], (Miss.WRONG_TOOL,)),
        ([F, F], [F], (Miss.WRONG_NUMBER_OF_CALLS,)),
        ([F], [F, F], (Miss.WRONG_NUMBER_OF_CALLS,)),
        ([F, G], [("f", {"a": 2})], (Miss.WRONG_VALUE, Miss.WRONG_NUMBER_OF_CALLS)),
    ],
)
def test_calls_are_matched_as_a_set(due, sent, misses):
    assert set(calls(message(*due), message(*sent)).misses) == set(misses)


def test_calls_are_matched_so_that_the_most_arguments_agree():
    due = [("f", {"a": i, "b": i, "c": i}) for i in range(5)]
    sent = [("f", {"a": i, "b": i, "c": -1}) for i in reversed(range(5))]
    found = calls(message(*due), message(*sent))
    assert (found.right, found.misses) == (10, (Miss.WRONG_VALUE,))
    assert calls(message(*due), message(*sent), order="fixed").right == 2


def test_where_order_matters_calls_are_matched_by_their_place():
    assert calls(message(F, G), message(G, F), order="fixed").misses == (Miss.WRONG_TOOL,)
    other = ("f", {"a": 2})
    assert calls(message(F, other), message(other, F), order="fixed").misses == (Miss.WRONG_VALUE,)
    assert calls(message(F, G), message(F, G), order="fixed").misses == ()


def test_extra_calls_count_as_arguments_that_were_sent():
    found = calls(message(F), message(F, F))
    assert (found.due, found.sent, found.right) == (1, 2, 1)


def test_luck_of_spelling_and_order_never_changes_the_verdict():
    """Whatever is done that the schema allows, the calls stay the same; one change, and not."""
    rng = random.Random(0)
    schema = tool(
        {"tags": {"type": "array", "uniqueItems": True}, "unit": {**UNIT, "default": "Celsius"},
         "at": MOMENT, "deep": {"type": "object", "properties": {"n": {"default": 3}}}}
    )  # fmt: skip
    for _ in range(300):
        due = [
            ("f", {"tags": rng.sample("abcdef", 3), "unit": rng.choice(UNIT["enum"]), "n": i,
                   "at": f"2026-11-{rng.randint(10, 28)}T10:00:00Z", "deep": {"n": 3, "m": "x y"}})
            for i in range(rng.randint(1, 4))
        ]  # fmt: skip
        sent = [("f", _respelled(given, rng)) for _, given in rng.sample(due, len(due))]
        assert calls(message(*due), message(*sent), schema).misses == ()
        rng.choice(sent)[1]["n"] += 0.5
        found = calls(message(*due), message(*sent), schema)
        assert found.misses == (Miss.WRONG_VALUE,)
        assert found.right == found.due - 1


def _respelled(given: Json, rng: random.Random) -> Json:
    given = copy.deepcopy(given)
    rng.shuffle(given["tags"])
    given["unit"] = given["unit"].upper()
    if given["unit"] == "CELSIUS" and rng.random() < 0.5:
        del given["unit"]
    given["at"] = given["at"].replace("T10:00:00Z", "T13:30:00+03:30")
    given["n"] = float(given["n"])
    given["deep"] = rng.choice(({"m": " x  y"}, {"m": "x y", "n": 3.0}))
    return dict(rng.sample(list(given.items()), len(given)))


@pytest.mark.parametrize(
    "mark", ["<tool_call>", "[TOOL_CALLS]", "<function=f>", "<|python_tag|>", "<|tool_call|>"]
)
def test_a_call_that_the_server_left_in_the_text_is_unparsable(mark):
    sent = message(content=f'{mark}{{"name": "f"')
    assert calls(message(F), sent).misses == (Miss.UNPARSABLE_CALL,)
    assert calls(message(content="Hello"), sent).misses == (Miss.UNPARSABLE_CALL,)


@pytest.mark.parametrize(
    "text", ['{"a": 1', "[1]", '{"a": 1e999}', '{"a": ' + "[" * 150 + "]" * 150 + "}"]
)
def test_arguments_that_are_no_json_object_are_unparsable(text):
    found = calls(message(F), message(("f", text)))
    assert (found.misses, found.due, found.right) == ((Miss.UNPARSABLE_CALL,), 1, 0)


def test_no_text_at_all_means_no_arguments():
    assert calls(message(("f", {})), message(("f", ""))).misses == ()


def scored(due: Json, sent: Json, *tools: Json, order: str = "free") -> dict[str, Score]:
    request = {"messages": [{"role": "user", "content": "q"}], "tools": list(tools)}
    record = Record(0.0, "w", "c", request, {"choices": [{"message": due}]})
    return {s.metric: s for s in score(record, Completion(record.id, sent), order)}


def test_each_metric_says_its_own():
    properties = {"unit": UNIT, "days": {"type": "integer"}}
    due = message(("f", {"unit": "Celsius", "days": 3, "a": 1, "b": 2}))
    sent = message(("f", {"unit": "celsius", "days": 3.0, "a": 1, "b": 3, "c": 4}))
    found = scored(due, sent, tool(properties))
    assert {name: one.value for name, one in found.items()} == {
        "function_name": 1.0,
        "function_name_and_args_accuracy": 0.0,
        "argument_precision": 3 / 5,
        "argument_recall": 3 / 4,
        "tool_calls_exact_match": 0.0,
    }
    assert found["function_name"].misses == ()
    whole = found["function_name_and_args_accuracy"]
    assert whole.misses == (Miss.EXTRA_ARGUMENT, Miss.WRONG_VALUE)
    assert whole.reason == "extra argument: f.c; wrong value: f.b"


def test_the_exact_match_is_what_comparing_json_would_say():
    def exact(due: Any, sent: Any) -> float | None:
        return scored(message(*due), message(*sent))["tool_calls_exact_match"].value

    assert exact([("f", '{"a":1,"b":2}')], [("f", '{ "b": 2, "a": 1 }')]) == 1
    assert exact([("f", {"a": 5})], [("f", {"a": 5.0})]) == 0
    assert exact([F, G], [G, F]) == 0
    assert scored(message(), message(), tool({}))["tool_calls_exact_match"].value == 1


def test_without_arguments_there_is_nothing_to_be_precise_about():
    found = scored(message(("f", {})), message(("f", {})), tool({}))
    assert found["function_name_and_args_accuracy"].value == 1
    for name in ("argument_precision", "argument_recall"):
        assert (found[name].value, found[name].status) == (None, ScoreStatus.UNSCORED)
        assert found[name].reason


def test_no_call_sends_no_argument_but_an_unparsable_one_sends_nothing_right():
    silent = scored(message(F), message(content="?"))
    assert (silent["argument_precision"].value, silent["argument_recall"].value) == (None, 0)
    broken = scored(message(F), message(("f", "{")))
    assert (broken["argument_precision"].value, broken["argument_recall"].value) == (0, 0)


def test_a_reference_without_a_call_is_met_by_making_none():
    found = scored(message(content="Hi"), message(content="Hello"), tool({}))
    one = found["function_name_and_args_accuracy"]
    assert (one.value, one.reason) == (1.0, "neither side called a tool")
    called = scored(message(content="Hi"), message(F), tool({}))["function_name"]
    assert (called.value, called.misses) == (0.0, (Miss.CALL_NOT_DUE,))


def test_an_unreadable_reference_leaves_every_metric_unscored():
    found = scored(message(("f", "{")), message(F))
    assert {(s.value, s.status, s.reason) for s in found.values()} == {
        (None, ScoreStatus.UNSCORED, "the expected call cannot be parsed")
    }
    with pytest.raises(UnscorableError):
        calls(message(("f", "{")), message(F))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "banana"}, "invalid"),
        ({"properties": [1]}, "invalid"),
        ([], "invalid"),
        ({"$schema": "of nobody"}, "invalid"),
        ({"description": "x" * 40_000}, "longer than 32,768 characters"),
    ],
)
def test_an_invalid_schema_is_left_aside_and_said(schema, said):
    offered = {"type": "function", "function": {"name": "f", "parameters": schema}}
    found = scored(message(("f", {"a": 5})), message(("f", {"a": 5.0})), offered)
    one = found["function_name_and_args_accuracy"]
    assert one.value == 1
    assert one.reason == f"compared without the schema of f, which is {said}"


@pytest.mark.parametrize(
    "part",
    [
        {"$ref": "#/nowhere"},
        {"$ref": "https://elsewhere.example/schema"},
        {"$ref": "#"},
        {"$ref": "#/properties/x"},
        {"anyOf": [{"$ref": "#/properties/x"}, UNIT]},
        {"allOf": [{"$ref": "#/properties/x"}]},
        {"$ref": "#/x-odd", "x-note": 1},
        {"default": {"x": {}}, "properties": {"x": {"$ref": "#/properties/x"}}},
    ],
)
def test_references_that_lead_nowhere_or_in_circles_say_nothing(part):
    schema = tool({"x": part}, **{"x-odd": {"properties": [1], "enum": 7}})
    for value in ({"a": 1}, [1, 2], "text", {}):
        assert arguments({"x": value}, {"x": value, "y": 1}, schema).misses == (
            Miss.EXTRA_ARGUMENT,
        )


def test_a_schema_made_to_take_long_is_left_aside():
    choices = {"anyOf": [{"type": "object", "required": [f"k{i}"]} for i in range(300)]}
    schema = tool({"x": {"type": "array", "items": choices}})
    due, sent = [{"a": i} for i in range(3000)], [{"a": float(i)} for i in range(3000)]
    with cpu_within(5):
        found = arguments({"x": due}, {"x": sent}, schema)
        assert found.misses == ()
        assert found.note == "compared without schemas, which lead too far for these arguments"


def test_arguments_too_large_to_read_by_their_schema_are_read_without():
    due, sent = list(range(60_000)), [float(i) for i in range(60_000)]
    found = arguments({"x": due}, {"x": sent}, tool({"x": {"items": {"type": "number"}}}))
    assert found.misses == ()
    assert found.note == "compared without schemas, which lead too far for these arguments"


def test_very_many_calls_take_their_order():
    due = [("f", {"a": i}) for i in range(1500)]
    sent = [("f", {"a": -i - 1}) for i in range(1500)]
    with cpu_within(5):
        assert calls(message(*due), message(*sent)).misses == (Miss.WRONG_VALUE,)


def test_the_detail_of_a_hostile_answer_is_bounded():
    sent = message(("f", {"x" * 10_000: 1}))
    found = calls(message(F), sent)
    assert len(found.detail(found.misses)) == 200


def test_scores_pass_through_their_rows():
    one = Score("r", "m", 0.0, misses=(Miss.NO_CALL,), reason="no call")
    row = json.loads(json.dumps({"record_id": "r", "metric": "m", "value": 0.0, "status": "scored",
                                 "reason": "no call", "misses": ["no_call"]}))  # fmt: skip
    assert Score.from_row(row) == one
    del row["misses"]
    assert Score.from_row(row).misses == ()


def test_misses_are_counted_by_kind_with_examples():
    name = "function_name_and_args_accuracy"
    scores = [Score(f"r{i}", name, 0.0, misses=(Miss.WRONG_VALUE,)) for i in range(5)]
    scores += [Score("both", name, 0.0, misses=(Miss.MISSING_ARGUMENT, Miss.WRONG_VALUE))]
    scores += [Score("other metric", "function_name", 0.0, misses=(Miss.WRONG_TOOL,))]
    assert misses_by_kind(scores) == {
        "missing_argument": {"records": 1, "examples": ["both"]},
        "wrong_value": {"records": 6, "examples": ["r0", "r1", "r2"]},
    }


def test_a_miss_says_so_in_both_tool_metrics_and_a_right_answer_in_none():
    """value is 1 exactly where there is no miss, for every pair of answers made here."""
    answers = [[], [F], [G], [F, G], [F, F], [("f", {"a": 2})], [("f", "{")], [("f", {"b": 1})]]
    for due in answers:
        for sent in answers:
            found = scored(message(*due), message(*sent), tool({}))
            for name in ("function_name", "function_name_and_args_accuracy"):
                one = found[name]
                if one.value is not None:
                    assert (one.value == 1) == (one.misses == ())
                    assert one.misses == () or one.reason
    assert set(METRICS) > set(found)


def test_a_schema_that_names_a_place_on_the_network_is_not_fetched():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        parameters = {"$schema": f"http://127.0.0.1:{server.getsockname()[1]}/draft"}
        found = arguments({"x": "a"}, {"x": "a "}, tool({}, **parameters))
        with pytest.raises(TimeoutError):
            server.accept()
    assert "which is invalid" in found.note
