from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from flywheel.errors import NotRecognised
from flywheel.importers import UNDATED, convert
from flywheel.records import parse_line
from flywheel.types import Normalisation, Record

USER = {"role": "user", "content": "Where is M1?"}
ANSWER = {"role": "assistant", "content": "On its way."}
TRACK = {
    "type": "function",
    "function": {"name": "track", "parameters": {"properties": {}, "required": []}},
}


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": "track", "arguments": arguments}}


def record(document: dict[str, Any], **given: Any) -> Record:
    before = copy.deepcopy(document)
    log = convert(document, "export.jsonl", **given)
    assert document == before
    assert convert(document, "export.jsonl", **given) == log
    parsed = parse_line(json.dumps(log), "export.jsonl", 0)
    assert isinstance(parsed, Record), parsed
    return parsed


FINE_TUNING = {
    "messages": [{"role": "system", "content": "Be short."}, USER, {**ANSWER, "weight": 1}],
    "tools": [TRACK],
    "parallel_tool_calls": False,
}
STORED = {
    "object": "chat.completion",
    "id": "chatcmpl-1",
    "model": "gpt-4.1",
    "created": 1738960610,
    "request_id": "req_1",
    "tool_choice": None,
    "usage": {"total_tokens": 31, "completion_tokens": 18, "prompt_tokens": 13},
    "seed": 4944116822809979520,
    "temperature": 0.5,
    "input_user": None,
    "service_tier": "default",
    "tools": None,
    "metadata": {"workload_id": "shop.answers"},
    "choices": [
        {
            "index": 0,
            "message": {**ANSWER, "tool_calls": None, "function_call": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "response_format": None,
    "messages": {
        "object": "list",
        "data": [
            {"id": "m-0", "role": "system", "content": "Be short.", "content_parts": None},
            {"id": "m-1", "role": "user", "content": None,
             "content_parts": [{"type": "text", "text": "Where is M1?"}]},
        ],
        "has_more": False,
    },
}  # fmt: skip
NEMO = {
    "contract_version": "1.1",
    "request": {
        "tools": [TRACK],
        "messages": [
            {"role": "human", "content": "Where is M1?"},
            {"role": "ai", "content": None,
             "tool_calls": [called({"id": "M1"}), called({"id": "M2"})]},
            {"role": "tool", "content": "shipped", "tool_call_id": "t1"},
            {"role": "tool", "content": "lost", "tool_call_id": "t2"},
        ],
        "model": "meta/llama-3.1-70b-instruct",
        "temperature": None,
        "max_tokens": None,
    },
    "response": {
        "choices": [
            {
                "message": {"role": "assistant", "content": None,
                            "tool_calls": [called({"id": "M2"})]},
                "finish_reason": "tool_calls",
                "index": 0,
            }
        ],
        "id": "response-1",
        "object": "chat.completion",
        "created": 1756500000,
        "model": "meta/llama-3.1-70b-instruct",
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    },
    "client_id": "agents",
    "workload_id": "tracker",
    "timestamp": 1756500000,
    "error_details": None,
}  # fmt: skip
LOG = {"timestamp": 1, "workload_id": "w", "client_id": "c", "request": None, "response": None}


def test_a_log_object_passes_unchanged_valid_or_not() -> None:
    assert convert(LOG, "logs", workload_id="other") is LOG
    assert convert({"request": 5}, "logs") == {"request": 5}


def test_the_last_message_of_a_fine_tuning_example_is_the_answer() -> None:
    made = record(FINE_TUNING, workload_id="shop", client_id="web")
    assert made.messages == [{"role": "system", "content": "Be short."}, USER]
    assert made.answer == ANSWER
    assert made.tools == [TRACK]
    assert made.request["parallel_tool_calls"] is False
    assert (made.timestamp, made.workload_id, made.client_id) == (UNDATED, "shop", "web")
    assert record(FINE_TUNING, workload_id="s", client_id="w", timestamp=5).timestamp == 5


def test_a_fine_tuning_example_may_end_in_a_call_new_or_legacy() -> None:
    call = {"role": "assistant", "tool_calls": [called("{}", id="c1")]}
    names = {"workload_id": "shop", "client_id": "web"}
    assert record({"messages": [USER, call]}, **names).answer["tool_calls"]
    legacy = {"role": "assistant", "function_call": {"name": "track", "arguments": "{}"}}
    document = {"messages": [USER, legacy], "functions": [TRACK["function"]], **names}
    made = record(document)
    assert made.tools == [TRACK]
    assert made.normalisations == (Normalisation.LEGACY_FUNCTIONS,)


def test_a_stored_completion_is_taken_apart() -> None:
    made = record(STORED, client_id="web")
    assert made.messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Where is M1?"}]},
    ]
    assert made.answer["content"] == "On its way."
    assert (made.timestamp, made.workload_id, made.client_id) == (1738960610, "shop.answers", "web")
    assert made.request["temperature"] == 0.5
    assert made.request["model"] == made.response["model"] == "gpt-4.1"
    assert made.usage["prompt_tokens"] == 13
    assert "choices" not in made.request
    assert record({**STORED, "messages": [USER]}, client_id="web").messages == [USER]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_nemo_agent_toolkit_document_becomes_a_record(version: str) -> None:
    made = record({**NEMO, "contract_version": version})
    assert [m["role"] for m in made.messages] == ["user", "assistant", "tool", "tool"]
    assert [c["id"] for c in made.messages[1]["tool_calls"]] == ["t1", "t2"]
    assert made.answer["tool_calls"][0]["function"]["arguments"] == '{"id":"M2"}'
    assert (made.workload_id, made.client_id, made.timestamp) == ("tracker", "agents", 1756500000)
    assert made.normalisations == (Normalisation.CANONICAL_ARGUMENTS,)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "no known format"),
        ({"prompt": "Hi", "completion": "Ho"}, "no known format"),
        ([], "no known format"),
        (FINE_TUNING, "--workload-id"),
        ({**FINE_TUNING, "workload_id": "shop"}, "--client-id"),
        ({"messages": [USER]}, "no assistant's"),
        ({"messages": None}, "no assistant's"),
        ({**STORED, "messages": None}, "without its messages"),
        ({**STORED, "messages": {"data": [], "has_more": True}}, "first page"),
        ({**NEMO, "contract_version": "2.0"}, "contract_version is none of 1.0, 1.1"),
        ({**NEMO, "contract_version": ["1.0"]}, "contract_version is none of 1.0, 1.1"),
        ({**NEMO, "error_details": "jane@example.com timed out"}, "error_details"),
        ({**NEMO, "client_id": ""}, "--client-id"),
    ],
)
def test_what_cannot_be_imported_says_why(document: Any, says: str) -> None:
    with pytest.raises(NotRecognised, match=says) as caught:
        convert(document, "export.jsonl")
    assert str(caught.value).startswith("export.jsonl: ")
    assert "jane" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


@pytest.mark.parametrize("document", [FINE_TUNING, STORED, NEMO])
@pytest.mark.parametrize("junk", [None, 5, "x", [], [None], {}, {"a": []}, [["x"]]])
def test_a_field_of_any_kind_is_imported_or_not_recognised(document: Any, junk: Any) -> None:
    for broken in _with_each_field(document, junk):
        try:
            log = convert(broken, "export.jsonl", workload_id="w", client_id="c")
        except NotRecognised:
            continue
        parse_line(json.dumps(log), "export.jsonl", 0)


def _with_each_field(value: Any, junk: Any) -> list[Any]:
    """Copies of the value, each with one field of it, at any depth, replaced."""
    if not isinstance(value, dict | list):
        return [junk]
    fields = list(value.items() if isinstance(value, dict) else enumerate(value))
    made = [junk]
    for key, inner in fields:
        for replaced in _with_each_field(inner, junk):
            broken = copy.copy(value)
            broken[key] = replaced
            made.append(broken)
    return made
