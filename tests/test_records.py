from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.records import parse_line, workload_of
from flywheel.types import Normalisation, Reason, Record, Rejection, canonical_json


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


def parse(line: dict[str, Any] | bytes | str, **options: Any) -> Record | Rejection:
    text = json.dumps(line) if isinstance(line, dict) else line
    return parse_line(text, "logs.jsonl", 7, **options)


def record(line: dict[str, Any] | bytes | str, **options: Any) -> Record:
    parsed = parse(line, **options)
    assert isinstance(parsed, Record), parsed
    return parsed


def rejection(line: dict[str, Any] | bytes | str) -> Rejection:
    parsed = parse(line)
    assert isinstance(parsed, Rejection), parsed
    return parsed


def chunk(delta: Any = None, finish_reason: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "s1", "object": "chat.completion.chunk", "choices": [choice], **more}


def piece(index: Any, arguments: str | None = None, **more: Any) -> dict[str, Any]:
    """A delta with a piece of one tool call."""
    function = more.pop("function", {})
    if arguments is not None:
        function = {**function, "arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function, **more}]}


USER = {"role": "user", "content": "Hi"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call()]}
TRACK = {
    "type": "function",
    "function": {
        "name": "track",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    },
}


def result(**changes: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "shipped", "tool_call_id": "c1", **changes}


def offering(*calls: Any) -> dict[str, Any]:
    """A line whose request offers the tool `TRACK`."""
    return {**calling(*calls), "request": {"messages": [USER], "tools": [TRACK]}}


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
    (Reason.BAD_TIMESTAMP, log(timestamp="2026-01-01T00:00:00")),
    (Reason.BAD_TIMESTAMP, log(timestamp="2026-01-01")),
    (Reason.BAD_TIMESTAMP, log(timestamp="1767225600")),
    (Reason.BAD_TIMESTAMP, log(timestamp="0001-01-01T00:00:00+23:59")),
    (Reason.BAD_TIMESTAMP, log(timestamp="9999-01-01T00:00:00Z")),
    (Reason.BAD_TIMESTAMP, log(timestamp=1767225600000000)),
    (Reason.MISSING_REQUEST, log(request=...)),
    (Reason.MISSING_REQUEST, log(request="Hi")),
    (Reason.EMPTY_MESSAGES, asking()),
    (Reason.EMPTY_MESSAGES, log(request={"messages": None})),
    (Reason.BAD_MESSAGE, asking("Hi")),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": None})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": 5})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": ["Hi"]})),
    (Reason.BAD_MESSAGE, asking({"role": "assistant"}, USER)),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": []})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": [{"type": "text"}]})),
    (Reason.BAD_MESSAGE, asking({"role": "user", "content": [{"type": ["text"]}]})),
    (
        Reason.BAD_MESSAGE,
        asking({"role": "user", "content": [{"type": "image_url", "image_url": "http:"}]}),
    ),
    (
        Reason.BAD_MESSAGE,
        asking({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}),
    ),
    (Reason.BAD_TOOL_CALL, asking({**USER, "tool_calls": [call()]})),
    (Reason.BAD_TOOL_RESULT, asking(USER, result())),
    (Reason.BAD_TOOL_RESULT, asking(USER, result(), CALLING)),
    (Reason.BAD_TOOL_RESULT, asking(USER, CALLING, result(tool_call_id="c2"))),
    (Reason.BAD_TOOL_RESULT, asking(USER, CALLING, result(tool_call_id=None))),
    (Reason.BAD_TOOL_RESULT, asking(USER, CALLING, result(tool_call_id=["c1"]))),
    (Reason.BAD_TOOL_RESULT, asking(USER, {"role": "function", "name": "track", "content": "[]"})),
    (Reason.UNKNOWN_ROLE, asking({"role": "wizard", "content": "Hi"})),
    (Reason.UNKNOWN_ROLE, asking({"role": ["user"], "content": "Hi"})),
    (Reason.BAD_TOOLS, asking(USER, tools={})),
    (Reason.BAD_TOOLS, asking(USER, tools=[{"type": "function"}])),
    (Reason.BAD_TOOLS, asking(USER, tools=[{"function": {"name": "f", "parameters": 1}}])),
    (Reason.BAD_TOOLS, asking(USER, tools=[{"type": "custom", "custom": {"name": "f"}}])),
    (Reason.BAD_TOOLS, asking(USER, functions={"name": "f"})),
    (Reason.BAD_TOOLS, asking(USER, functions=["f"])),
    (Reason.BAD_TOOLS, asking(USER, functions=[], tools=5)),
    (Reason.MISSING_RESPONSE, log(response=...)),
    (Reason.MISSING_RESPONSE, log(response=[{"choices": []}])),
    (Reason.MISSING_RESPONSE, log(response=[chunk({"content": "a"}), "b"])),
    (Reason.MISSING_RESPONSE, log(response=[chunk({"content": "a"}), chunk(choices=5)])),
    (Reason.MISSING_RESPONSE, log(response=[chunk(choices=[5])])),
    (Reason.MISSING_RESPONSE, log(response=[chunk("a")])),
    (Reason.MISSING_RESPONSE, log(response=[chunk({"tool_calls": ["a"]})])),
    (Reason.MISSING_RESPONSE, log(response={**answer({"content": "a"}), "usage": [1]})),
    (Reason.EMPTY_CHOICES, log(response=[chunk(choices=[])])),
    (Reason.UNFINISHED_ANSWER, log(response=[chunk({"content": "On its"})])),
    (Reason.UNFINISHED_ANSWER, log(response=[chunk({"content": "On its"}, "length")])),
    (Reason.UNKNOWN_ROLE, log(response=answer({"role": "user", "content": "Hi"}))),
    (Reason.REFUSAL, log(response=answer({"content": None, "refusal": "I will not."}))),
    (Reason.REFUSAL, log(response=answer({"content": "", "refusal": "I will not."}))),
    (
        Reason.REFUSAL,
        log(response=[chunk({"refusal": "I will"}), chunk({"refusal": " not."}, "stop")]),
    ),
    (Reason.NO_ANSWER, log(response=answer({"content": None, "refusal": True}))),
    (Reason.REFERENCE_VIOLATES_SCHEMA, offering(call('{"id": 5}'))),
    (Reason.REFERENCE_VIOLATES_SCHEMA, offering(call(), call(name="pay"))),
    (Reason.BAD_TOOL_CALL, calling(call(id=5))),
    (Reason.BAD_TOOL_CALL, log(response=answer({"content": None, "function_call": {}}))),
    (Reason.BAD_TOOL_CALL, log(response=answer({"content": None, "function_call": "track"}))),
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
    rejected = rejection(line)
    assert rejected.reason == reason
    assert (rejected.source, rejected.offset) == ("logs.jsonl", 7)
    assert 0 < len(rejected.detail) <= 200


