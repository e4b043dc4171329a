"""What a leaderboard says, in one wording for every medium."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel.leaderboard.board import Leaderboard, Row, Verdict
from flywheel.leaderboard.ranking import (
    LABEL_METRIC,
    PLAIN,
    TEXT_METRIC,
    TOOL_METRIC,
    judges_of,
)
from flywheel.statistics import Difference, plan
from flywheel.types import Cost, Estimate, TrialResult

NONE = "–"
_DOES = {
    TOOL_METRIC: "makes {} tool calls",
    TEXT_METRIC: "gives {} answer",
    LABEL_METRIC: "gives {} label",
    "function_name": "calls {} tool",
}
"""What a model does that a metric of right and wrong counts; production's, or the expected."""


def table(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of text, production's last; the same in every medium."""
    metrics = _metrics(board)
    main, *others = [_title(board, name) for name in metrics]
    columns = ["#", "trial", main, "n", "$ per 1k", "verdict", "difference to best"]
    if board.asked_again:
        columns.append("to production asked again")
    columns += [*others, "p50 / p95 s", "tokens/s"]
    rows = [_cells(board, row, metrics) for row in board.rows]
    if board.production is not None or board.logged is not None:
        blanks = [NONE] * (len(columns) - 6)
        quality = [_figure(board.logged, board.logged), _count(board.logged)]
        cells = ["", "production", *quality, _dollars(board.production), "as logged", *blanks]
        rows.append(cells)
    return columns, rows


def to_markdown(board: Leaderboard) -> str:
    """The table for a README, with where its figures come from."""
    columns, rows = table(board)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(map(_escape_cell, line)) + " |" for line in lines)
    known = [key for key in ("date", "commit") if board.provenance.get(key)]
    source = [f"{key} {board.provenance[key]}" for key in known]
    source += [f"dataset {board.dataset}", f"ranked by {board.metric}"]
    source += [f"margin {board.margin:g}", "95 % intervals in brackets"]
    return "\n\n".join(part for part in (text, board.note, " · ".join(source)) if part) + "\n"


def metric_titles(board: Leaderboard) -> list[str]:
    """The columns of `table` that are metrics, the ranking one first."""
    return [_title(board, name) for name in _metrics(board)]


def headline(board: Leaderboard) -> str:
    """What the board comes to in one sentence, for those who decide and know no metric."""
    row = board.foremost
    if row is None:
        return "No verdict: no model could be ranked."
    label, does = row.result.trial.label, _does(board, row)
    needed = _amount(board, floor(board))
    if row.eligible:
        return (
            f"Yes, {label} may replace production: it {does}{_sure(board, row)}"
            f"{_at_cost(board, row)}."
        )
    if row.promising:
        return f"Not yet: {label} {does}, which is enough, but {row.blocked} stands against it."
    if row.verdict is Verdict.INFERIOR:
        return f"No, the best model, {label}, {does}, where at least {needed} are needed."
    return (
        f"Not proven: the best model, {label}, {does}{_sure(board, row)}, and even the lower "
        f"figure must reach {needed}."
    )


def floor(board: Leaderboard) -> float:
    """What a promising trial's interval lies above: the baseline less the margin."""
    row = board.foremost
    gap = row.to_production.value if row and row.to_production else None
    value = row.result.metrics[board.metric].value if row else None
    return (1.0 if gap is None or value is None else value - gap) - board.margin


def saving(cost: float | None, production: Cost | None) -> float | None:
    """The share of production's cost that is saved, negative where it is more, if it is known."""
    today = production.per_1k_requests if production else None
    return None if cost is None or not today else 1 - cost / today


def verdict(board: Leaderboard) -> str:
    """What the board comes to, in a few sentences."""
    spared, all_ = board.saved
    saving = f" Stopping early spared {spared:,} of {all_:,} requests." if spared else ""
    return _outcome(board) + saving


