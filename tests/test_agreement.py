"""How far judges agree, against published examples; what labels make of a judge, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.statistics import corrected_mean, krippendorff_alpha
from flywheel.types import Estimate

N = None
EXAMPLE_C = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
"""Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers,
twelve units."""


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorffs_own_example(level, alpha):
    units = list(zip(*EXAMPLE_C, strict=True))
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_judges_and_two_values_is_that_of_krippendorffs_example():
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    pairs = list(zip(first, second, strict=True))
    assert krippendorff_alpha(pairs, "nominal") == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize(
    "ratings",
    [[], [[1.0]], [[1.0, None], [None, 2.0]], [[1.0, 1.0], [1.0, 1.0]]],
    ids=["nothing", "one judge", "never two", "all the same"],
)
def test_where_there_is_nothing_to_agree_on_there_is_no_alpha(ratings):
    assert krippendorff_alpha(ratings, "interval") is None


values = st.one_of(st.none(), st.integers(0, 9).map(lambda v: v / 9))


@given(st.lists(st.lists(values, min_size=3, max_size=3), max_size=8), st.randoms())
def test_alpha_does_not_depend_on_order_and_is_never_above_one(ratings, order):
    alpha = krippendorff_alpha(ratings, "interval")
    other = [order.sample(row, 3) for row in order.sample(ratings, len(ratings))]
    again = krippendorff_alpha(other, "interval")
    assert (alpha is None) == (again is None)
    if alpha is not None and again is not None:
        assert alpha == pytest.approx(again)
        assert alpha <= 1 + 1e-9


# -- judge's means, corrected by people


def board(rng, records, labels, *, skill, groups=0):
    """One simulated trial: the judge's values, people's word on a random sample, and the groups."""
    of = rng.integers(groups, size=records) if groups else np.arange(records)
    effect = rng.normal(0, 1.2, size=groups or records)[of]
    good = rng.random(records) < 1 / (1 + np.exp(-1 - effect * bool(groups)))
    judge = np.clip(0.8 - 0.2 * (1 - good) * skill + rng.normal(0, 0.15, records), 0, 1)
    chosen = rng.permutation(records)[:labels]
    names = [f"r{i}" for i in range(records)]
    judged = dict(zip(names, judge.tolist(), strict=True))
    labelled = {names[i]: float(good[i]) for i in chosen}
    return judged, labelled, dict(zip(names, of.tolist(), strict=True))


TRUTH = 1 / (1 + np.exp(-1))


@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0], ids=["blind", "fair", "good"])
def test_corrected_intervals_hold_the_truth_as_often_as_they_say(skill):
    rng = np.random.default_rng(5)
    found = [corrected_mean(*board(rng, 400, 60, skill=skill)[:2]) for _ in range(1_200)]
    hits = [f.low <= TRUTH <= f.high for f in found if f and f.low is not None and f.high]
    assert len(hits) == 1_200
    assert 0.935 <= np.mean(hits) <= 0.97
    assert np.mean([f.value for f in found if f]) == pytest.approx(TRUTH, abs=0.005)


def test_corrected_intervals_hold_the_truth_where_records_come_in_conversations():
    rng = np.random.default_rng(6)
    draws = np.random.default_rng(0).normal(0, 1.2, 1_000_000)
    truth = float((1 / (1 + np.exp(-1 - draws))).mean())
    hits = []
    for _ in range(1_000):
        found = corrected_mean(*board(rng, 400, 200, skill=1.0, groups=60))
        assert found
        hits.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.98


def width(found: Estimate | None) -> float:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_a_good_judge_makes_the_interval_narrower_and_a_blind_one_does_no_harm():
    rng = np.random.default_rng(7)
    some = {skill: [board(rng, 1_000, 80, skill=skill)[:2] for _ in range(50)] for skill in (0, 4)}
    alone = {
        skill: np.mean([width(corrected_mean(labelled, labelled)) for _, labelled in boards])
        for skill, boards in some.items()
    }
    helped = {
        skill: np.mean([width(corrected_mean(*one)) for one in boards])
        for skill, boards in some.items()
    }
    assert helped[4] < 0.65 * alone[4]
    assert helped[0] < 1.03 * alone[0]


def test_a_judge_that_is_too_kind_is_put_right():
    judged = {f"r{i}": 0.9 for i in range(500)}
    labelled = {f"r{i}": float(i % 2) for i in range(100)}
    found = corrected_mean(judged, labelled)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.high is not None
    assert found.high < 0.9
    assert found.n == 500


def test_labels_that_all_say_the_same_leave_room_for_what_was_not_seen():
    judged = {f"r{i}": (i % 10) / 10 for i in range(300)}
    found = corrected_mean(judged, {f"r{i}": 1.0 for i in range(20)})
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.839, abs=1e-3)


@pytest.mark.parametrize("labels", [0, 9])
def test_few_labels_give_no_figure(labels):
    judged = {f"r{i}": 0.5 for i in range(300)}
    assert corrected_mean(judged, {f"r{i}": 1.0 for i in range(labels)}) is None


def test_labels_of_all_records_leave_the_judge_out():
    judged = {f"r{i}": 0.9 for i in range(40)}
    found = corrected_mean(judged, {f"r{i}": float(i < 10) for i in range(40)})
    assert found is not None
    assert found.value == pytest.approx(0.25)
