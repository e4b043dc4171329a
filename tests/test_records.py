from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.records import parse_line, workload_of
from flywheel.types import Reason, Record, Rejection, canonical_json


def log(**changes: Any) -> dict[str, Any]:
    """A well-formed log line as an object; `...` as a value leaves a field out."""
    base = {
        "timestamp": 1767225600,
        "workload_id": "shop.router",
        "client_id": "web",
        "request": {"model": "big", "messages": [{"role": "user", "content": "Where is M1?"}]},
        "response": answer({"role": "assistant", "content": "On its way."}),
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not ...}


def answer(message: Any, finish_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}


def call(arguments: Any = "{}", name: Any = "track", **more: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    } | more


def calling(*calls: Any) -> dict[str, Any]:
    return log(response=answer({"role": "assistant", "content": None, "tool_calls": list(calls)}))


def asking(*messages: Any, **more: Any) -> dict[str, Any]:
    return log(request={"messages": list(messages), **more})


def parse(line: dict[str, Any] | bytes | str) -> Record | Rejection:
    return parse_line(json.dumps(line) if isinstance(line, dict) else line, "logs.jsonl", 7)


def record(line: dict[str, Any] | bytes | str) -> Record:
    parsed = parse(line)
    assert isinstance(parsed, Record), parsed
    return parsed


USER = {"role": "user", "content": "Hi"}

REJECTED = [
    (Reason.NOT_JSON, b""),
    (Reason.NOT_JSON, b'{"timestamp": 17672'),
    (Reason.NOT_JSON, b"\xff\xfe{}"),
    (Reason.NOT_JSON, b'{"timestamp": NaN}'),
    (Reason.NOT_JSON, b'{"timestamp": -Infinity}'),
    (Reason.NOT_JSON, b'{"timestamp": 1e400}'),
    (Reason.NOT_JSON, b"1" * 5000),
    (Reason.NOT_JSON, b"[" * 100_000),
    (Reason.NOT_JSON, b"[" * 100 + b"]" * 100),
    (Reason.NOT_JSON, "\ud800"),
    (Reason.NOT_AN_OBJECT, b"[1]"),
    (Reason.NOT_AN_OBJECT, b"null"),
    (Reason.MISSING_WORKLOAD_ID, log(workload_id=...)),
    (Reason.MISSING_WORKLOAD_ID, log(workload_id=" ")),
    (Reason.MISSING_WORKLOAD_ID, log(workload_id=5)),
    (Reason.MISSING_CLIENT_ID, log(client_id=None)),
    (Reason.BAD_TIMESTAMP, log(timestamp="yesterday")),
    (Reason.BAD_TIMESTAMP, log(timestamp=True)),
    (Reason.BAD_TIMESTAMP, log(timestamp=-1)),
    (Reason.BAD_TIMESTAMP, log(timestamp=10**400)),
    (Reason.BAD_TIMESTAMP, log(timestamp=...)),
    (Reason.MISSING_REQUEST, log(request=...)),
    (Reason.MISSING_REQUEST, log(request="Hi")),
    (Reason.EMPTY_MESSAGES, asking()),
    (Reason.EMPTY_MESSAGES, log(request={"messages": None})),
    (Reason.BAD_MESSAGE, asking("Hi")),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": None})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": 5})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": ["Hi"]})),
    (Reason.BAD_MESSAGE, asking({"role": "assistant"}, USER)),
    (Reason.UNKNOWN_ROLE, asking({"role": "wizard", "content": "Hi"})),
    (Reason.UNKNOWN_ROLE, asking({"role": ["user"], "content": "Hi"})),
    (Reason.BAD_TOOLS, asking(USER, tools={})),
    (Reason.BAD_TOOLS, asking(USER, tools=[{"type": "function"}])),
    (Reason.BAD_TOOLS, asking(USER, tools=[{"function": {"name": "f", "parameters": 1}}])),
    (Reason.MISSING_RESPONSE, log(response=...)),
    (Reason.MISSING_RESPONSE, log(response=[])),
    (Reason.EMPTY_CHOICES, log(response={"choices": []})),
    (Reason.EMPTY_CHOICES, log(response={})),
    (Reason.NO_ANSWER, log(response={"choices": [None]})),
    (Reason.NO_ANSWER, log(response=answer(None))),
    (Reason.NO_ANSWER, log(response=answer({"content": "  "}))),
    (Reason.NO_ANSWER, log(response=answer({"content": None, "tool_calls": []}))),
    (Reason.NO_ANSWER, log(response=answer({"content": ["a"]}))),
    (Reason.BAD_TOOL_CALL, log(response=answer({"content": None, "tool_calls": {}}))),
    (Reason.BAD_TOOL_CALL, calling("track")),
    (Reason.BAD_TOOL_CALL, calling(call(name=""))),
    (Reason.BAD_TOOL_CALL, calling(call(type="web_search"))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call("{city: Paris"))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call("[1]"))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call(7))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call('{"n": NaN}'))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call("[" * 5000))),
    (Reason.TOOL_ARGUMENTS_NOT_JSON, calling(call(), call("{"))),
    (Reason.UNFINISHED_ANSWER, log(response=answer({"content": "On its"}, "length"))),
    (Reason.UNFINISHED_ANSWER, log(response=answer({"content": None}, "content_filter"))),
]


