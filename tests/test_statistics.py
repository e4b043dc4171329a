import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flywheel.statistics import (
    estimate,
    holm,
    paired_difference,
    percentile,
    roc_auc,
    wilson,
)
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
