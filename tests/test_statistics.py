import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flywheel.statistics import (
    auc_interval,
    compare_all,
    conversations,
    estimate,
    holm,
    paired_difference,
    percentile,
    plan,
    roc_auc,
    surely_below,
    wilson,
)
from flywheel.statistics.stopping import ALPHA
from flywheel.testing import sample_record
from flywheel.types import Score, ScoreStatus

unit = st.floats(0, 1)


def scored(values, prefix="r"):
    return [Score(f"{prefix}{i}", "m", v) for i, v in enumerate(values)]


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case):
    k, n = case
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx(tuple(expected), abs=1e-9)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    for p, n in ((0.5, 100), (0.9, 100), (0.97, 50)):
        counts = rng.binomial(n, p, 2_000)
        covered = [low <= p <= high for low, high in (wilson(k / n, n) for k in counts)]
        assert 0.92 <= np.mean(covered) <= 0.985


def test_unscored_and_failed_are_counted_and_never_averaged():
    scores = [
        *scored([1, 1, 0]),
        Score("u", "m", None, ScoreStatus.UNSCORED, "no verdict"),
        Score("f", "m", None, ScoreStatus.FAILED, "timeout"),
    ]
    result = estimate(scores)
    assert result.value == pytest.approx(2 / 3)
    assert (result.n, result.unscored, result.failed, result.scored) == (5, 1, 1, 3)


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_what_is_no_number_is_unscored(nothing):
    result = estimate(scored([1.0, nothing, 0.0]))
    assert (result.value, result.n, result.unscored) == (0.5, 3, 1)
    pair = paired_difference(scored([1.0, nothing, 0.0]), scored([1.0, 1.0, 1.0]))
    assert (pair.value, pair.n) == (-0.5, 2)


def test_nothing_scored_has_no_value():
    for scores in ([], [Score("f", "m", None, ScoreStatus.FAILED, "x")]):
        result = estimate(scores)
        assert (result.value, result.low, result.high) == (None, None, None)
        assert result.n == len(scores)


@pytest.mark.parametrize("values", [[0.7], [0.7] * 20, [1.0], [0.0] * 5])
def test_equal_scores_still_have_an_interval(values):
    result = estimate(scored(values))
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.high - result.low > 0.1


@given(st.lists(unit, min_size=1, max_size=40), st.randoms())
def test_an_interval_holds_its_mean_and_does_not_depend_on_order(values, random):
    result = estimate(scored(values))
    slack = 1e-9
    assert -slack <= result.low <= result.value + slack
    assert result.value - slack <= result.high <= 1 + slack
    random.shuffle(values)
    assert estimate(scored(values)) == result


def test_a_paired_comparison_uses_only_shared_records():
    a = [Score("x", "m", 1), Score("y", "m", 1), Score("only a", "m", 0)]
    b = [Score("y", "m", 0), Score("x", "m", 0), Score("z", "m", None, ScoreStatus.FAILED, "")]
    result = paired_difference(a, b)
    assert (result.value, result.n) == (1.0, 2)
    nothing = paired_difference(a, [])
    assert (nothing.value, nothing.n, nothing.p_value) == (None, 0, 1.0)


def test_mcnemar_counts_only_the_records_that_differ():
    a, b = scored([1] * 9 + [0] + [1] * 90), scored([0] * 9 + [1] + [1] * 90)
    result = paired_difference(a, b)
    assert result.value == pytest.approx(0.08)
    assert result.p_value == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert 0 < result.low < 0.08 < result.high


def test_equal_answers_are_no_difference_but_not_a_certain_one():
    result = paired_difference(scored([1, 0] * 50), scored([1, 0] * 50))
    assert (result.value, result.p_value) == (0.0, 1.0)
    assert -0.05 < result.low < 0 < result.high < 0.05


def test_graded_scores_use_a_permutation_test():
    rng = np.random.default_rng(3)
    base = rng.uniform(0.2, 0.7, 60)
    better = paired_difference(scored(base + 0.1 + rng.normal(0, 0.05, 60)), scored(base))
    assert better.p_value < 0.001
    assert 0.05 < better.low < better.value < better.high < 0.15
    same = paired_difference(scored(base + rng.normal(0, 0.05, 60)), scored(base))
    assert same.p_value > 0.05


def test_the_permutation_test_is_level_under_the_null():
    rng = np.random.default_rng(5)
    p_values = [
        paired_difference(scored(rng.uniform(0.1, 0.9, 20)), scored(rng.uniform(0.1, 0.9, 20)))
        for _ in range(60)
    ]
    assert sum(d.p_value < 0.05 for d in p_values) <= 8


pairs = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1)


@given(pairs)
def test_swapping_sides_flips_the_difference(pairs):
    a, b = (scored(side) for side in zip(*pairs, strict=True))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.value == -other.value
    assert one.p_value == other.p_value
    assert one.low == pytest.approx(-other.high)
    assert -1 <= one.low <= one.value <= one.high <= 1