@pytest.mark.parametrize(("reason", "line"), REJECTED)
def test_a_line_that_is_no_record_is_rejected_for_its_reason(reason: Reason, line: Any) -> None:
    rejection = parse(line)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    assert (rejection.source, rejection.position) == ("logs.jsonl", 7)
    assert 0 < len(rejection.detail) <= 200


def test_every_reason_is_reached() -> None:
    assert {reason for reason, _ in REJECTED} == set(Reason)


def test_a_detail_quotes_no_raw_text() -> None:
    line = asking({"role": "jane@example.com " + "x" * 500, "content": "secret words"})
    rejection = parse(line)
    assert isinstance(rejection, Rejection)
    assert "jane" not in rejection.detail
    assert "<EMAIL_1>" in rejection.detail
    assert "secret" not in rejection.detail


ACCEPTED = [
    log(),
    log(more="fields are kept out"),
    asking(USER, tools=None),
    asking(USER, tools=[]),
    asking(USER, tools=[{"type": "function", "function": {"name": "now"}}]),
    asking({"role": "developer", "content": "Be short."}, USER),
    asking({"role": "user", "content": [{"type": "text", "text": "Hi"}]}),
    asking(USER, {"role": "assistant", "content": None, "tool_calls": [call()]},
           {"role": "tool", "content": "[]", "tool_call_id": "c1"}),
    log(response=answer({"content": "", "tool_calls": [call()]}, "tool_calls")),
]  # fmt: skip


@pytest.mark.parametrize("line", ACCEPTED)
def test_well_formed_lines_are_records(line: dict[str, Any]) -> None:
    record(line)


@pytest.mark.parametrize(
    ("logged", "kept"),
    [
        ('{"b": 1, "a": "ü"}', '{"a":"ü","b":1}'),
        ({"b": 1, "a": "ü"}, '{"a":"ü","b":1}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": "\\ud83d"}', '{"a":"\ufffd"}'),
    ],
)
def test_arguments_become_one_canonical_text(logged: Any, kept: str) -> None:
    function = record(calling(call(logged))).answer["tool_calls"][0]["function"]
    assert function["arguments"] == kept


def test_arguments_in_the_history_are_canonical_too() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call('{ "a" : 1 }')]}
    messages = record(asking(USER, turn)).messages
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


@pytest.mark.parametrize("logged", [1767225600, 1767225600.0, 1767225600000])
def test_timestamps_are_seconds(logged: float) -> None:
    assert record(log(timestamp=logged)).timestamp == 1767225600.0


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept() -> None:
    line = json.dumps(asking({"role": "user", "content": "\U0001f600 \ud83d"}))
    text = record(line).messages[0]["content"]
    assert text == "\U0001f600 \ufffd"


def test_equal_content_has_the_same_id_however_it_is_written() -> None:
    line = log()
    turned = json.dumps(dict(reversed(line.items())), indent=1)
    assert record(line).id == record(turned).id == record(b"\xef\xbb\xbf" + turned.encode()).id
    assert record(log(timestamp=1767225601)).id != record(line).id


def test_workload_of_names_a_rejected_line_s_workload() -> None:
    assert workload_of(json.dumps(log(response=...))) == "shop.router"
    assert workload_of(b"{") == ""
    assert workload_of(b"{}") == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    ("timestamp",), ("workload_id",), ("client_id",), ("request",), ("response",),
    ("request", "messages"), ("request", "messages", 0), ("request", "messages", 0, "role"),
    ("request", "messages", 0, "content"), ("request", "tools"), ("request", "metadata"),
    ("response", "choices"), ("response", "choices", 0), ("response", "choices", 0, "message"),
    ("response", "choices", 0, "message", "content"),
    ("response", "choices", 0, "message", "tool_calls"), ("response", "usage"),
]  # fmt: skip


@given(st.binary() | st.text())
def test_any_bytes_are_a_record_or_a_rejection(line: bytes | str) -> None:
    assert isinstance(parse(line), Record | Rejection)


@given(st.sampled_from(PATHS), json_values)
def test_any_value_in_any_field_is_a_record_or_a_rejection(
    path: tuple[Any, ...], value: Any
) -> None:
    line = log()
    place: Any = line
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    parsed = parse(json.dumps(line))
    if isinstance(parsed, Record):
        again = Record.from_row(parsed.to_row())
        assert canonical_json(again.request).encode() == canonical_json(parsed.request).encode()
