"""When served answers count as those of the trained model, and how the first difference is told."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from flywheel.config import ParityConfig
from flywheel.parity import LIKELIEST, Generation, Parity, compare

LIMITS = ParityConfig(mean_difference=0.1, largest_difference=0.5)
LIKELY, TIE, UNLIKELY = -0.1, -2.4, -9.0


def place(**likely: float) -> dict[int, float]:
    """Log-probabilities at one place, tokens named by letters."""
    return {ord(token): value for token, value in likely.items()}


def said(prompt: str, answer: str, *places: dict[int, float], record: str = "r1") -> Generation:
    return Generation(record, [*map(ord, prompt)], [*map(ord, answer)], list(places))


def check(ours: Generation, theirs: Generation, limits: ParityConfig = LIMITS) -> Parity:
    return compare([ours], [theirs], limits, lambda ids: "".join(map(chr, ids)))


BASE = said("ask", "ab", place(a=LIKELY, b=TIE), place(b=LIKELY, a=UNLIKELY))


def test_a_model_agrees_with_itself() -> None:
    found = check(BASE, BASE)
    assert found == Parity(True, 1, 3, 1, 2, 0.0, 0.0, None)


def test_small_differences_of_log_probabilities_are_allowed_and_told() -> None:
    theirs = said("ask", "ab", place(a=LIKELY - 0.1, b=TIE), place(b=LIKELY, a=UNLIKELY))
    found = check(BASE, theirs)
    assert found.passed
    assert (found.mean_difference, found.largest_difference) == (0.05, 0.1)


@pytest.mark.parametrize(("off", "passes"), [(0.02, True), (0.04, True), (0.06, False)])
def test_by_default_rounding_passes_and_a_drift_of_all_tokens_does_not(
    off: float, passes: bool
) -> None:
    ours = said("ask", "ab", place(a=LIKELY), place(b=LIKELY))
    theirs = said("ask", "ab", place(a=LIKELY - off), place(b=LIKELY - off))
    assert check(ours, theirs, ParityConfig()).passed is passes


@pytest.mark.parametrize(
    ("theirs", "shown"),
    [
        ("asks", "from token 4 on: training renders 'ask', serving 'asks' (3 and 4 tokens)"),
        ("as", "from token 3 on: training renders 'ask', serving 'as' (3 and 2 tokens)"),
        ("bsk", "from token 1 on: training renders 'ask', serving 'bsk' (3 and 3 tokens)"),
    ],
)
def test_prompts_must_agree_to_the_token(theirs: str, shown: str) -> None:
    found = check(BASE, replace(BASE, prompt=[*map(ord, theirs)]))
    assert not found.passed
    assert found.first_difference == f"record r1: prompts differ {shown}"
    assert found.mean_difference is None


def test_one_log_probability_too_far_off_fails_and_is_shown() -> None:
    theirs = said("ask", "ab", place(a=LIKELY, b=TIE), place(b=LIKELY - 0.8, a=UNLIKELY))
    found = check(BASE, theirs, ParityConfig(mean_difference=9, largest_difference=0.5))
    assert not found.passed
    assert found.first_difference == (
        "record r1: answer token 2: the trained model says 'b' (-0.100) and the served one "
        "says 'b' (-0.900), 0.800 apart; the limit is 0.5"
    )


def test_many_small_differences_fail_together_and_the_largest_is_shown() -> None:
    ours = said("ask", "ab", place(a=LIKELY), place(b=LIKELY))
    theirs = said("ask", "ab", place(a=LIKELY - 0.1), place(b=LIKELY - 0.3))
    found = check(ours, theirs)
    assert not found.passed
    assert found.first_difference == (
        "record r1: answer token 2: the trained model says 'b' (-0.100) and the served one "
        "says 'b' (-0.400), 0.300 apart; on average over 2 answer tokens it is 0.200, "
        "where the limit is 0.1"
    )


def test_two_likely_tokens_may_change_places_and_what_follows_does_not_count() -> None:
    ours = said("ask", "ax", place(a=-0.69, b=-0.70), place(x=LIKELY))
    theirs = said("ask", "by", place(a=-0.71, b=-0.68), place(y=LIKELY))
    found = check(ours, theirs)
    assert found.passed
    assert (found.answer_tokens, found.same_answers) == (1, 0)


@pytest.mark.parametrize(
    "theirs",
    [
        said("ask", "b", place(b=LIKELY, a=UNLIKELY)),
        said("ask", "c", place(c=LIKELY, b=TIE)),
        said("ask", "b", place(b=-1.2, a=-1.5)),
    ],
    ids=["the other way round", "a token never thought of", "too near"],
)
def test_another_choice_must_have_been_nearly_as_likely_on_both_sides(theirs: Generation) -> None:
    found = check(said("ask", "a", place(a=LIKELY, b=TIE)), theirs)
    assert not found.passed
    assert "answer token 1: the trained model says 'a' (-0.100)" in found.first_difference


def test_an_answer_that_stops_early_is_a_difference() -> None:
    shorter = replace(BASE, answer=BASE.answer[:1], likeliest=BASE.likeliest[:1])
    for ours, theirs, who in (
        (BASE, shorter, "the served one"),
        (shorter, BASE, "the trained model"),
    ):
        found = check(ours, theirs)
        assert not found.passed
        assert f"{who} has ended" in found.first_difference
        assert "inf" not in json.dumps(found.to_json())


def test_the_first_of_several_differences_is_shown() -> None:
    other = said("ask", "b", place(b=LIKELY, a=UNLIKELY), record="r2")
    good = said("ask", "a", place(a=LIKELY, b=TIE), record="r1")
    bad = said("ask", "a", place(a=LIKELY, b=UNLIKELY), record="r2")
    found = compare([good, bad], [good, other], LIMITS, str)
    assert found.first_difference.startswith("record r2:")
    assert found.records == 2


def test_generations_travel_as_json() -> None:
    data = json.loads(json.dumps(BASE.to_json()))
    assert Generation.from_json(data) == BASE


def distribution(order: random.Random, noise: float, logits: list[float]) -> dict[int, float]:
    """The likeliest tokens of noisy logits."""
    noisy = [x + order.gauss(0, noise) for x in logits]
    norm = math.log(sum(map(math.exp, noisy)))
    best = sorted(range(len(noisy)), key=lambda i: -noisy[i])[:LIKELIEST]
    return {i: noisy[i] - norm for i in best}


def noisy(order: random.Random, noise: float, truth: list[list[float]]) -> Generation:
    places = [distribution(order, noise, logits) for logits in truth]
    return Generation("r", [1], [max(p, key=p.__getitem__) for p in places], places)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_passes_and_another_model_does_not(seed: int) -> None:
    order = random.Random(seed)
    truth = [[order.gauss(0, 3) for _ in range(50)] for _ in range(32)]
    other = [[order.gauss(0, 3) for _ in range(50)] for _ in range(32)]
    ours = noisy(order, 0.02, truth)
    assert check(ours, noisy(order, 0.02, truth)).passed
    assert not check(ours, noisy(order, 0.02, other)).passed
