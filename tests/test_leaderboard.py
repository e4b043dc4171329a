import csv
import io
import json
from dataclasses import replace

import pytest
from sample_run import a_sample_run

from flywheel.config import RankingConfig
from flywheel.costs import compared
from flywheel.leaderboard import (
    Leaderboard,
    choose_metric,
    headline,
    interval,
    money,
    rank,
    table,
    to_csv,
    to_markdown,
    verdict,
)
from flywheel.statistics import estimate
from flywheel.types import (
    Cost,
    Estimate,
    Latency,
    LoadLevel,
    LoadTest,
    Percentiles,
    Score,
    ScoreStatus,
    Trial,
    TrialResult,
)

ACCURACY = "function_name_and_args_accuracy"


def trial_with(name, values, *, cost=None, metric=ACCURACY, p95=1.0):
    trial = Trial(name, "m", "base", {}, "d", 0)
    scores = [
        Score(str(i), metric, None, ScoreStatus.FAILED, "timeout")
        if v is None
        else Score(str(i), metric, float(v))
        for i, v in enumerate(values)
    ]
    price = Cost(cost, "machine") if cost is not None else None
    metrics = {metric: estimate(scores)}
    latency = Latency(p95 / 2, p95, 100.0, 10.0, 16)
    result = TrialResult(trial, "succeeded", metrics=metrics, cost=price, latency=latency)
    return result, scores


def right(share, n=200):
    """So many of n right."""
    return [1] * round(share * n) + [0] * (n - round(share * n))


def board_of(*trials, ranking=None, **known):
    results = [result for result, _ in trials]
    scores = {result.key: scores for result, scores in trials}
    return rank(results, scores, RankingConfig(**(ranking or {})), **known)


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


def under_load(p95, within_slo=1.0):
    """A load test of one level."""
    total = Percentiles(p95 / 2, p95, p95)
    level = LoadLevel("concurrency-8", 64, 0, 1.0, 8.0, 80.0, within_slo, None, None, None, total)
    return LoadTest({}, [level], "concurrency-8" if within_slo >= 0.95 else None)


def test_the_limit_holds_under_the_load_that_is_borne_where_that_was_measured():
    result, scores = trial_with("a", [1] * 100, p95=30.0)  # while it was kept busy
    ranking = {"max_p95_s": 2.0}
    assert not board_of((result, scores), ranking=ranking).rows[0].eligible
    fine = replace(result, load=under_load(1.5))
    assert board_of((fine, scores), ranking=ranking).rows[0].eligible
    slow = replace(result, load=under_load(2.5))
    assert board_of((slow, scores), ranking=ranking).rows[0].blocked == "p95 2.50 s, over 2 s"


def test_a_trial_whose_slo_bears_no_load_is_not_recommended():
    result, scores = trial_with("a", [1] * 100)
    board = board_of((replace(result, load=under_load(1.0, within_slo=0.5)), scores))
    assert board.rows[0].blocked == "the SLO bears no load that was tried"
    assert not board.rows[0].eligible


def test_the_table_shows_the_times_under_load():
    result, scores = trial_with("a", [1] * 100, p95=30.0)
    columns, (row,) = table(board_of((replace(result, load=under_load(1.5)), scores)))
    assert row[columns.index("p50 / p95 s")] == "0.75 / 1.50"
    assert row[columns.index("tokens/s")] == "80"


def test_the_verdict_says_what_is_saved_and_when_the_training_is_repaid():
    result, scores = trial_with("a", [1] * 100)
    production = Cost(2.0, "tokens")
    paid = compared(Cost(0.5, "machine at SLO"), production, training=3.0)
    said = verdict(board_of((replace(result, cost=paid), scores), production=production))
    assert "at $0.50 per 1,000 requests against production's $2.00 (75 % saved)" in said
    assert "; 2,000 requests repay the $3.00 of its training" in said
    dear = compared(Cost(3.0, "machine"), production)
    said = verdict(board_of((replace(result, cost=dear), scores), production=production))
    assert "(50 % more)" in said


