import json

import pytest

from flywheel.scoring import TEXT_METRICS, TOOL_METRICS, score
from flywheel.types import Completion, Json, Record, ScoreStatus

TOOL: Json = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


def call(name: str, arguments: Json | str) -> Json:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": text}}


def message(*calls: Json, content: str | None = None) -> Json:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def record(answer: Json, tools: list[Json] | None = None) -> Record:
    request = {"messages": [{"role": "user", "content": "q"}], "tools": tools or []}
    return Record(0.0, "w", "c", request, {"choices": [{"message": answer}]})


def values(expected: Json, answer: Json) -> tuple[float | None, ...]:
    rec = record(expected, [TOOL])
    by_name = {s.metric: s.value for s in score(rec, Completion(rec.id, answer))}
    return by_name["function_name"], by_name["function_name_and_args_accuracy"]


def exact_match(rec: Record, answer: Json) -> float | None:
    by_name = {s.metric: s.value for s in score(rec, Completion(rec.id, answer))}
    return by_name["exact_match"]


def test_same_call_is_right():
    assert values(message(call("f", {"a": 1})), message(call("f", {"a": 1}))) == (1, 1)


def test_wrong_name_is_wrong_and_wrong_arguments_only_cost_the_second_metric():
    assert values(message(call("f", {"a": 1})), message(call("g", {"a": 1}))) == (0, 0)
    assert values(message(call("f", {"a": 1})), message(call("f", {"a": 2}))) == (1, 0)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
        ('{"n": 5}', '{"n": 5.0}'),
        ('{"s": "New  York "}', '{"s": "New York"}'),
        ('{"s": "caf\\u00e9"}', '{"s": "cafe\\u0301"}'),
        ('{"l": [{"x": 1.0}]}', '{"l": [{"x": 1}]}'),
    ],
)
def test_spelling_of_arguments_does_not_matter(wanted, got):
    assert values(message(call("f", wanted)), message(call("f", got))) == (1, 1)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": "1"}, {"a": 1}),
        ({"a": None}, {}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": "Paris"}, {"a": "paris"}),
    ],
)
def test_other_arguments_are_wrong(wanted, got):
    assert values(message(call("f", wanted)), message(call("f", got))) == (1, 0)


def test_calls_are_compared_as_multisets():
    f, g = call("f", {"a": 1}), call("g", {})
    assert values(message(f, g), message(g, f)) == (1, 1)
    assert values(message(f, f), message(f)) == (0, 0)
    assert values(message(f, f), message(f, g)) == (0, 0)


@pytest.mark.parametrize(
    "broken",
    [
        message(call("f", '{"a": 1')),
        message(call("f", "[1]")),
        message(call("f", '{"a": NaN}')),
        message(call("f", '{"a":' + "[" * 100_000)),
        {"tool_calls": [{"function": {"name": "f"}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": None}}]},
        {"tool_calls": ["f"]},
        {"tool_calls": 7},
        message(content='<tool_call>{"name": "f"'),
    ],
)
def test_an_unparsable_call_is_wrong_even_where_abstaining_was_right(broken):
    assert values(message(call("f", {"a": 1})), broken) == (0, 0)
    assert values(message(content="Hello"), broken) == (0, 0)


def test_abstaining_is_right_exactly_when_production_made_no_call():
    assert values(message(content="Hello"), message(content="Hi")) == (1, 1)
    assert values(message(content="Hello"), message(call("f", {}))) == (0, 0)
    assert values(message(call("f", {})), message(content="Hello")) == (0, 0)


def test_a_reference_that_cannot_be_parsed_leaves_the_answer_unscored():
    rec = record(message(content="<tool_call> oops"), [TOOL])
    scores = {s.metric: s for s in score(rec, Completion(rec.id, message(call("f", {}))))}
    assert scores["function_name"].status is ScoreStatus.UNSCORED
    assert scores["function_name"].value is None
    assert scores["function_name"].reason


def test_metrics_follow_the_kind_of_answer():
    def names(rec: Record) -> set[str]:
        return {s.metric for s in score(rec, Completion(rec.id, message(content="x")))}

    assert names(record(message(call("f", {})))) == set(TOOL_METRICS)
    assert names(record(message(content="x"))) == set(TEXT_METRICS)
    assert names(record(message(content="x"), [TOOL])) == {*TOOL_METRICS, *TEXT_METRICS}


def test_a_failed_request_is_failed_with_its_reason_and_never_zero():
    rec = record(message(call("f", {})))
    scores = score(rec, Completion(rec.id, error="timed out after 300 s"))
    assert len(scores) == len(TOOL_METRICS)
    assert {(s.value, s.status, s.reason) for s in scores} == {
        (None, ScoreStatus.FAILED, "timed out after 300 s")
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("card  lost\n", 1.0),
        ("CARD LOST!", 1.0),
        ("Card lost?!.", 1.0),
        ("card", 0.0),
        ("", 0.0),
        ([{"type": "text", "text": "card lost"}, {"type": "image_url"}, 3], 1.0),
        (None, 0.0),
    ],
)
def test_exact_match_ignores_case_spacing_and_closing_marks(answer, expected):
    rec = record({"content": "Card lost."})
    assert exact_match(rec, {"content": answer}) == expected


def test_text_beside_a_call_nobody_asked_for_is_no_match():
    rec = record({"content": "ok"})
    assert exact_match(rec, message(call("f", {}), content="ok")) == 0.0


@pytest.mark.parametrize(
    "error",
    [
        "BadRequestError: Error code: 400 - {'error': {'message': \"This model's maximum context "
        'length is 2048 tokens. However, you requested 9000 tokens"}}',
        "BadRequestError: Error code: 400 - {'error': {'code': 'context_length_exceeded'}}",
        "BadRequestError: Error code: 400 - The prompt is longer than the maximum model length",
    ],
)
def test_a_record_that_does_not_fit_the_model_is_unscored(error):
    rec = record(message(call("f", {})), [TOOL])
    scores = score(rec, Completion(rec.id, error=error))
    assert {(s.value, s.status, s.reason) for s in scores} == {
        (None, ScoreStatus.UNSCORED, "context_length")
    }


@pytest.mark.parametrize(
    "error",
    [
        "InternalServerError: Error code: 500 - context_length cache lost",
        "BadRequestError: Error code: 400 - unknown tool",
    ],
)
def test_other_refusals_are_failures(error):
    rec = record(message(call("f", {})), [TOOL])
    assert {s.status for s in score(rec, Completion(rec.id, error=error))} == {ScoreStatus.FAILED}
