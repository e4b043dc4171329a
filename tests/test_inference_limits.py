"""What an endpoint bears is learned from its refusals, and one that is down is left alone."""

from __future__ import annotations

import random

import pytest

from flywheel.inference.limits import TRIP, Breaker, Pace


def test_a_refusal_halves_and_a_round_of_answers_gives_one_slot_back() -> None:
    pace = Pace(64, None)
    pace.refused(now=1.0, sent_at=0.5, retry_after_s=0.0)
    assert pace.slots == 32
    for _ in range(33):
        pace.answered()
    assert pace.slots == 33


def test_refusals_of_requests_sent_together_count_once() -> None:
    pace = Pace(64, None)
    for _ in range(32):
        pace.refused(now=1.0, sent_at=0.5, retry_after_s=0.0)
    assert pace.slots == 32
    pace.refused(now=2.0, sent_at=1.5, retry_after_s=0.0)
    assert pace.slots == 16


def test_whatever_happens_slots_and_rate_stay_within_their_ceilings() -> None:
    chance = random.Random(0)
    for _ in range(200):
        ceiling, per_minute = chance.randint(1, 300), chance.choice([None, 1.0, 60.0, 6000.0])
        pace, now, starts = Pace(ceiling, per_minute), 0.0, []
        for _ in range(200):
            now = max(now, pace.opens_at) + chance.choice([0.0, 0.0, 0.01, 0.5])
            pace.started(now)
            starts.append(now)
            if chance.random() < 0.2:
                pace.refused(now, now - 0.1, chance.choice([0.0, 1.0]))
            else:
                pace.answered()
            assert 1 <= pace.slots <= ceiling
        if per_minute:
            spent = starts[-1] - starts[0]
            assert len(starts) - 1 <= spent * per_minute / 60 + 1 + 1e-6


def test_nothing_starts_before_retry_after() -> None:
    pace = Pace(4, None)
    pace.refused(now=10.0, sent_at=9.0, retry_after_s=7.0)
    pace.refused(now=11.0, sent_at=9.0, retry_after_s=0.0)
    assert pace.opens_at == 17.0


def test_a_rate_is_halved_and_recovers_too() -> None:
    pace = Pace(1, 60.0)
    pace.started(0.0)
    assert pace.opens_at == 1.0
    pace.refused(now=1.0, sent_at=0.0, retry_after_s=0.0)
    pace.started(1.0)
    assert pace.opens_at == 3.0
    for _ in range(4):
        pace.answered()
    pace.started(3.0)
    assert pace.opens_at == 4.0


def failed(breaker: Breaker, *times: float, responded: bool = True) -> Breaker:
    for now in times:
        breaker.failed(now, now, responded=responded)
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = failed(Breaker(160), *range(TRIP - 1))
    breaker.answered()
    assert not failed(breaker, *range(TRIP - 1)).open
    assert failed(breaker, TRIP).open
    assert breaker.opens_at == TRIP + 1


def test_looks_become_rarer_and_one_answer_closes() -> None:
    breaker, now, pauses = failed(Breaker(160), 0, 0, 0), 0.0, []
    for _ in range(8):
        failed(breaker, now)
        pauses.append(breaker.opens_at - now)
        now = breaker.opens_at
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    breaker.answered()
    assert not breaker.open
    assert breaker.down_for(1e9) == 0


def test_requests_that_were_under_way_when_it_opened_prolong_nothing() -> None:
    breaker = failed(Breaker(160), 0, 0, 0, 0)
    for _ in range(50):
        breaker.failed(0.5, sent_at=0.0, responded=True)
    assert breaker.opens_at == 1.0


@pytest.mark.parametrize(("responded", "patience"), [(True, 160.0), (False, 40.0)])
def test_an_endpoint_is_given_up_when_patience_is_over(responded: bool, patience: float) -> None:
    breaker = failed(Breaker(160), 0, 1, 2, 3, responded=responded)
    assert breaker.down_for(patience - 0.1) == 0
    assert breaker.down_for(patience) == patience


def test_a_few_failures_are_no_outage_however_long_ago() -> None:
    assert failed(Breaker(160), *range(TRIP - 1)).down_for(1e9) == 0