def test_the_table_says_what_each_trial_saves():
    result, scores = trial_with("a", [1] * 100)
    paid = compared(Cost(0.026, "machine"), Cost(0.38, "tokens"))
    columns, (row,) = table(board_of((replace(result, cost=paid), scores)))
    assert row[columns.index("$ per 1k")] == "0.026 (93 % saved)"


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


def test_the_table_leaves_out_the_details_of_tool_calls():
    result, scores = trial_with("a", [1, 0])
    more = dict.fromkeys(("argument_precision", "function_name"), result.metrics[ACCURACY])
    columns, _ = table(board_of((replace(result, metrics={**result.metrics, **more}), scores)))
    assert "function_name" in columns
    assert "argument_precision" not in columns


def test_failed_trials_stand_last_without_a_rank():
    failed = TrialResult(Trial("a", "m", "lora", {}, "d", 0), "failed", "out of memory")
    board = board_of((failed, []), trial_with("z", [0, 0]))
    assert names(board) == ["z", "a"]
    assert board.rows[1].rank is None
    assert "failed: out of memory" in table(board)[1][1]


def test_promising_is_what_its_whole_interval_says():
    board = board_of(
        trial_with("surely", right(0.97)),
        trial_with("perhaps", right(0.91)),
        trial_with("no", right(0.7)),
    )
    assert [row.verdict for row in board.rows] == ["not inferior", "undecided", "inferior"]
    assert [row.promising for row in board.rows] == [True, False, False]
    gap = board.rows[0].to_production
    figure = board.rows[0].result.metrics[ACCURACY]
    assert (gap.value, gap.low) == pytest.approx((figure.value - 1, figure.low - 1))
    assert gap.p_value is None
    assert verdict(board).startswith("surely base may replace production")
    assert "People decide." in verdict(board)


def test_the_cheapest_that_may_replace_production_comes_first():
    board = board_of(
        trial_with("best", right(1.0), cost=3.0),
        trial_with("cheap", right(0.96), cost=1.0),
        trial_with("bad", right(0.2), cost=0.1),
    )
    assert names(board) == ["cheap", "best", "bad"]
    assert board.recommended.result.trial.candidate == "cheap"
    assert board.best.result.trial.candidate == "best"
    assert "1 more may; this is the cheapest" in verdict(board)


def test_of_ties_the_cheapest_is_recommended_where_none_is_promising():
    board = board_of(
        trial_with("best", right(0.60), cost=3.0),
        trial_with("tie", right(0.58), cost=1.0),
        trial_with("worse", right(0.2), cost=0.1),
    )
    assert names(board) == ["best", "tie", "worse"]
    assert [row.result.trial.candidate for row in board.ties] == ["best", "tie"]
    assert board.recommended.result.trial.candidate == "tie"
    assert "the cheapest of these is tie base" in verdict(board)
    assert "cheapest of the ties" in table(board)[1][1][5]


def test_an_undecided_board_says_how_many_records_would_settle_it():
    board = board_of(trial_with("a", right(0.93, 100)), trial_with("b", right(0.5, 100)))
    assert board.best.verdict == "undecided"
    assert "About 716 records would show it" in verdict(board)
    assert "About" not in verdict(board_of(trial_with("b", right(0.5, 100))))


def test_a_trial_that_is_too_slow_is_not_recommended():
    trials = [trial_with("slow", right(0.99), cost=1.0, p95=3.0), trial_with("quick", right(0.99))]
    board = board_of(*trials, ranking={"max_p95_s": 2})
    assert names(board) == ["quick", "slow"]
    assert board.rows[1].promising
    assert board.rows[1].blocked == "p95 3.00 s, over 2 s"
    alone = board_of(trials[0], ranking={"max_p95_s": 2})
    assert "No trial may replace production: p95 3.00 s, over 2 s." in verdict(alone)


def test_a_trial_that_left_many_records_without_a_score_is_not_recommended():
    board = board_of(trial_with("a", [*right(1, 180), *[None] * 20]))
    assert board.rows[0].promising
    assert not board.rows[0].eligible
    assert board.rows[0].blocked == "20 of 200 records without a score"
    assert table(board)[1][0][3] == "180 of 200, 20 failed"


