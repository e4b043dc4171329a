"""Which arguments of tool calls a judge is to compare, and which programs settle."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flywheel.config import FreeTextConfig
from flywheel.scoring import Case
from flywheel.scoring.free_text import Settled, settle
from flywheel.types import Json, Record

BY_NAME = FreeTextConfig(arguments=("send.body", "note"))
BY_LENGTH = FreeTextConfig(longer_than=20)
LONG, ALIKE = "Your parcel has been sent to you.", "We have sent your parcel to you."


def message(*calls: tuple[str, Json]) -> Json:
    made = [{"function": {"name": name, "arguments": json.dumps(given)}} for name, given in calls]
    return {"role": "assistant", "content": None, "tool_calls": made}


def settled(due: Json, sent: Json, rule: FreeTextConfig) -> Settled:
    request: Json = {"messages": [], "tools": []}
    record = Record(0.0, "w", "c", request, {"choices": [{"message": due}]})
    return settle(Case(record, sent), rule)


def body(text: Any, **more: Any) -> Json:
    return message(("send", {"body": text, **more}))


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (body("Hi"), 1.0),
        (body(" Hi "), 1.0),
        (body("Hello"), None),
        (body(7), 0.0),
        (body("Hello", to="x"), 0.0),
        (message(("drop", {"body": "Hello"})), 0.0),
        (message(), 0.0),
    ],
)
def test_only_what_differs_in_free_text_alone_is_open(sent: Json, value: float | None) -> None:
    found = settled(body("Hi"), sent, BY_NAME)
    assert found.value == value
    assert bool(found.open) is (value is None)
    assert bool(found.reason) is (value == 0.0)


def test_what_is_open_names_tool_argument_and_both_texts() -> None:
    (one,) = settled(body("Hi"), body("Hello"), BY_NAME).open
    assert one == ("send", "body", "Hi", "Hello")


def test_an_argument_is_free_by_its_own_name_or_that_of_one_tool() -> None:
    for name, tool, free in (("note", "any", True), ("body", "any", False), ("body", "send", True)):
        due, sent = message((tool, {name: "a"})), message((tool, {name: "b"}))
        assert bool(settled(due, sent, BY_NAME).open) is free


def test_long_text_is_free_if_both_are_long() -> None:
    assert settled(body(LONG), body(ALIKE), BY_LENGTH).open
    assert settled(body(LONG), body("sent"), BY_LENGTH).value == 0.0
    assert settled(body("short"), body("other"), BY_LENGTH).value == 0.0


def test_another_wrong_value_beside_it_settles_the_call() -> None:
    found = settled(body(LONG, to="a"), body(ALIKE, to="b"), BY_LENGTH)
    assert (found.value, found.open) == (0.0, ())


def test_parallel_calls_are_open_together() -> None:
    due = message(("send", {"body": LONG}), ("note", {"note": "x"}))
    sent = message(("note", {"note": "y"}), ("send", {"body": ALIKE}))
    rule = FreeTextConfig(arguments=("note",), longer_than=20)
    assert {one.argument for one in settled(due, sent, rule).open} == {"body", "note"}


def test_nothing_is_free_by_default() -> None:
    assert settled(body(LONG), body(ALIKE), FreeTextConfig()).value == 0.0


def test_a_reference_that_cannot_be_read_leaves_nothing_to_judge() -> None:
    broken: Json = {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    found = settled(broken, body("Hi"), BY_NAME)
    assert (found.value, found.open) == (None, ())
    assert found.reason