def test_holm_on_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(unit, max_size=10))
def test_holm_only_raises_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_the_interval_of_an_area_holds_the_truth_as_often_as_it_says():
    rng, truth, held, rounds = np.random.default_rng(0), 0.8, 0, 1_000
    apart = float(stats.norm.ppf(truth)) * math.sqrt(2)
    for _ in range(rounds):
        good, bad = rng.normal(apart, 1, 24), rng.normal(0, 1, 24)
        low, high = auc_interval(float((good[:, None] > bad).mean()), 24, 24)
        held += low <= truth <= high
    assert 0.93 <= held / rounds <= 0.98


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (24, 24), (24, 6), (1000, 3)])
@pytest.mark.parametrize("auc", [0.0, 0.2, 0.5, 0.81, 1.0])
def test_the_interval_of_an_area_has_a_width_and_holds_it(auc, positives, negatives):
    low, high = auc_interval(auc, positives, negatives)
    assert 0 <= low <= auc <= high <= 1
    assert low < high
    mirrored = auc_interval(1 - auc, positives, negatives)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_the_documented_widths_are_those_of_the_formula():
    page = (Path(__file__).parents[1] / "docs" / "judge.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert [int(pairs) for pairs, *_ in rows] == [10, 24, 40, 100]
    for pairs, verdicts, widths in rows:
        n = int(pairs)
        assert int(verdicts) == 2 * n + 3 * math.ceil(n / 4) + 52
        shown = [auc_interval(auc, n, n) for auc in (0.7, 0.8, 0.9, 1.0)]
        assert widths == " | ".join(f"{low:.2f} to {high:.2f}" for low, high in shown)
    few, all_ = (f"{wilson(0.0, n)[1]:.2f}" for n in (14, 52))
    assert f"the share may still be {all_} (Wilson's interval); of 14, {few}." in page


def test_roc_auc():
    assert roc_auc([3, 4], [1, 2]) == 1.0
    assert roc_auc([1, 2], [3, 4]) == 0.0
    assert roc_auc([1, 1], [1, 1]) == 0.5
    assert roc_auc([], [1]) == 0.5


@given(st.lists(st.integers(1, 10), min_size=1), st.lists(st.integers(1, 10), min_size=1))
def test_roc_auc_is_the_share_of_ordered_pairs(positives, negatives):
    wins = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert roc_auc(positives, negatives) == pytest.approx(np.mean(wins))


def test_percentile():
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([7], 95) == 7


def by(size, n):
    """So many records in conversations of this size."""
    return {f"r{i}": i // size for i in range(n)}


@pytest.mark.parametrize("values", [[1.0, 0.0] * 60, list(np.linspace(0, 1, 120))])
def test_groups_of_one_are_no_groups(values):
    alone = by(1, 120)
    other = [*values[60:], *values[:60]]
    assert estimate(scored(values), alone) == estimate(scored(values))
    pair = scored(values), scored(other)
    assert paired_difference(*pair, alone) == paired_difference(*pair)


@pytest.mark.parametrize("high", [1.0, 0.9])
def test_conversations_that_go_one_way_count_once_each(high):
    values = np.repeat([high, 0.1 * (high < 1)], 60)
    whole = [values[0], values[-1]] * 60
    once = estimate(scored(np.repeat([high, values[-1]], 6)))
    together = estimate(scored(values), by(10, 120))
    assert together.value == pytest.approx(once.value)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.15)
    mixed = estimate(scored(whole), by(10, 120))
    assert mixed.high - mixed.low < together.high - together.low


@pytest.mark.parametrize("values", [[1.0] * 40, [0.5] * 40, [1.0, 0.0] * 20, [0.3, 0.7] * 20])
def test_one_conversation_shows_almost_nothing(values):
    result = estimate(scored(values), by(40, 40))
    assert result.high - result.low > 0.7
    pair = paired_difference(scored(values), scored([0.0] * 40), by(40, 40))
    assert (pair.low, pair.high) == (-1.0, 1.0)
    assert pair.p_value == pytest.approx(1.0)


def test_a_pair_in_conversations_is_tested_by_conversation():
    a, b = scored([1] * 40), scored([0] * 10 + [1] * 30)
    assert paired_difference(a, b).p_value == pytest.approx(2 / 2**10)
    assert paired_difference(a, b, by(10, 40)).p_value == pytest.approx(1.0)


def test_many_alike_differences_are_surer_than_resampling_can_show():
    rng = np.random.default_rng(2)
    base = rng.uniform(0.2, 0.7, 400)
    result = paired_difference(scored(base + 0.1), scored(base + rng.normal(0, 0.05, 400)))
    assert 0 < result.p_value < 1e-6


def test_a_board_is_its_pairs_with_holm_over_all():
    rng = np.random.default_rng(4)
    board = {f"t{k}": scored((rng.uniform(size=80) < 0.5 + k / 10).astype(float)) for k in range(5)}
    board["t0"][3] = Score("r3", "m", None, ScoreStatus.FAILED, "timeout")
    found = compare_all(board, by(2, 80))
    alone = [paired_difference(board[p.first], board[p.second], by(2, 80)) for p in found]
    assert len(found) == 10
    expected = holm([d.p_value for d in alone])
    assert [p.difference.p_value for p in found] == pytest.approx(expected)
    for pair, one in zip(found, alone, strict=True):
        kept = pair.difference
        assert (kept.value, kept.low, kept.high, kept.n) == (one.value, one.low, one.high, one.n)
    assert {p.difference.n for p in found if "t0" in (p.first, p.second)} == {79}
    assert compare_all({}) == compare_all({"t": []}) == []


def test_nothing_in_common_is_no_difference():
    (pair,) = compare_all({"a": [], "b": scored([1.0])})
    assert (pair.difference.value, pair.difference.p_value) == (None, 1.0)
    (pair,) = compare_all({"a": [], "b": []})
    assert pair.difference.n == 0


def record_of(name, **request):
    record = sample_record(f"Where is {name}?")
    return type(record)(
        record.timestamp, "w", "c", {**record.request, **request}, record.response, id=name
    )


def test_conversations_join_what_shares_any_link():
    records = [
        record_of("a", metadata={"conversation_id": "1"}),
        record_of("b", metadata={"conversation_id": "1", "session_id": 7}),
        record_of("c", metadata={"session_id": 7}),
        record_of("d", user="eve"),
        record_of("e", metadata={"user": "eve"}),
        record_of("f", metadata={"conversation_id": ""}),
        record_of("g", metadata=["not an object"]),
        record_of("h", metadata={"session_id": "1"}),
    ]
    found = conversations(records)
    groups = [{name for name in found if found[name] == number} for number in set(found.values())]
    assert sorted(map(sorted, groups)) == [["a", "b", "c"], ["d", "e"], ["f"], ["g"], ["h"]]
    fewer = conversations(records, ["conversation_id"])
    assert fewer["a"] == fewer["b"] != fewer["c"]
    assert conversations([]) == {}


def test_a_masked_name_ties_nobody_together():
    records = [record_of(name, user="<EMAIL_1>") for name in "ab"]
    found = conversations(records)
    assert found["a"] != found["b"]


def test_the_power_plan_is_what_simulation_shows():
    planned = plan(100, margin=0.1, disagreement=0.05, asked_again=False)
    assert not planned.enough
    n = planned.records_needed
    assert n == 239
    rng = np.random.default_rng(0)
    shown = np.mean([wilson(k / n, n)[0] > 0.9 for k in rng.binomial(n, 0.95, 4_000)])
    assert shown == pytest.approx(0.8, abs=0.05)
    assert plan(n, 0.1, 0.05, asked_again=False).enough
    assert plan(n, 0.1, 0.05, asked_again=False).smallest_margin == pytest.approx(0.1, abs=1e-3)
    assert plan(1, 0.1, 0.9, asked_again=False).smallest_margin == 1.0


def test_against_production_asked_again_only_disagreement_costs():
    planned = plan(100, margin=0.05, disagreement=0.1, asked_again=True)
    assert planned.records_needed == 314
    assert "takes 314" in planned.sentence


def test_a_margin_below_the_expected_difference_takes_no_number_of_records():
    planned = plan(10_000, margin=0.05, disagreement=0.1, asked_again=False)
    assert planned.records_needed is None
    assert not planned.enough
    assert "however many" in planned.sentence


def ever(rng, mean, size=1):
    """Whether a trial of true mean ``mean`` is ever stopped in 200 records, looking each time."""
    quality = rng.beta(8 * mean, 8 * (1 - mean), 200 // size)
    values = rng.binomial(1, np.repeat(quality[:, None], size, axis=1)).astype(float)
    return surely_below(values.tolist(), 0.9, size)


def test_a_trial_at_the_margin_is_seldom_stopped_however_often_one_looks():
    rng = np.random.default_rng(6)
    for size in (1, 4):
        assert np.mean([ever(rng, 0.9, size) for _ in range(1_500)]) <= ALPHA + 0.01


def test_a_trial_that_is_far_worse_is_stopped_soon():
    assert surely_below([[0.0]] * 8, 0.9, 1)
    assert not surely_below([[1.0]] * 500, 0.9, 1)
    assert not surely_below([], 0.9, 1)
    rng = np.random.default_rng(7)
    stopped = [surely_below(rng.binomial(1, 0.6, (64, 1)).tolist(), 0.9, 1) for _ in range(200)]
    assert np.mean(stopped) > 0.95