def test_production_asked_again_is_the_ceiling():
    noise = right(0.9)
    trials = [
        trial_with("again", noise),
        trial_with("same", noise),
        trial_with("bad", right(0.6)),
    ]
    board = board_of(*trials, ranking={"baseline": "again"})
    assert names(board) == ["same", "bad", "again"]
    same, bad, again = board.rows
    assert (again.rank, board.ceiling) == (None, again)
    assert (same.to_production.value, same.verdict) == (0.0, "not inferior")
    assert bad.to_production.value == pytest.approx(-0.3)
    assert bad.to_production.p_value < 0.001
    assert "the ceiling" in table(board)[1][2][5]
    assert "within 0.1 of production asked again (0.90)" in verdict(board)
    logged = board_of(*trials)
    assert logged.rows[0].verdict != "not inferior"


def test_a_rerun_of_production_that_failed_is_said():
    failed = TrialResult(Trial("again", "m", "base", {}, "d", 0), "failed", "no key")
    board = board_of((failed, []), trial_with("a", right(1.0)), ranking={"baseline": "again"})
    assert "logged answers: again, production asked again, has no scores" in board.note
    assert board.ceiling is None
    assert board.rows[0].promising


def test_the_pareto_front_is_marked():
    board = board_of(
        trial_with("good", right(0.9), cost=2.0),
        trial_with("cheap", right(0.5), cost=1.0),
        trial_with("neither", right(0.4), cost=1.5),
        trial_with("quick", right(0.3), cost=1.5, p95=0.5),
        trial_with("no price", right(0.5)),
    )
    front = {row.result.trial.candidate for row in board.rows if row.pareto}
    assert front == {"good", "cheap", "quick"}


def test_every_pair_is_compared_and_corrected_together():
    board = board_of(*(trial_with(f"t{k}", right(1 - k / 20)) for k in range(5)))
    assert len(board.pairs) == 10
    assert {pair.difference.n for pair in board.pairs} == {200}
    shown = [row.difference.p_value for row in board.rows[1:]]
    assert set(shown) <= {pair.difference.p_value for pair in board.pairs}