def test_every_reason_is_reached() -> None:
    assert {reason for reason, _ in REJECTED} == set(Reason)


def test_a_detail_quotes_no_raw_text() -> None:
    line = asking({"role": "jane@example.com " + "x" * 500, "content": "secret words"})
    detail = rejection(line).detail
    assert "jane" not in detail
    assert "<EMAIL_1>" in detail
    assert "secret" not in detail


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
    asking(USER, CALLING, result(content=[{"type": "text", "text": "shipped"}])),
    asking(USER, {"role": "assistant", "content": None, "tool_calls": [call(id=None)]}, result()),
    asking(USER, {"role": "assistant", "content": None, "tool_calls": [call(id="")]}, result()),
    asking({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https:"}}]}),
    asking({"role": "user", "content": [{"type": "video", "video": 5}]}),
    asking({"role": "assistant", "content": None, "refusal": "No."}, USER),
    asking({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER),
    asking({"role": "assistant", "content": None, "audio": {"id": "a1"}}, USER),
    asking({**USER, "tool_calls": [], "function_call": None}, functions=None, function_call=None),
    log(response=answer({"content": "Yes.", "refusal": None, "tool_calls": None})),
    log(response={**answer({"content": "Yes."}), "usage": None}),
    log(response={"choices": [answer({"content": "Yes."})["choices"][0], {"message": None}]}),
    offering(call('{"id":"M1"}')),
    calling(call(name="anything, as no tools were logged")),
]  # fmt: skip


@pytest.mark.parametrize("line", ACCEPTED)
def test_well_formed_lines_are_records_and_stay_as_they_are(line: dict[str, Any]) -> None:
    made = record(line)
    assert made.normalisations == ()
    assert (made.request, made.response) == (line["request"], line["response"])


def test_of_several_choices_the_first_counts() -> None:
    first, second = (answer({"content": text})["choices"][0] for text in ("Yes.", "No."))
    made = record(log(response={"choices": [first, second]}))
    assert made.answer["content"] == "Yes."
    assert len(made.response["choices"]) == 2


CANONICAL, EMPTY = Normalisation.CANONICAL_ARGUMENTS, Normalisation.EMPTY_ARGUMENTS
BROKEN = Normalisation.BROKEN_CHARACTERS


@pytest.mark.parametrize(
    ("logged", "kept", "changes"),
    [
        ('{"a":"ü","b":1}', '{"a":"ü","b":1}', ()),
        ('{"b": 1, "a": "ü"}', '{"a":"ü","b":1}', (CANONICAL,)),
        ({"b": 1, "a": "ü"}, '{"a":"ü","b":1}', (CANONICAL,)),
        ("", "{}", (EMPTY,)),
        (" ", "{}", (EMPTY,)),
        (None, "{}", (EMPTY,)),
        ("{ }", "{}", (CANONICAL,)),
        ('{"a": "\\ud83d"}', '{"a":"\ufffd"}', (BROKEN, CANONICAL)),
    ],
)
def test_arguments_become_one_canonical_text_and_a_change_is_counted(
    logged: Any, kept: str, changes: tuple[Normalisation, ...]
) -> None:
    made = record(calling(call(logged)))
    assert made.answer["tool_calls"][0]["function"]["arguments"] == kept
    assert made.normalisations == changes


def test_arguments_in_the_history_are_canonical_too() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call('{ "a" : 1 }')]}
    messages = record(asking(USER, turn)).messages
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


