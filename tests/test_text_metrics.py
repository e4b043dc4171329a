"""Metrics of text: values that others publish, and what must hold for any two texts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import sentence_chrf

from flywheel.config import MetricConfig
from flywheel.scoring import METRICS, TEXT_METRICS, Scorer, chosen, text
from flywheel.testing import sample_record, text_reply, tool_reply
from flywheel.types import Completion, Json, Score, ScoreStatus
from tests.cpu_time import cpu_within

PARAMETERS: dict[str, Json] = {"regex_match": {"pattern": r"(\w)"}}
OF_TEXT = [n for n, m in METRICS.items() if m.applies is METRICS["exact_match"].applies]
SYMMETRIC = ["exact_match", "exact_text", "label_accuracy", "token_f1", "rouge_l"]
HOSTILE = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\ud800\udc00\u202e\u200f\u0000\u0301\u200d👩‍👩‍👧\ufeff你กि <script>"),
    ),
    max_size=40,
)


def alike(texts: Any, model: str) -> Any:
    """One-dimensional embeddings: every text lies where every other does."""
    return np.ones((len(texts), 1), np.float32)


def scored(name: str, expected: str, answer: Json | str, **parameters: Any) -> Score:
    config = MetricConfig(metric=name, parameters=PARAMETERS.get(name, {}) | parameters)
    scorer = Scorer(chosen.bound(chosen.asked([config]), labels=False))
    record = sample_record("?", text_reply(expected))
    message = text_reply(answer) if isinstance(answer, str) else answer
    (score,) = scorer.score_all([record], [Completion(record.id, message)], alike)
    return score


def value(name: str, expected: str, answer: str, **parameters: Any) -> float | None:
    return scored(name, expected, answer, **parameters).value


@pytest.mark.parametrize(
    ("expected", "answer", "f1"),
    [  # by google-research's rouge_score 0.0.4, no stemmer
        ("the cat was found under the bed", "the cat was under the bed", 0.923077),
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("Your order A-17 has been shipped.", "The order A-17 was shipped yesterday!", 0.571429),
        ("a b c d e f g", "g f e d c b a", 0.142857),
        ("To be, or not to be", "to be or to be not", 0.833333),
        ("Refunds take 5-7 days.", "refunds take about 5 to 7 days, usually", 0.769231),
    ],
)
def test_rouge_l_is_that_of_the_reference_implementation(expected, answer, f1):
    assert value("rouge_l", expected, answer) == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize(
    ("expected", "answer", "f1"),
    [
        ("in Paris", "Paris", 2 / 3),
        ("Paris, France", "france PARIS", 1),
        ("the the cat", "the cat cat", 2 / 3),
        ("Paris", "Rome", 0),
        ("你好世界", "世界好", 6 / 7),
        ("हिन्दी में", "हिन्दी", 2 / 3),
        ("!!!", "!!!", 1),
        ("?!", "...", 1),
        ("+", "-", 0),
    ],
)
def test_token_f1_counts_words_in_common_in_any_script(expected, answer, f1):
    assert value("token_f1", expected, answer) == pytest.approx(f1)


@pytest.mark.parametrize("parameters", [{}, {"word_order": 2}, {"char_order": 4, "beta": 1.0}])
def test_chrf_is_sacrebleus(parameters):
    expected, answer = "the quick brown fox", "a quick brown dog"
    theirs = sentence_chrf(answer, [expected], **parameters).score
    assert value("chrf", expected, answer, **parameters) == pytest.approx(theirs / 100)


@pytest.mark.parametrize(
    ("name", "expected", "answer", "right"),
    [
        ("exact_text", "Card lost.", "card lost", 0),
        ("exact_match", "Card lost.", " card  LOST!", 1),
        ("label_accuracy", "Card lost.", " card  LOST!", 1),
        ("label_accuracy", "card_lost", "The label is card_lost", 0),
        ("exact_text", "é", "e\u0301", 0),
        ("exact_match", "é", "e\u0301", 1),
        ("exact_match", "yes", "yеs", 0),  # a Cyrillic letter
    ],
)
def test_exact_is_exact_and_normalised_is_not(name, expected, answer, right):
    assert value(name, expected, answer) == right


@pytest.mark.parametrize(
    ("expected", "answer", "same", "share"),
    [
        ('{"a": 1, "b": [2, 3]}', '{"b":[2.0,3],"a":1}', 1, 1),
        ('{"a": 1, "b": 2}', '{"a": 1}', 0, 2 / 3),
        ('{"a": 1}', '{"a": 1, "b": null}', 0, 2 / 3),
        ('{"a": {"x": 1}}', '{"a": {"y": 1}}', 0, 0),
        ("[1, 2]", "[2, 1]", 0, 0),
        ("[1, 1]", "[1]", 0, 2 / 3),
        ("{}", "{}", 1, 1),
        ("{}", "[]", 0, 0),
        ('"a"', '"a "', 1, 1),
        ("true", "1", 0, 0),
        ('{"a": 1}', "a is 1", 0, 0),
        ('{"a": 1}', '```json\n{"a": 1}\n```', 0, 0),
        ('```json\n{"a": 1}\n```', '```\n{"a": 1}```', 1, 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1, 1),
        ('{"a": 1}', '{"a": NaN}', 0, 0),
        ('{"a": 1}', "[" * 100_000, 0, 0),
        ('{"a": 1}', "", 0, 0),
    ],
)
def test_json_is_compared_by_its_structure(expected, answer, same, share):
    assert value("json_match", expected, answer) == same
    assert value("json_f1", expected, answer) == pytest.approx(share)


SCHEMA: Json = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Lima"]},
        "when": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "uniqueItems": True},
        "unit": {"type": "string", "default": "C"},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("answer", "same", "reason"),
    [
        ('{"city": "Paris", "unit": "C"}', 1, ""),
        ('{"city": "Lima"}', 0, ""),
        ('{"city": "Rome"}', 0, "contradicts the schema at /properties/city/enum"),
        ("{}", 0, "contradicts the schema at /required"),
        ("[]", 0, "contradicts the schema at /type"),
    ],
)
def test_a_schema_says_which_json_means_the_same(answer, same, reason):
    score = scored("json_match", '{"city": "Paris"}', answer, schema=SCHEMA)
    assert (score.value, score.reason) == (same, reason)


def test_a_schema_evens_out_instants_and_sets():
    one = '{"city": "Paris", "when": "2026-01-01T12:00:00Z", "tags": [1, 2]}'
    two = '{"tags": [2, 1], "when": "2026-01-01T13:00:00+01:00", "city": "Paris"}'
    assert value("json_match", one, two, schema=SCHEMA) == 1
    assert value("json_match", one, two) == 0


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ("not JSON", "the expected answer is no JSON"),
        ('{"city": 7}', "the expected answer contradicts the schema at"),
    ],
)
def test_a_reference_that_is_wrong_itself_leaves_json_unscored(expected, reason):
    score = scored("json_f1", expected, '{"city": "Paris"}', schema=SCHEMA)
    assert score.status is ScoreStatus.UNSCORED
    assert score.reason.startswith(reason)


@pytest.mark.parametrize(
    ("pattern", "full", "answer", "right"),
    [
        (r"order", False, "Your order is here", 1),
        (r"order", True, "Your order is here", 0),
        (r"A-(\d+)", False, "It is A-17", 1),
        (r"A-(\d+)", False, "It is A-18", 0),
        (r"A-(\d+)", False, "It is lost", 0),
        (r"A-(?:\d+)", False, "It is A-18", 1),
        (r"(?i)PARIS", False, "paris", 1),
    ],
)
def test_a_pattern_must_be_found_and_catch_what_it_does_in_the_reference(
    pattern, full, answer, right
):
    assert value("regex_match", "Parcel A-17", answer, pattern=pattern, full=full) == right


def test_a_pattern_that_catches_nothing_in_the_reference_leaves_the_record_unscored():
    score = scored("regex_match", "no number", "A-1", pattern=r"A-(\d+)")
    assert (score.status, score.value) == (ScoreStatus.UNSCORED, None)
    assert score.reason == "the pattern does not match the expected answer"


def test_patterns_that_hang_other_engines_are_answered_at_once():
    with cpu_within(2):
        assert value("regex_match", "", "a" * 100_000 + "!", pattern=r"^(?:(?:a+)+)+$") == 0


@pytest.mark.parametrize("name", [n for n in OF_TEXT if n not in ("json_match", "json_f1")])
@pytest.mark.parametrize(("expected", "answer", "right"), [("", "", 1), ("a", "", 0), ("", "a", 0)])
def test_empty_texts_are_equal_to_each_other_alone(name, expected, answer, right):
    if name == "regex_match":
        assert value(name, expected, answer, pattern=r"^(a?)$") == right
    else:
        assert value(name, expected, answer) == right


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_tool_called_where_text_is_due_is_wrong_and_says_so(name):
    score = scored(name, "{}", tool_reply("track_order", {}))
    assert (score.value, score.reason) == (0, "a tool was called where text is expected")


@pytest.mark.parametrize("name", OF_TEXT)
@given(expected=HOSTILE, answer=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_any_two_texts_have_a_value_or_a_reason(name, expected, answer):
    score = scored(name, expected, answer)
    if score.value is None:
        assert score.status is ScoreStatus.UNSCORED
        assert score.reason
    else:
        assert 0 <= score.value <= 1
        json.dumps(score.classes, allow_nan=False).encode()
        if name in SYMMETRIC:
            assert value(name, answer, expected) == pytest.approx(score.value)


@pytest.mark.parametrize("name", OF_TEXT)
@given(said=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_the_reference_itself_scores_one_or_not_at_all(name, said):
    assert value(name, said, said) in (None, pytest.approx(1))


@pytest.mark.parametrize("name", OF_TEXT)
@pytest.mark.parametrize("unit", ["word ", "a", "你", "👩‍👩‍👧", "[", "\ud800"])
def test_a_hundred_kilobytes_are_scored_within_seconds(name, unit):
    with cpu_within(3):
        score = scored(
            name, "a short answer", unit * (100_000 // len(unit.encode("utf-8", "replace")))
        )
        assert score.value is not None or score.reason


def test_a_text_beyond_all_measure_is_unscored_not_wrong():
    score = scored("rouge_l", "a", "a " * 600_000)
    assert (score.status, score.value) == (ScoreStatus.UNSCORED, None)
    assert score.reason == "longer than 1,000,000 characters"


def test_ten_thousand_answers_are_scored_in_seconds():
    said = [f"Your order A-{i} was shipped on day {i % 31} and arrives soon." for i in range(50)]
    records = [sample_record(str(i), text_reply(said[i])) for i in range(50)]
    scorer = Scorer(chosen.bound(None, labels=False))
    with cpu_within(10):
        for i in range(10_000):
            record = records[i % 50]
            assert len(scorer.score(record, Completion(record.id, text_reply(said[i % 49])))) == 4


def test_embeddings_are_asked_for_once_and_only_of_texts():
    asked: list[list[str]] = []

    def turned(texts: Any, model: str) -> Any:
        asked.append([model, *texts])
        angle = np.linspace(0, math.pi, len(texts))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    config = MetricConfig(metric="embedding_similarity", parameters={"model": "org/m"})
    scorer = Scorer(chosen.bound(chosen.asked([config]), labels=False))
    replies = [text_reply("x\ud800"), text_reply(""), tool_reply("t", {}), None]
    records = [sample_record(str(i), text_reply(f"e{i}")) for i in range(4)]
    completions = [
        Completion(r.id, reply, error="" if reply else "timeout")
        for r, reply in zip(records, replies, strict=True)
    ]
    scores = scorer.score_all(records, completions, turned)
    assert asked == [["org/m", "e0", "x\ufffd"]]
    assert [s.value for s in scores] == [0, 0, 0, None]  # opposite vectors, and what has none
    assert scores[-1].status is ScoreStatus.FAILED


def test_the_defaults_are_metrics():
    assert set(TEXT_METRICS) <= METRICS.keys()


def test_every_metric_names_its_source_or_is_its_own_definition():
    assert all(METRICS[name].judge.__doc__ for name in METRICS)


@given(HOSTILE)
def test_readable_text_can_be_written_as_utf_8(said):
    assert text.readable(said).encode().decode() == text.readable(said)
    assert text.readable("a😀b") == "a😀b"