def _outcome(board: Leaderboard) -> str:
    best, choice = board.best, board.recommended
    if best is None or choice is None:
        return "No trial could be ranked."
    if choice.eligible:
        others = sum(row.eligible for row in board.rows) - 1
        more = f" {others} more may; this is the cheapest." if others else ""
        return (
            f"{choice.result.trial.label} may replace production: {_quality(board, choice)}, "
            f"within {board.margin:g} of {_baseline(board)}"
            f"{_cost_sentence(choice.result.cost, board.production)}.{more} People decide."
        )
    head = (
        f"No trial is shown to be within {board.margin:g} of {_baseline(board)}."
        if not board.promising
        else f"No trial may replace production: {board.promising[0].blocked}."
    )
    own = _cost_sentence(best.result.cost, board.production)
    told = f"{head} {best.result.trial.label} answers best: {_quality(board, best)}{own}."
    told += _more_records(board, best)
    ties = len(board.ties) - 1
    if not ties:
        return told
    cheapest = "" if choice is best else f"; the cheapest of these is {choice.result.trial.label}"
    return f"{told} {ties} more cannot be told from it at 5 %{cheapest}."


def decimal(value: float | None) -> str:
    """Two decimals, or a dash for what is not known."""
    return NONE if value is None else f"{value:.2f}"


def interval(figure: Estimate) -> str:
    """An estimate as ``0.71 [0.62, 0.79]``."""
    if figure.value is None:
        return NONE
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def money(dollars: float) -> str:
    """Dollars with at least two significant digits: ``1.10``, ``0.0042``."""
    digits = 2 if dollars >= 0.1 or dollars == 0 else 1 - math.floor(math.log10(dollars))
    return f"{dollars:,.{digits}f}"


def _does(board: Leaderboard, row: Row) -> str:
    value = row.result.metrics[board.metric].value or 0.0
    amount, does = _amount(board, value), _DOES.get(board.metric)
    if not does:
        return f"scores {amount} of 1 by {board.metric}"
    whose = "the expected" if board.ground_truth else "production's"
    return f"{does.format(whose)} in {amount} of 100 requests"


def _sure(board: Leaderboard, row: Row) -> str:
    figure = row.result.metrics[board.metric]
    if figure.low is None or figure.high is None:
        return ""
    return f" (95 % sure: {_amount(board, figure.low)} to {_amount(board, figure.high)})"


def _amount(board: Leaderboard, value: float) -> str:
    """A figure of the ranking metric: of 100 requests, where it counts right and wrong."""
    if board.metric not in _DOES:
        return f"{value:.2f}"
    near = round(100 * value)
    if near == 100 and value < 1:
        return "over 99"
    return "under 1" if near == 0 and value > 0 else str(near)


def _at_cost(board: Leaderboard, row: Row) -> str:
    saved = saving(row.cost, board.production)
    if saved is None:
        return "" if row.cost is None else f", at ${money(row.cost)} per 1,000 requests"
    return f", at {abs(100 * saved):.0f} % {'less' if saved >= 0 else 'more'} cost"


def _quality(board: Leaderboard, row: Row) -> str:
    figure = row.result.metrics[board.metric]
    return f"{board.metric} {interval(figure)} on {figure.scored} records"


def _baseline(board: Leaderboard) -> str:
    ceiling = board.ceiling
    if ceiling is None and board.logged is not None:
        return f"production ({decimal(board.logged.value)})"
    if ceiling is None:
        return "production"
    return f"production asked again ({decimal(ceiling.result.metrics[board.metric].value)})"


def _more_records(board: Leaderboard, best: Row) -> str:
    """How many would settle it, if the best goes on as it did; only against logged answers."""
    figure = best.result.metrics[board.metric]
    measured = board.asked_again or board.logged is not None
    if best.verdict is not Verdict.UNDECIDED or measured or not figure.value:
        return ""
    needed = plan(figure.scored, board.margin, 1 - figure.value, asked_again=False).records_needed
    if needed is None or needed <= figure.scored:
        return ""
    return f" About {needed:,} records would show it, if it goes on like this."


_DETAILS = (
    *("argument_precision", "argument_recall", "tool_calls_exact_match"),
    *("token_f1", "rouge_l", "chrf"),
)
"""Metrics that no column is for, lest the others be cut: they are in the JSON and in MLflow."""


def _metrics(board: Leaderboard) -> list[str]:
    names = dict.fromkeys(name for row in board.rows for name in row.result.metrics)
    shown = (name for name in names if name not in _DETAILS and not name.endswith(PLAIN))
    return [board.metric, *(name for name in shown if name != board.metric)]


def _title(board: Leaderboard, metric: str) -> str:
    judges = judges_of(board.calibration, metric)
    if judges is None:
        return metric
    trust = "" if judges["trusted"] else ", not trusted"
    return f"{metric} (judge AUC {decimal(judges['auc'])}{trust})"


