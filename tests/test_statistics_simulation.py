"""Do intervals hold the truth as often as they say? Thousands of boards whose truth is known.

`make bench-statistics` draws more boards of more kinds.
"""

import pytest

from tests.benchmarks.statistics import Design, coverage, false_promotions

BOARDS = 2_000
SINGLE = Design(qualities=(0.9, 0.75), records=200)
CLUSTERED = Design(qualities=(0.9, 0.75), records=200, largest=7)


@pytest.mark.parametrize("design", [SINGLE, CLUSTERED], ids=["records", "conversations"])
def test_intervals_hold_the_truth_in_95_of_100(design):
    means, pairs = coverage(design, BOARDS, seed=11)
    assert means == pytest.approx(0.95, abs=0.015)
    assert pairs == pytest.approx(0.95, abs=0.015)


def test_counting_records_instead_of_conversations_would_claim_too_much():
    blind = Design(CLUSTERED.qualities, CLUSTERED.records, CLUSTERED.largest, known=False)
    means, _ = coverage(blind, 300, seed=12)
    assert means < 0.92


@pytest.mark.parametrize("asked_again", [False, True])
@pytest.mark.parametrize("design", [SINGLE, CLUSTERED], ids=["records", "conversations"])
def test_at_the_margin_few_are_promoted(design, asked_again):
    rate, _ = false_promotions(design, BOARDS, seed=13, asked_again=asked_again)
    assert rate <= 0.05
