"""The fast lane says what the slow lane says; chunks of lines become rows, keys and tallies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from flywheel.datasets import Keys
from flywheel.datasets.minhash import Banding
from flywheel.fastlane import FastLane
from flywheel.intake import ROWS, Intake
from flywheel.records import parse_line
from flywheel.redaction import redact
from flywheel.stores import Chunk, Query
from flywheel.types import Json, Record

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}


def call(arguments: str = '{"n":1}', name: str = "f") -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function}


def line(query: str = "Hi there", **changes: Any) -> Json:
    message = {"role": "assistant", "content": None, "tool_calls": [call()]}
    made = {
        "timestamp": 1_700_000_000,
        "workload_id": "w",
        "client_id": "c",
        "request": {
            "model": "big",
            "messages": [
                {"role": "system", "content": "Help."},
                {"role": "user", "content": query},
            ],
            "tools": [TOOL],
            "temperature": 0.2,
        },
        "response": {
            "id": "chatcmpl-1",
            "created": 1_700_000_000,
            "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = made
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        place[int(last) if isinstance(place, list) else last] = value
    return made


def raw(made: Json) -> bytes:
    return json.dumps(made).encode()


ANSWER = "response__choices__0__message"
CALL = {"role": "assistant", "content": "", "tool_calls": [call()]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "call_1"}
PLAIN = {
    "a call": line(),
    "text": line(**{ANSWER: {"role": "assistant", "content": "Hello"}}),
    "history": line(
        request__messages=[
            {"role": "user", "content": "Hi"},
            CALL,
            RESULT,
            {"role": "user", "content": "é"},
        ]
    ),
    "spaced arguments": line(**{f"{ANSWER}__tool_calls": [call('{ "n": 2 }')]}),
    "a long number": line(request__seed=10**25),
    "metadata": line(request__metadata={"conversation_id": "x", "user": "u"}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_fast_lane_takes_plain_lines_and_says_the_same(name: str) -> None:
    text = raw(PLAIN[name])
    fast = FastLane().parse(text)
    slow = parse_line(text, "s", 0)
    assert fast is not None
    assert isinstance(slow, Record)
    record = fast.record()
    assert record == slow
    assert record.normalisations == slow.normalisations
    assert list(record.to_row().values()) == list(slow.to_row().values())


NOT_PLAIN = {
    "parts": line(request__messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
    "a name": line(request__messages=[{"role": "user", "content": "x", "name": "n"}]),
    "unknown field": {**line(), "extra": 1},
    "milliseconds": line(timestamp=1_700_000_000_000),
    "refused": line(**{ANSWER: {"role": "assistant", "content": None, "refusal": "no"}}),
    "violation": line(**{f"{ANSWER}__tool_calls": [call('{"n":"x"}')]}),
    "other tool": line(**{f"{ANSWER}__tool_calls": [call(name="g")]}),
    "no arguments": line(**{f"{ANSWER}__tool_calls": [call("")]}),
    "cut off": line(response__choices__0__finish_reason="length"),
    "orphan result": line(request__messages=[{"role": "user", "content": "x"}, RESULT]),
    "no messages": line(request__messages=[]),
    "blank workload": line(workload_id=" "),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_whatever_is_not_plain_is_left_to_the_slow_lane(name: str) -> None:
    assert FastLane().parse(raw(NOT_PLAIN[name])) is None


def mutated(rng: random.Random, text: bytes) -> bytes:
    """One small damage: a byte, a value, a missing or doubled piece."""
    data = bytearray(text)
    for _ in range(rng.choice((1, 1, 1, 2))):
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 2:
            data[at:at] = rng.choice([b'"', b"\\", b"{", b"[", b"null", b"1e999", b"\\ud800", b","])
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 20)]
        else:
            old, new = rng.choice(
                [(b'"user"', b'"tool"'), (b"null", b'""'), (b'"f"', b'"g"'), (b":1", b":1.0")]
            )
            data = bytearray(bytes(data).replace(old, new, 1))
    return bytes(data)


@pytest.mark.parametrize("keep", [False, True], ids=["reject violations", "keep them"])
def test_the_fast_lane_never_says_anything_else(keep: bool) -> None:
    rng = random.Random(7)
    lane, taken = FastLane(keep_violations=keep), 0
    lines = [raw(made) for made in [*PLAIN.values(), *PLAIN.values(), *NOT_PLAIN.values()]]
    for _ in range(6000):
        text = mutated(rng, rng.choice(lines))
        fast = lane.parse(text)
        if fast is None:
            continue
        taken += 1
        slow = parse_line(text, "s", 0, keep_violations=keep)
        assert isinstance(slow, Record), text
        assert fast.record() == slow, text
        assert fast.record().normalisations == slow.normalisations, text
    assert taken > 300


def chunk(*lines: Json | bytes) -> Chunk:
    texts = [one if isinstance(one, bytes) else raw(one) for one in lines]
    return Chunk(texts, list(range(0, 10 * len(texts), 10)), "logs.jsonl")


def test_a_chunk_becomes_rows_keys_rejections_and_tallies() -> None:
    intake = Intake(Query("w", "c", since=1000.0), banding=Banding(2, 3))
    harvest = intake.take(
        chunk(
            line(),
            b"{",
            line(workload_id="v"),
            line(client_id="d"),
            line(timestamp=999),
            line("My mail is jane@example.com"),
            line(**{f"{ANSWER}__tool_calls": [call('{ "n": 2 }')]}),
        )
    )
    tally = harvest.tally
    assert tally.lines == 7
    assert (tally.others, tally.other_clients, tally.outside) == ({"v": 1}, {"d": 1}, 1)
    assert tally.masked == {"EMAIL": 1}
    assert tally.normalised == {"canonical_arguments": 1}
    assert harvest.rejections.to_pylist()[0]["offset"] == 10
    rows = harvest.rows.to_pylist()
    records = [Record.from_row(row) for row in rows]
    assert [r.messages[-1]["content"] for r in records] == [
        "Hi there",
        "My mail is <EMAIL_1>",
        "Hi there",
    ]
    assert [row["text"] for row in rows] == ["hi there", "my mail is <email_1>", "hi there"]
    keys, wanted = Keys.from_table(harvest.keys), Keys.of(records)
    for name in ("id", "exact", "normalised", "text", "answer", "tool", "timestamp"):
        assert (getattr(keys, name) == getattr(wanted, name)).all(), name
    assert harvest.keys["prompt_tokens"].to_pylist() == [10, 10, 10]
    assert len(harvest.keys["bands"][0]) == 2


def test_personal_data_is_found_wherever_it_stands() -> None:
    mail = "jane@example.com"
    user = {"role": "user", "content": "x"}
    lines = [
        line(request__messages=[{"role": "system", "content": mail}, user]),
        line(request__metadata={"note": mail}),
        line(request__metadata={mail: 1}),
        line(request__user=mail),
        line(response__id=mail),
        line(response__usage={"note": mail}),
        line(request__messages=[user, {**RESULT, "content": mail}]),
        line(request__messages=[user, CALL, {**RESULT, "content": mail}]),
        line(request__tools=[{**TOOL, "function": {**TOOL["function"], "description": mail}}]),
        line(**{ANSWER: {"role": "assistant", "content": mail}}),
        line(**{f"{ANSWER}__tool_calls": [call(json.dumps({"n": 1, "to": mail}))]}),
    ]
    harvest = Intake(Query("w")).take(chunk(*lines))
    assert harvest.rows.num_rows == 10
    assert mail not in str(harvest.rows.to_pylist())
    assert harvest.tally.masked == {"EMAIL": 10}


PERSONAL = (
    *("jane@example.com", "Jane@Example.com", "(415) 555-0142", "415-555-0142", "4155550142"),
    *("4111 1111 1111 1111", "4111111111111111", "ORD-415555014", "plain words", "7"),
)


def test_a_plain_line_is_masked_as_its_record_is() -> None:
    rng = random.Random(3)
    intake, masked = Intake(Query("w")), 0

    def said() -> str:
        return f"Of {rng.choice(PERSONAL)} I say {rng.choice(PERSONAL)}."

    for _ in range(400):
        result = {**RESULT, "content": said()}
        history = [{"role": "user", "content": said()}, CALL, result] * rng.randrange(2)
        asked = {"role": "user", "content": said()}
        other = {"request__seed": 4155550142} if rng.random() < 0.1 else {}
        other |= {"request__user": rng.choice(PERSONAL)} if rng.random() < 0.1 else {}
        arguments = json.dumps({"n": rng.choice([1, 4155550142]), "to": rng.choice(PERSONAL)})
        answer = {f"{ANSWER}__tool_calls": [call(arguments)]}
        text = raw(line(request__messages=[*history, asked], **other, **answer))
        assert FastLane().parse(text) is not None
        logged = parse_line(text, "s", 0)
        assert isinstance(logged, Record)
        wanted, counts = redact(logged)
        harvest = intake.take(chunk(text))
        (row,) = harvest.rows.select(ROWS.names).to_pylist()
        assert Record.from_row(row) == wanted
        assert row["id"] == wanted.id
        assert harvest.tally.masked == counts
        masked += bool(counts)
    assert masked > 200


def test_off_masks_nothing() -> None:
    harvest = Intake(Query("w"), masking=False).take(chunk(line("jane@example.com")))
    assert "jane@example.com" in str(harvest.rows.to_pylist())
    assert not harvest.tally.masked


def test_real_lines_go_through_both_lanes_alike(shared_data: Path) -> None:
    lane, taken, records = FastLane(), 0, 0
    for path in sorted((shared_data / "assistant_router").glob("*.jsonl")):
        for text in path.read_bytes().splitlines():
            slow, fast = parse_line(text, "s", 0), lane.parse(text)
            records += isinstance(slow, Record)
            if fast is not None:
                taken += 1
                assert fast.record() == slow
    assert taken == records == 2185
