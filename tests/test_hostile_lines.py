"""Whatever a log line holds, it is a Record or a Rejection, and soon.

Valid lines of every shape are mutated at random, as bytes and as JSON, from a fixed seed.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flywheel.records import parse_line
from flywheel.types import Reason, Record, Rejection
from tests.cpu_time import cpu_within

ROUNDS = 24_000
SLOWEST_S = 1.0
"""Of processor time, as other work may share the machine."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "parameters": {
                "$defs": {"person": {"properties": {"name": {"type": "string"}}}},
                "type": "object",
                "properties": {
                    "city": {"type": "string", "pattern": "^[A-Z]+", "maxLength": 20},
                    "guests": {"type": "array", "items": {"$ref": "#/$defs/person"}},
                    "meal": {"anyOf": [{"enum": ["lunch"]}, {"type": "null"}]},
                },
                "required": ["city"],
            },
        },
    }
]
USER = {"role": "user", "content": "A table in Paris 😀, please."}
PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "u"}},
]


def called(call_id: str) -> dict[str, Any]:
    function = {"name": "book", "arguments": '{"city":"PARIS","guests":[{"name":"A"}]}'}
    return {"id": call_id, "type": "function", "function": function}


def response(message: Any, reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "message": message}
    return {"id": "r", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def log(request: Any, answered: Any, timestamp: Any = 1767225600) -> dict[str, Any]:
    names = {"workload_id": "shop.router", "client_id": "web"}
    return {"timestamp": timestamp, **names, "request": request, "response": answered}


def chunk(delta: Any, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "choices": [choice]}


CALLING = {"role": "assistant", "content": None, "tool_calls": [called("c1"), called("c2")]}
LEGACY = {"role": "assistant", "content": None, "function_call": called("")["function"]}
HISTORY = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": PARTS},
    CALLING,
    {"role": "tool", "tool_call_id": "c1", "content": "done"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "done"}]},
    USER,
]
STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk(
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "book", "arguments": ""}}]}
    ),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"PARIS"}'}}]}),
    chunk({}, "tool_calls"),
]
VALID = [
    log({"messages": [USER], "model": "big"}, response({"role": "assistant", "content": "Yes."})),
    log({"messages": HISTORY, "tools": TOOLS}, response(CALLING, "tool_calls")),
    log({"messages": [USER], "tools": TOOLS}, STREAM, "2026-01-01T00:00:00+01:00"),
    log(
        {
            "messages": [USER, LEGACY, {"role": "function", "name": "book", "content": "ok"}],
            "functions": [TOOLS[0]["function"]],
            "function_call": "auto",
        },
        response(LEGACY, "function_call"),
        1767225600123,
    ),
]
JUNK = [
    "null", "true", "0", "-1", "1e308", "1e400", "NaN", "-Infinity", "9" * 400, "9" * 5000,
    '""', '" "', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"' + "x" * 10_000 + '"',
    "[]", "{}", "[[]]", "[null]", '{"": null}', '{"a": [{}]}', '"{"', '"[1]"', '"{\\"a\\": NaN}"',
    "[" * 70 + "]" * 70, "[" * 5000 + "]" * 5000, '{"a":' * 90 + "1" + "}" * 90, "[" * 3000,
    '{"$ref": "#"}', '{"$ref": "http://127.0.0.1:9/"}', '{"pattern": "(a+)+$"}', '"assistant"',
    '"tool"', '"function"', '"c1"', '"book"', '"2026-01-01"', '"chat.completion.chunk"',
    '{"role": "tool", "content": "a"}', '[{"type": "text", "text": "a"}]', '"array"', '"content"',
]  # fmt: skip
"""Raw JSON, or nearly, that is put where something else stood."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key of it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def with_values_changed(line: dict[str, Any], rng: random.Random) -> bytes:
    """Junk for one to three values, or values swapped, dropped, wrapped, repeated."""
    log = copy.deepcopy(line)
    marks: dict[str, str] = {}
    for number in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(places(log)))
        other, other_key = rng.choice(list(places(log)))
        match rng.randrange(7):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(other[other_key])
            case 2:
                holder[key] = rng.choice([[holder[key]], {"a": holder[key]}, str(holder[key])])
            case 3 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case _:
                marks[f'"mark {number}"'] = rng.choice(JUNK)
                holder[key] = f"mark {number}"
    text = json.dumps(log, ensure_ascii=rng.random() < 0.5)
    for mark, junk in marks.items():
        text = text.replace(mark, junk)
    return text.encode("utf-8", "surrogatepass")


def with_bytes_changed(line: dict[str, Any], rng: random.Random) -> bytes:
    """Bytes flipped, cut out, repeated, or strewn in."""
    raw = bytearray(json.dumps(line, ensure_ascii=False).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw))
        end = at + rng.randint(1, 30)
        match rng.randrange(4):
            case 0:
                raw[at] = rng.randrange(256)
            case 1 if len(raw) > 100:
                del raw[at:end]
            case 2:
                raw[at:at] = raw[at:end]
            case _:
                raw[at:at] = rng.choice([b'"', b"\\", b"{", b"]", b",", b"\\ud8", b"\xff", b"\n"])
    return bytes(raw)


Mutate = Callable[[dict[str, Any], random.Random], bytes]


def check(line: bytes, keep_violations: bool) -> Record | Rejection:
    with cpu_within(SLOWEST_S):
        parsed = parse_line(line, "logs", 0, keep_violations=keep_violations)
    assert isinstance(parsed, Record | Rejection)
    if isinstance(parsed, Record):
        row = parsed.to_row()
        assert Record.from_row(row) == parsed
        assert Record.from_row(row).to_row() == row
        for name in ("request", "response"):
            row[name].encode()
    else:
        assert 0 < len(parsed.detail) <= 200
        parsed.detail.encode()
    return parsed


@pytest.mark.parametrize(
    ("mutate", "share"), [(with_values_changed, 0.7), (with_bytes_changed, 0.3)]
)
def test_a_mutated_line_is_a_record_or_a_rejection(mutate: Mutate, share: float) -> None:
    rng = random.Random(20_260)
    seen = set()
    for number in range(int(ROUNDS * share)):
        line = mutate(VALID[number % len(VALID)], rng)
        try:
            parsed = check(line, keep_violations=number % 2 == 0)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} at {line!r}") from error
        seen.add(parsed.reason if isinstance(parsed, Rejection) else None)
    assert {None, Reason.NOT_JSON} < seen
    if mutate is with_values_changed:
        assert seen == {*Reason, None} - {Reason.REFUSAL, Reason.NOT_AN_OBJECT}


@pytest.mark.parametrize("line", VALID)
def test_the_lines_that_are_mutated_are_records(line: dict[str, Any]) -> None:
    assert isinstance(check(json.dumps(line).encode(), keep_violations=False), Record)


MB = 1_000_000


@pytest.mark.parametrize(
    ("junk", "accepted"),
    [
        (b'"' + b"x" * 50 * MB + b'"', True),
        (b'"' + b"\\ud800" * 8 * MB + b'"', True),
        (b"9" * 50 * MB, False),
        (b"0." + b"9" * 50 * MB, False),
        (b"[" * 50 * MB, False),
        (b"[" + b"1111111111," * 4 * MB + b"1]", False),
        (b'"' + b"x" * 50 * MB, False),
    ],
    ids=["text", "broken text", "digits", "fraction", "brackets", "list", "open text"],
)
def test_a_line_of_50_mb_is_read_or_refused(junk: bytes, accepted: bool) -> None:
    line = json.dumps(log({"messages": [{**USER, "content": 7}]}, response({"content": "Yes."})))
    parsed = parse_line(line.encode().replace(b": 7", b": " + junk), "logs", 0)
    assert isinstance(parsed, Record) == accepted


@pytest.mark.parametrize(
    "arguments",
    [{"a": "x" * MB}, {str(i): i for i in range(100_000)}, {"a": [[]] * 100_000}],
    ids=["text", "fields", "list"],
)
def test_large_arguments_are_read_soon(arguments: Any) -> None:
    call = {"id": "c", "function": {"name": "book", "arguments": json.dumps(arguments)}}
    line = log({"messages": [USER], "tools": TOOLS}, response({"tool_calls": [call]}))
    check(json.dumps(line).encode(), keep_violations=True)


def test_a_stream_of_many_chunks_is_put_together_soon() -> None:
    pieces = [{"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}] * 50_000
    deltas = [{"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}, *pieces]
    line = log({"messages": [USER]}, [*map(chunk, deltas), chunk({}, "tool_calls")])
    with cpu_within(5):
        assert isinstance(parse_line(json.dumps(line), "logs", 0), Record)