@pytest.mark.parametrize(
    ("logged", "changed"),
    [
        (1767225600, False),
        (1767225600.0, False),
        (1767225600000, True),
        ("2026-01-01T00:00:00Z", True),
        ("2026-01-01T01:00:00.000+01:00", True),
        ("20260101T000000+0000", True),
    ],
)
def test_timestamps_are_seconds(logged: Any, changed: bool) -> None:
    made = record(log(timestamp=logged))
    assert made.timestamp == 1767225600.0
    assert made.normalisations == ((Normalisation.TIMESTAMP,) if changed else ())


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept() -> None:
    line = json.dumps(asking({"role": "user", "content": "\U0001f600 \ud83d"}))
    made = record(line)
    assert made.messages[0]["content"] == "\U0001f600 \ufffd"
    assert made.normalisations == (Normalisation.BROKEN_CHARACTERS,)
    whole = json.dumps(asking({"role": "user", "content": "\U0001f600"}))
    assert record(whole).normalisations == ()


def legacy_call(name: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": None, "function_call": function}


def test_legacy_functions_become_tools_and_tool_calls() -> None:
    returned = {"role": "function", "name": "track", "content": "shipped"}
    line = asking(
        USER,
        legacy_call("track"),
        {**returned, "content": None},
        legacy_call("pay", ""),
        {**returned, "name": "pay"},
        functions=[TRACK["function"], {"name": "pay"}],
        function_call={"name": "track"},
    )
    line["response"] = answer(legacy_call("track", '{"id":"M1"}'), "function_call")
    made = record(line)
    assert made.normalisations == (EMPTY, Normalisation.LEGACY_FUNCTIONS)
    assert made.tools == [TRACK, {"type": "function", "function": {"name": "pay"}}]
    assert made.request["tool_choice"] == {"type": "function", "function": {"name": "track"}}
    assert made.messages[1]["tool_calls"][0]["id"] == made.messages[2]["tool_call_id"]
    assert made.messages[3]["tool_calls"][0]["id"] == made.messages[4]["tool_call_id"]
    assert made.messages[2]["content"] == ""
    assert made.answer["tool_calls"][0]["function"]["arguments"] == '{"id":"M1"}'
    assert made.response["choices"][0]["finish_reason"] == "tool_calls"
    text = json.dumps(made.to_row())
    assert "function_call" not in text
    assert "functions" not in text


def test_a_call_logged_in_both_forms_is_one_call() -> None:
    both = {**legacy_call("track"), "tool_calls": [call()]}
    made = record(log(response=answer(both)))
    assert made.answer == {"role": "assistant", "content": None, "tool_calls": [call()]}
    assert made.normalisations == (Normalisation.LEGACY_FUNCTIONS,)


def test_a_legacy_answer_is_judged_by_its_schema_too() -> None:
    line = asking(USER, functions=[TRACK["function"]])
    line["response"] = answer(legacy_call("track", '{"id": 5}'))
    assert rejection(line).reason == Reason.REFERENCE_VIOLATES_SCHEMA


def test_a_violation_can_be_kept_and_is_counted() -> None:
    made = record(offering(call('{"id":5}')), keep_violations=True)
    assert made.normalisations == (Normalisation.VIOLATES_SCHEMA,)
    assert record(offering(call('{"id":"a"}')), keep_violations=True).normalisations == ()


STREAM = [
    chunk({"role": "assistant", "content": ""}, model="big", created=1),
    chunk({"content": "On its"}),
    chunk({"content": " way.", "refusal": None}, usage=None),
    chunk({}, "stop"),
    chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}),
]