def _cells(board: Leaderboard, row: Row, metrics: Sequence[str]) -> list[str]:
    result = row.result
    main = result.metrics.get(board.metric)
    figure, *others = [
        _figure(result.metrics.get(name), main) + _corrected(board, result.key, name)
        for name in metrics
    ]
    return [
        str(row.rank or NONE),
        result.trial.label,
        figure,
        _count(main),
        _dollars(result.cost),
        _place(board, row),
        _difference(row.difference),
        *([_difference(row.to_production)] if board.asked_again else []),
        *others,
        *_speed(result),
    ]


def _speed(result: TrialResult) -> tuple[str, str]:
    """Under the load that the SLO bears, where there was a load test; else while answering."""
    borne, latency = result.load.borne if result.load else None, result.latency
    if borne and borne.total_s:
        times, tokens = (borne.total_s.p50, borne.total_s.p95), borne.output_tokens_per_second
    elif latency:
        times, tokens = (latency.p50_s, latency.p95_s), latency.output_tokens_per_second
    else:
        return NONE, NONE
    return "{:.2f} / {:.2f}".format(*times), f"{tokens:.0f}"


def _figure(figure: Estimate | None, main: Estimate | None) -> str:
    if figure is None:
        return NONE
    own = main is None or figure.scored != main.scored
    return interval(figure) + (f" (n {_count(figure)})" if own else "")


def _corrected(board: Leaderboard, trial: str, metric: str) -> str:
    """What people's labels make of a judged figure, where there are enough of them."""
    human = (judges_of(board.calibration, metric) or {}).get("human") or {}
    found = human.get("corrected", {}).get(trial)
    return f", by people {interval(Estimate(**found))}" if found else ""


def _count(figure: Estimate | None) -> str:
    """``100``, or ``95 of 100, 2 unscored, 3 failed``."""
    if figure is None:
        return NONE
    lost = {"unscored": figure.unscored, "failed": figure.failed}
    parts = [f"{count} {name}" for name, count in lost.items() if count]
    return ", ".join([f"{figure.scored} of {figure.n}", *parts]) if parts else str(figure.n)


def _difference(difference: Difference | None) -> str:
    if difference is None or difference.value is None:
        return NONE
    d = difference
    tested = "" if d.p_value is None else f", p {_p(d.p_value)}"
    return f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}]{tested}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _dollars(cost: Cost | None) -> str:
    """``0.026 (93 % saved)``."""
    if cost is None or cost.per_1k_requests is None:
        return NONE
    saved = "" if cost.saved_percent is None else f" ({_saved(cost.saved_percent)})"
    return money(cost.per_1k_requests) + saved


def _place(board: Leaderboard, row: Row) -> str:
    if row.rank is None:
        if row.result.key == board.asked_again:
            return "production asked again: the ceiling"
        result = row.result
        return f"{result.status}: {result.error}"[:120] if result.error else "not scored"
    place = "best" if row.difference is None else "tie with best" if row.tie_with_best else "worse"
    standing = "promising" if row.promising else row.verdict.value
    chosen = _chosen(board, row)
    front = "Pareto front" if row.pareto else ""
    return ", ".join(filter(None, (place, standing, row.blocked, chosen, front)))


def _chosen(board: Leaderboard, row: Row) -> str:
    if row is not board.recommended:
        return ""
    if row.eligible:
        return "recommended"
    return "cheapest of the ties" if len(board.ties) > 1 else ""


def _cost_sentence(cost: Cost | None, production: Cost | None) -> str:
    if cost is None or cost.per_1k_requests is None:
        return ""
    own = f", at ${money(cost.per_1k_requests)} per 1,000 requests"
    if production is None or production.per_1k_requests is None:
        return own
    saved = "" if cost.saved_percent is None else f" ({_saved(cost.saved_percent)})"
    return f"{own} against production's ${money(production.per_1k_requests)}{saved}{_paid(cost)}"


def _saved(percent: float) -> str:
    return f"{percent:.0f} % saved" if percent >= 0 else f"{-percent:.0f} % more"


def _paid(cost: Cost) -> str:
    """What the fine-tuning took, and when that comes back."""
    if cost.training_dollars is None or cost.break_even_requests is None:
        return ""
    repaid = f"{cost.break_even_requests:,} requests repay"
    return f"; {repaid} the ${money(cost.training_dollars)} of its training"


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
