"""Few-shot prompts: the nearest example stands beside the query, in the style an endpoint takes."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from flywheel.errors import EngineError
from flywheel.methods import base, icl
from flywheel.methods.icl import selection, similarity
from flywheel.methods.icl.budget import estimate
from flywheel.methods.icl.embeddings import Vectors
from flywheel.methods.icl.selection import Walk
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
    turned = icl.request(RECORD, [FAR, NEAR], "turns", "nearest_first")
    assert turned["messages"] == body["messages"]
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


def test_without_examples_the_request_is_productions() -> None:
    for style in ("turns", "system"):
        assert icl.request(RECORD, [], style) == base.request(RECORD)


def test_the_system_text_is_that_of_nvidias_blueprint() -> None:
    text = icl.request(RECORD, [NEAR], "system")["messages"][0]["content"]
    assert text == (
        "You are a helpful assistant that can answer questions and help with tasks.\n"
        "Here are some examples of how you should respond to different types of requests:\n\n"
        "For example, if the conversation looks like this:\n"
        "system: You help customers of a shop.\n\nuser: Where is A-1?\n\n\n"
        "Then you'll respond with:\nassistant: \nTool calls:\n"
        f"{json.dumps(NEAR.answer['tool_calls'], indent=2)}\n\n"
        "You help customers of a shop."
    )


# -- selection: positions of a pool whose classes are one letter each ---------------------------


def walk(classes: str, sizes: dict[int, float] | None = None, room: float = math.inf) -> Walk:
    """Along a pool in its own order; sizes are 1 but for those given."""
    return Walk(list(range(len(classes))), classes, lambda i: (sizes or {}).get(i, 1), room)


@pytest.mark.parametrize(
    ("classes", "count", "ratio", "chosen"),
    [
        ("aaabc", 3, 1.0, [0, 1, 2]),
        ("aaabc", 3, 0.7, [0, 1, 3]),
        ("aaabc", 3, 0.0, [0, 3, 4]),
        ("aaabc", 3, 0.3, [0, 3, 4]),
        ("aaabc", 5, 0.0, [0, 1, 2, 3, 4]),
        ("aabbaa", 4, 0.0, [0, 1, 2, 3]),
        ("aaaa", 3, 0.7, [0, 1, 2]),
        ("abcd", 3, 0.7, [0, 1, 2]),
        ("ab", 3, 0.7, [0, 1]),
        ("", 3, 0.7, []),
    ],
)
def test_the_nearest_come_first_and_the_rest_show_other_classes(
    classes: str, count: int, ratio: float, chosen: list[int]
) -> None:
    assert selection.similar(walk(classes), count, ratio) == chosen


def test_a_share_that_is_whole_on_paper_is_whole_here() -> None:
    assert selection.similar(walk("a" * 60 + "b"), 50, 0.58) == [*range(49), 60]
    assert len([i for i in selection.similar(walk("a" * 99 + "b"), 50, 0.58) if i < 29]) == 29


def test_what_does_not_fit_is_passed_over_and_the_next_best_tried() -> None:
    assert selection.similar(walk("aaaa", {0: 9, 2: 9}, room=2), 3, 1.0) == [1, 3]
    assert selection.similar(walk("aabbcc", {2: 9}, room=3), 3, 0.4) == [0, 3, 4]
    assert selection.uniform(walk("aabbcc", {0: 9, 1: 9}, room=3), 3) == [2, 3, 4]


def test_each_class_gets_its_share_whatever_its_size() -> None:
    assert selection.uniform(walk("aaaaabbbbcc"), 7) == [0, 1, 2, 5, 6, 9, 10]
    assert selection.uniform(walk("aaaab"), 4) == [0, 1, 2, 4]
    assert selection.uniform(walk("ab"), 4) == [0, 1]


IDS = [f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}" for i in range(60)]
CLASSES = list("a" * 40 + "b" * 10 + "c" * 5 + "d" * 4 + "e")


def hands(count: int, seed: int = 0, records: int = 300) -> list[list[int]]:
    names = [f"record-{i}" for i in range(records)]
    orders = selection.dealt(names, IDS, CLASSES, seed)
    return [selection.uniform(Walk(o, CLASSES, lambda _: 0, 0), count) for o in orders]


def test_with_fewer_places_than_classes_every_class_gets_its_turn() -> None:
    dealt = hands(3)
    assert all(len({CLASSES[i] for i in hand}) == 3 for hand in dealt)
    turns = Counter(CLASSES[i] for hand in dealt for i in hand)
    assert all(0.5 < turns[name] / 300 < 0.7 for name in "abcde")  # 3 of 5 places
    assert len({i for hand in dealt for i in hand if CLASSES[i] == "a"}) > 35


def test_hands_depend_on_seed_and_record_and_on_nothing_else() -> None:
    assert hands(3) == hands(3)
    assert hands(3) != hands(3, seed=1)
    assert hands(3, records=5) == hands(3)[:5]


def test_scores_that_are_equal_leave_the_pools_order() -> None:
    assert selection.by_score(np.array([0.5, 0.9, 0.5, 0.9], np.float32)) == [1, 3, 0, 2]


# -- similarity --------------------------------------------------------------------------------


def test_bm25_finds_rare_words_whatever_their_case() -> None:
    pool = ["where is the mug", "where is the parcel", "the", ""]
    rows = list(similarity.bm25(["Is my PARCEL here?", "mug!", "xyz", ""], pool))
    assert [selection.by_score(row)[0] for row in rows] == [1, 0, 0, 0]
    assert rows[2].tolist() == [0, 0, 0, 0]


def test_bm25_of_a_pool_without_words_knows_no_difference() -> None:
    assert [row.tolist() for row in similarity.bm25(["a"], ["", "?!"])] == [[0, 0]]


def test_bm25_is_the_published_formula() -> None:
    pool = ["a a b", "b c", "c"]
    (row,) = similarity.bm25(["a"], pool)
    idf, mean = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5)), 2
    assert row[0] == pytest.approx(idf * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / mean)), rel=1e-5)


def test_cosine_is_of_directions() -> None:
    pool = np.array([[2, 0], [0, 3], [1, 1]], np.float32)
    (row,) = similarity.cosine(np.array([[1, 0]], np.float32), pool)
    assert row.tolist() == pytest.approx([1, 0, 0.5**0.5])


# -- the budget --------------------------------------------------------------------------------


def words(body: Json) -> int:
    """A tokenizer of sorts."""
    return len(json.dumps(body["messages"]).split())


def test_no_prompt_exceeds_the_context_and_some_hold_fewer() -> None:
    said = [f"{'long ' * (7 * i % 30)}question {i}" for i in range(30)]
    pool = icl.Pool([sample_record(text, text_reply("Yes.")) for text in said], ["x"] * 30)
    records = [sample_record(f"{'what ' * (i * 4)}is it?") for i in range(20)]
    for style, context in [("turns", 80), ("system", 150)]:
        rule = icl.Rule(4, "lexical", style)
        budget = icl.Budget(context, words, "words")
        orders = icl.orders(records, pool, rule, 0, no_embedding)
        chosen = icl.choose(records, pool, rule, orders, budget, [10] * 20)
        lengths = [
            words(icl.request(r, e, style)) for r, e in zip(records, chosen, strict=True) if e
        ]
        assert max(lengths) <= context - 10
        assert len({len(examples) for examples in chosen}) > 3


def no_embedding(texts: list[str]) -> Vectors:
    raise AssertionError(f"embedded {len(texts)} texts")


def few_shot(budget: icl.Budget, **rule: Any) -> list[list[Record]]:
    pool = icl.Pool([NEAR, FAR], ["track_order", "no_tool"])
    how = icl.Rule(**{"examples": 2, "selection": "lexical", "style": "turns", **rule})
    orders = icl.orders([RECORD], pool, how, 0, no_embedding)
    return icl.choose([RECORD], pool, how, orders, budget, [10])


def test_without_a_limit_all_have_room() -> None:
    assert few_shot(icl.of_endpoint(None)) == [[NEAR, FAR]]


def test_a_trial_without_one_example_has_failed_and_says_why() -> None:
    with pytest.raises(EngineError, match=r"not one of 1 prompts has room .* 20 tokens"):
        few_shot(icl.of_endpoint(20))


def test_a_template_that_refuses_an_example_refuses_only_that() -> None:
    def count(body: Json) -> float:
        return math.inf if any(m.get("tool_calls") for m in body["messages"]) else words(body)

    assert few_shot(icl.Budget(999, count, "tokenizer")) == [[FAR]]
    assert few_shot(icl.Budget(math.inf, count, "tokenizer")) == [[FAR]]


def test_the_account_says_for_how_many_records_too_few_fitted() -> None:
    rule = icl.Rule(3, "lexical", "turns", min_examples=2)
    chosen = [[NEAR] * n for n in (3, 3, 2, 1, 0)]
    assert icl.account(chosen, rule, icl.of_endpoint(4096)) == {
        "context_tokens": 4096,
        "counted_by": "estimate",
        "examples_per_record": 1.8,
        "fewer_than_examples": 3,
        "fewer_than_min_examples": 2,
    }
    assert icl.account(chosen, rule, icl.of_endpoint(None))["context_tokens"] is None


@pytest.mark.parametrize(
    ("text", "tokens"), [("where is it", 4), ("AB-1234", 6), ("é", 2), ("a 1 2", 5)]
)
def test_the_estimate_counts_words_digits_and_signs(text: str, tokens: int) -> None:
    own, one = (estimate({"messages": [{"role": "user", "content": t}]}) for t in (text, "a"))
    assert own - one + 1 == tokens


def test_the_estimate_counts_tools_and_earlier_calls() -> None:
    asked = {"messages": RECORD.messages, "tools": None}
    assert estimate({**asked, "tools": [TRACK_ORDER]}) > estimate(asked) + 50
    turns = icl.request(RECORD, [NEAR], "turns")["messages"]
    assert estimate({"messages": turns}) > estimate(asked) + 20