@pytest.mark.parametrize("response", [STREAM, {"chunks": STREAM}])
def test_streamed_chunks_become_one_response(response: Any) -> None:
    made = record(log(response=response))
    assert made.answer == {"role": "assistant", "content": "On its way."}
    assert made.usage == {"prompt_tokens": 3, "completion_tokens": 4}
    assert made.response["object"] == "chat.completion"
    assert made.response["model"] == "big"
    assert made.response["choices"][0]["finish_reason"] == "stop"
    assert made.normalisations == (Normalisation.STREAM_CHUNKS,)


def test_a_single_chunk_is_a_response() -> None:
    assert record(log(response=chunk({"content": "Yes."}, "stop"))).answer["content"] == "Yes."


def test_streamed_tool_calls_are_put_together_by_index() -> None:
    named = {"name": "track"}
    made = record(
        log(
            response=[
                chunk(piece(0, "", id="c1", type="function", function=named)),
                chunk(piece(1, '{"b"', id="c2", type="function", function=named)),
                chunk(piece(0, '{"a')),
                chunk(piece(1, ":2}")),
                chunk(piece(0, '":1}', id="", function={"name": ""})),
                chunk({}, "tool_calls"),
            ]
        )
    )
    assert made.answer["tool_calls"] == [call('{"a":1}'), call('{"b":2}', id="c2")]
    assert made.normalisations == (Normalisation.STREAM_CHUNKS,)


def test_streamed_tool_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    named = {"name": "track"}
    deltas = [
        piece(None, '{"a"', id="c1", function=named),
        piece(None, ":1}"),
        piece(None, "{}", id="c2", function=named),
    ]
    made = record(log(response=[*map(chunk, deltas), chunk({}, "tool_calls")]))
    assert made.answer["tool_calls"] == [call('{"a":1}'), call(id="c2")]


def test_a_streamed_legacy_call_is_put_together() -> None:
    deltas = [
        {"function_call": {"name": "track", "arguments": ""}},
        {"function_call": {"arguments": '{"id":'}},
        {"function_call": {"arguments": '"M1"}'}},
    ]
    made = record(log(response=[*map(chunk, deltas), chunk({}, "function_call")]))
    assert made.answer["tool_calls"][0]["function"] == {"name": "track", "arguments": '{"id":"M1"}'}
    assert len(made.normalisations) == 2


def test_of_several_streamed_choices_the_first_counts() -> None:
    pieces = [
        {"index": 1, "delta": {"content": "No."}, "finish_reason": "stop"},
        {"index": 0, "delta": {"content": "Yes."}, "finish_reason": "stop"},
    ]
    made = record(log(response=[chunk(choices=[piece]) for piece in pieces]))
    assert made.answer["content"] == "Yes."


def test_changes_are_named_once_and_in_order() -> None:
    made = record({**calling(call("{ }"), call("{  }"), call("")), "timestamp": 1767225600000})
    assert made.normalisations == (CANONICAL, EMPTY, Normalisation.TIMESTAMP)


@pytest.mark.parametrize(
    ("folder", "records", "rejected"),
    [
        (
            "assistant_router",
            2185,
            {
                "not_json": 15,
                "empty_choices": 20,
                "tool_arguments_not_json": 20,
                "bad_timestamp": 10,
                "missing_workload_id": 10,
                "empty_messages": 10,
                "unknown_role": 10,
            },
        ),
        ("support_triage", 10_003, {}),
    ],
)
def test_real_traffic_gives_the_counts_its_notes_say(
    folder: str, records: int, rejected: dict[str, int]
) -> None:
    path = Path(__file__).parents[2] / "shared" / "data" / folder
    if not path.is_dir():
        pytest.skip("needs the real traffic beside the repository")
    counts: Counter[str] = Counter()
    for file in sorted(path.glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            parsed = parse_line(line, file.name, 0)
            counts["" if isinstance(parsed, Record) else parsed.reason] += 1
    assert counts.pop("") == records
    assert counts == rejected


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
