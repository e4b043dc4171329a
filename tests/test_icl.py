"""Few-shot prompts: the nearest example stands beside the query, in the style an endpoint takes."""

from __future__ import annotations

import pytest

from flywheel import models
from flywheel.methods import base, icl
from flywheel.testing import TRACK_ORDER, sample_record, text_reply, tool_reply
from flywheel.types import Json, Record

RECORD = sample_record("Where is B-2?")
NEAR = sample_record("Where is A-1?", tool_reply("track_order", {"order_id": "A-1"}))
FAR = sample_record("Is it blue?", text_reply("Yes."))


def roles(messages: list[Json]) -> list[str]:
    return [m["role"] for m in messages]


def test_base_replays_what_any_model_can_be_asked_and_nothing_else() -> None:
    request = {
        "model": "big",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [TRACK_ORDER],
        "tool_choice": "auto",
        "stop": None,
        "temperature": 0.7,
        "stream": True,
        "user": "somebody",
        "max_tokens": 9,
    }
    got = base.request(Record(0.0, "w", "c", request, {}))
    assert got == {
        name: request[name] for name in ("messages", "tools", "tool_choice", "max_tokens")
    }


def test_the_newer_name_of_the_token_limit_counts_too() -> None:
    request = {"messages": [], "max_completion_tokens": 7}
    assert base.request(Record(0.0, "w", "c", request, {}))["max_tokens"] == 7
    both = {**request, "max_tokens": 9}
    assert base.request(Record(0.0, "w", "c", both, {}))["max_tokens"] == 9


def test_as_turns_examples_stand_between_system_and_query_nearest_last() -> None:
    body = icl.request(RECORD, [NEAR, FAR], "turns")
    messages = body["messages"]
    assert roles(messages) == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0] == RECORD.messages[0]
    assert messages[1:3] == [
        {"role": "user", "content": "Is it blue?"},
        {"role": "assistant", "content": "Yes."},
    ]
    assert messages[4] == NEAR.answer
    assert messages[5] == RECORD.messages[-1]
    assert body["tools"] == RECORD.tools


def test_as_turns_without_a_system_message_examples_come_first() -> None:
    record = sample_record("Where is B-2?", system="")
    assert roles(icl.request(record, [FAR], "turns")["messages"]) == ["user", "assistant", "user"]


def test_turns_carry_of_an_answer_only_what_a_model_says() -> None:
    logged = {**text_reply("Yes."), "refusal": None, "audio": None, "tool_calls": []}
    messages = icl.request(RECORD, [sample_record("q", logged)], "turns")["messages"]
    assert messages[2] == {"role": "assistant", "content": "Yes."}


def test_as_system_examples_are_text_before_what_the_system_message_says() -> None:
    body = icl.request(RECORD, [NEAR, FAR], "system")
    first, *rest = body["messages"]
    assert rest == RECORD.messages[1:]
    text = first["content"]
    assert first["role"] == "system"
    assert text.endswith("You help customers of a shop.")
    assert 0 < text.index("Is it blue?") < text.index("Where is A-1?")
    assert "assistant: Yes." in text
    assert '"name": "track_order"' in text
    assert "tool_calls" not in first


def test_as_system_without_a_system_message_one_is_made() -> None:
    record = sample_record("Where is B-2?", system="")
    messages = icl.request(record, [FAR], "system")["messages"]
    assert roles(messages) == ["system", "user"]
    assert "Is it blue?" in messages[0]["content"]


@pytest.mark.parametrize("style", ["turns", "system"])
def test_the_record_itself_stays_as_it_was(style: str) -> None:
    before = RECORD.to_row()
    icl.request(RECORD, [NEAR, FAR], style)
    assert RECORD.to_row() == before


@pytest.mark.skipif(
    not list(models.cache_folder().glob("sentence-transformers--*")),
    reason="the embedding model is not in the cache; a run with icl puts it there",
)
def test_the_nearest_examples_are_those_that_mean_the_same_nearest_first() -> None:
    pool = [
        sample_record("Do you sell blue mugs?"),
        sample_record("Where is my parcel A-1?"),
        sample_record("I want my money back."),
        sample_record("Has my parcel been shipped yet?"),
    ]
    folder = models.fetch("sentence-transformers/all-MiniLM-L6-v2")
    queries = [sample_record("Where is my parcel B-2?"), sample_record("Give me a refund")]
    first, second = icl.nearest(queries, pool, 2, folder)
    assert first == [pool[1], pool[3]]
    assert second[0] == pool[2]
    assert icl.nearest(queries[:1], pool[:1], 3, folder) == [pool[:1]]
