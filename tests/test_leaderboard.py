import json

import pytest
from sample_run import a_sample_run

from flywheel.config import RankingConfig
from flywheel.leaderboard import (
    Leaderboard,
    choose_metric,
    interval,
    money,
    rank,
    table,
    to_markdown,
    verdict,
)
from flywheel.statistics import estimate
from flywheel.types import Cost, Estimate, Score, Trial, TrialResult

ACCURACY = "function_name_and_args_accuracy"


def trial_with(name, values, *, cost=None, metric=ACCURACY):
    trial = Trial(name, "m", "base", {}, "d", 0)
    scores = [Score(str(i), metric, float(v)) for i, v in enumerate(values)]
    price = Cost(cost, "machine") if cost is not None else None
    metrics = {metric: estimate(scores)}
    return TrialResult(trial, "succeeded", metrics=metrics, cost=price), scores


def board_of(*trials, threshold=0.9, **known):
    results = [result for result, _ in trials]
    scores = {result.key: scores for result, scores in trials}
    return rank(results, scores, RankingConfig(threshold=threshold), **known)


def names(board):
    return [row.result.trial.candidate for row in board.rows]


def test_quality_decides_then_cost_then_label():
    half = [1, 0] * 10
    board = board_of(
        trial_with("dear", half, cost=2.0),
        trial_with("unpriced", half),
        trial_with("good", [1] * 20, cost=9.0),
        trial_with("b cheap", half, cost=1.0),
        trial_with("a cheap", half, cost=1.0),
    )
    assert names(board) == ["good", "a cheap", "b cheap", "dear", "unpriced"]
    assert [row.rank for row in board.rows] == [1, 2, 3, 4, 5]


def test_a_small_difference_is_a_tie_and_a_large_one_is_not():
    board = board_of(
        trial_with("best", [1] * 90 + [0] * 10),
        trial_with("close", [1] * 88 + [0] * 12),
        trial_with("far", [1] * 50 + [0] * 50),
    )
    best, close, far = board.rows
    assert (best.tie_with_best, close.tie_with_best, far.tie_with_best) == (False, True, False)
    assert best.difference is None
    assert close.difference.value == pytest.approx(-0.02)
    assert far.difference.high < 0


def test_ties_allow_for_the_number_of_comparisons():
    best, rival = [1] * 100, [0] * 6 + [1] * 94
    assert not board_of(trial_with("best", best), trial_with("rival", rival)).rows[1].tie_with_best
    others = [trial_with(f"rival {i}", rival) for i in range(3)]
    assert all(row.tie_with_best for row in board_of(trial_with("best", best), *others).rows[1:])


def test_failed_trials_stand_last_without_a_rank():
    failed = TrialResult(Trial("a", "m", "lora", {}, "d", 0), "failed", "out of memory")
    board = board_of((failed, []), trial_with("z", [0, 0]))
    assert names(board) == ["z", "a"]
    assert board.rows[1].rank is None
    assert "failed: out of memory" in table(board)[1][1]


def test_promising_trials_reach_the_threshold():
    board = board_of(trial_with("a", [1] * 9 + [0]), trial_with("b", [1] * 8 + [0] * 2))
    assert [row.promising for row in board.rows] == [True, False]
    assert "threshold of 0.9 is reached by 1 of 2 trials" in verdict(board)


def test_a_board_without_results_says_so():
    board = rank([], {}, RankingConfig())
    assert board.best is None
    assert verdict(board) == "No trial could be ranked."
    assert table(board)[1] == []


def result_with(**counts):
    metrics = {name: Estimate(0.5, 0.4, 0.6, n) for name, n in counts.items()}
    return TrialResult(Trial("a", "m", "base", {}, "d", 0), "succeeded", metrics=metrics)


TRUSTED = {"judge": "j", "auc": 0.9, "trusted": True}
DOUBTED = {"judge": "j", "auc": 0.6, "trusted": False}
TOOLS = {"function_name": 100, ACCURACY: 100, "similarity": 100}
TEXT = {"exact_match": 100, "similarity": 100}


@pytest.mark.parametrize(
    ("counts", "asked", "judge", "metric", "noted"),
    [
        (TOOLS, None, DOUBTED, ACCURACY, ""),
        (TEXT, None, TRUSTED, "similarity", ""),
        (TEXT, None, DOUBTED, "exact_match", "not trusted"),
        (TEXT, None, None, "exact_match", ""),
        (TEXT, "similarity", DOUBTED, "exact_match", "not trusted"),
        (TEXT, "similarity", None, "exact_match", "no judge"),
        (TOOLS, "function_name", TRUSTED, "function_name", ""),
        (TEXT, "function_name", TRUSTED, "similarity", "no trial was scored"),
        ({**TEXT, ACCURACY: 100}, None, TRUSTED, "similarity", ""),
        ({**TOOLS, "exact_match": 40}, None, TRUSTED, ACCURACY, ""),
    ],
)
def test_the_ranking_metric_fits_the_workload_and_the_judge(counts, asked, judge, metric, noted):
    chosen, note = choose_metric([result_with(**counts)], RankingConfig(metric=asked), judge)
    assert chosen == metric
    assert noted in note
    assert bool(note) == bool(noted)


def test_json_round_trip():
    board = a_sample_run().board
    assert Leaderboard.from_json(json.loads(json.dumps(board.to_json()))) == board


def test_the_table_is_rectangular_and_names_an_untrusted_judge():
    columns, rows = table(a_sample_run().board)
    assert {len(row) for row in rows} == {len(columns)}
    assert "similarity (judge AUC 0.74, not trusted)" in columns
    assert rows[-1][1] == "production"
    assert "1.18" in rows[-1]


def test_markdown_carries_where_the_figures_come_from():
    text = to_markdown(a_sample_run().board)
    for part in ("2026-11-24", "1a2b3c4", "9f3c2a71d0b4e685", "95 %"):
        assert part in text
    assert "lora lr=0.001 r=16" in text


def test_a_label_cannot_break_the_markdown_table():
    board = board_of(trial_with("a|b\n<script>", [1]))
    (row,) = (line for line in to_markdown(board).splitlines() if "script" in line)
    assert "a\\|b &lt;script>" in row


def test_figures_are_written_alike_everywhere():
    assert interval(Estimate(0.714, 0.62, 0.79, 100)) == "0.71 [0.62, 0.79]"
    assert interval(Estimate(None, None, None, 3, failed=3)) == "–"
    assert [money(v) for v in (1.1, 12345, 0.0042, 0)] == ["1.10", "12,345.00", "0.0042", "0.00"]