def test_records_of_one_conversation_count_together():
    best, rival = right(1.0, 120), [0] * 12 + [1] * 108
    trials = trial_with("best", best), trial_with("rival", rival)
    assert not board_of(*trials).rows[1].tie_with_best
    together = {str(i): i // 12 for i in range(120)}
    assert board_of(*trials, groups=together).rows[1].tie_with_best


def test_a_board_without_results_says_so():
    board = rank([], {}, RankingConfig())
    assert board.best is None
    assert board.recommended is None
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


def judged_by(identity):
    result = result_with(**TEXT)
    return replace(result, provenance={"judges": {"similarity": identity}})


def test_a_judge_that_changed_since_its_calibration_ranks_nothing():
    calibration = {**TRUSTED, "identity": "new"}
    for found in (calibration, {"by_metric": {"similarity": calibration}}):
        assert choose_metric([judged_by("new")], RankingConfig(), found)[0] == "similarity"
        metric, note = choose_metric([judged_by("old")], RankingConfig(), found)
        assert (metric, "changed since its calibration" in note) == ("exact_match", True)


@pytest.mark.parametrize("metric", ["helpfulness", "helpfulness_plain"])
def test_a_judged_metric_of_ones_own_ranks_if_its_judge_is_trusted(metric):
    results = [result_with(exact_match=10, helpfulness=10, helpfulness_plain=10)]
    for judge in (TRUSTED, DOUBTED):
        calibration = {"by_metric": {"similarity": TRUSTED, "helpfulness": judge}}
        got, note = choose_metric(results, RankingConfig(metric=metric), calibration)
        assert (got == metric) is judge["trusted"]
        assert ("not trusted" in note) is not judge["trusted"]


def test_json_round_trip():
    board = a_sample_run().board
    assert Leaderboard.from_json(json.loads(json.dumps(board.to_json()))) == board


def test_the_table_is_rectangular_and_names_an_untrusted_judge():
    columns, rows = table(a_sample_run().board)
    assert {len(row) for row in rows} == {len(columns)}
    assert "similarity (judge AUC 0.74, not trusted)" in columns
    assert rows[-1][1] == "production"
    assert "1.18" in rows[-1]
    assert "promising" in rows[0][5]


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


@pytest.mark.parametrize(
    ("values", "ranking", "words"),
    [
        ([1] * 200, {}, ["Yes, good ", "in 100 of 100 requests", "at 75 % less cost."]),
        ([1] * 200, {"max_p95_s": 0.001}, ["Not yet: good", "p95", "stands against it."]),
        ([1] * 18 + [0], {}, ["Not proven: the best model", "figure must reach 90."]),
        ([0] * 100, {}, ["No, the best model", "in 0 of 100", "at least 90 are needed."]),
    ],
)
def test_the_verdict_is_one_sentence_for_those_who_decide(values, ranking, words):
    trial = trial_with("good", values, cost=1.0)
    said = headline(board_of(trial, ranking=ranking, production=Cost(4.0, "tokens")))
    assert all(part in said for part in words), said
    assert said.count(". ") == 0
    assert said.endswith(".")


def test_nearly_all_is_not_said_to_be_all():
    said = headline(board_of(trial_with("good", [1] * 999 + [0])))
    assert "in over 99 of 100 requests" in said
    assert headline(board_of()) == "No verdict: no model could be ranked."


def test_csv_has_a_row_per_trial_with_figures_as_they_are():
    board = a_sample_run().board
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [row["trial"] for row in rows] == [
        *(row.result.trial.label for row in board.rows),
        "production",
    ]
    for row, cells in zip(board.rows, rows, strict=False):
        for name, figure in row.result.metrics.items():
            assert (float(cells[name]), int(cells[f"{name} n"])) == (figure.value, figure.n)
    assert [cells["recommended"] for cells in rows].count("True") == 1
    assert rows[-1]["dollars"] == "1.18"


@pytest.mark.parametrize("label", ["=1+1", "@SUM(A1)", "+1", "-1", "\t=1"])
def test_a_spreadsheet_takes_no_label_for_a_formula(label):
    (row,) = csv.DictReader(io.StringIO(to_csv(board_of(trial_with(label, [1])))))
    assert not row["trial"].startswith(("=", "+", "-", "@", "\t"))
    assert not row["candidate"].startswith(("=", "+", "-", "@", "\t"))


def test_a_stopped_training_is_no_failure_and_no_candidate():
    trial = Trial("early", "m", "lora", {}, "d", 0)
    stopped = TrialResult(trial, "stopped", "by asha after 25 % of its training")
    board = board_of(trial_with("good", [1] * 20), (stopped, []))
    columns, rows = table(board)
    place = {row[1]: row[columns.index("verdict")] for row in rows}
    assert place["early lora"] == "stopped: by asha after 25 % of its training"
    assert names(board) == ["good", "early"]
    assert board.rows[1].rank is None


def metric_of(*metrics, **known):
    results = [trial_with("a", right(0.9), metric=name)[0] for name in metrics]
    return choose_metric(results, RankingConfig(), known.pop("calibration", None), **known)[0]


def test_a_workload_of_labels_is_ranked_by_them_whatever_a_judge_says():
    trusted = {"trusted": True, "auc": 0.9}
    assert metric_of("exact_match", "label_accuracy", "similarity", calibration=trusted) == (
        "label_accuracy"
    )
    assert metric_of("exact_match", "similarity", calibration=trusted) == "similarity"
    assert metric_of("exact_match", "similarity", calibration=trusted, logged=True) == "exact_match"


def test_without_any_default_metric_the_first_that_was_asked_for_ranks_but_no_untrusted_judge():
    assert metric_of("similarity", "json_f1", "chrf") == "json_f1"
