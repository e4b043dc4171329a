"""Trial results of one dataset, ranked: pair by pair on the same records, ties called ties.

`rank` makes a `Leaderboard`; `table`, `to_markdown` and `verdict` say what it holds in one
wording for the terminal, the README and the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from flywheel.config import RankingConfig
from flywheel.statistics import Difference, holm, paired_difference
from flywheel.types import Cost, Estimate, Json, Score, TrialResult

TOOL_METRIC = "function_name_and_args_accuracy"
JUDGED_METRIC = "similarity"
TEXT_METRIC = "exact_match"
SIGNIFICANCE = 0.05
NONE = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One trial's place."""

    rank: int | None
    """``None`` for a trial that failed or that the ranking metric scored nowhere."""
    result: TrialResult
    difference: Difference | None = None
    """This trial less the best one, paired, its p-value corrected for the number of comparisons
    (Holm); ``None`` for the best and for unranked trials."""
    tie_with_best: bool = False
    """Not distinguishable from the best at 5 % (Holm over the board)."""
    promising: bool = False
    """Reaches the experiment's threshold; a human decides what follows."""

    def to_json(self) -> Json:
        """A JSON object, the result as in ``result.json``."""
        return {**asdict(self), "result": self.result.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> Row:
        """Inverse of `to_json`."""
        difference = Difference(**data["difference"]) if data["difference"] else None
        result = TrialResult.from_json(data["result"])
        return cls(**{**data, "result": result, "difference": difference})


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Ranked rows, best first; failed trials come last, without a rank."""

    metric: str
    """What the rows are ranked by."""
    threshold: float
    rows: list[Row]
    note: str = ""
    """Why the ranking metric is not the one asked for, in one sentence."""
    production: Cost | None = None
    calibration: Json | None = None
    """How well the judge told references from shuffled answers; ``None`` without a judge."""
    provenance: Json = field(default_factory=dict)
    """``date``, ``commit`` and whatever else says where the figures come from."""

    @property
    def best(self) -> Row | None:
        """The first ranked row."""
        return self.rows[0] if self.rows and self.rows[0].rank else None

    @property
    def promising(self) -> list[Row]:
        """The rows that reach the threshold."""
        return [row for row in self.rows if row.promising]

    @property
    def dataset(self) -> str:
        """Fingerprint of the dataset that all trials answered."""
        return self.rows[0].result.trial.dataset if self.rows else ""

    def to_json(self) -> Json:
        """The content of ``leaderboard.json``."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, data: Json) -> Leaderboard:
        """Inverse of `to_json`."""
        production = Cost(**data["production"]) if data["production"] else None
        rows = [Row.from_json(row) for row in data["rows"]]
        return cls(**{**data, "rows": rows, "production": production})


def rank(
    results: Sequence[TrialResult],
    scores: Mapping[str, Sequence[Score]],
    ranking: RankingConfig,
    *,
    calibration: Json | None = None,
    production: Cost | None = None,
    provenance: Json | None = None,
) -> Leaderboard:
    """Order trials by quality, then cost, then label, and compare each with the best.

    Args:
        results: Trials of one dataset.
        scores: Every metric's scores by trial key.
        ranking: The metric asked for and the threshold of promise.
        calibration: The judge's, if there is a judge.
        production: What production costs today.
        provenance: Where the figures come from.
    """
    metric, note = choose_metric(results, ranking, calibration)
    ranked = [r for r in results if _value(r, metric) is not None]
    ranked.sort(key=lambda r: _ranked_order(r, metric))
    others = sorted((r for r in results if _value(r, metric) is None), key=_unranked_order)
    rows = _compare(ranked, scores, metric, ranking.threshold)
    rows += [Row(None, result) for result in others]
    return Leaderboard(
        metric, ranking.threshold, rows, note, production, calibration, provenance or {}
    )


def choose_metric(
    results: Sequence[TrialResult], ranking: RankingConfig, calibration: Json | None
) -> tuple[str, str]:
    """What to rank by, and a note where that needs saying.

    A workload counts as one of tools when more records offer tools than are answered in text.
    """
    counts = _records_by_metric(results)
    judged = bool(counts.get(JUDGED_METRIC) and calibration and calibration["trusted"])
    default = _default_metric(counts, judged)
    asked = ranking.metric or default
    distrust = "the judge is not trusted" if calibration else "there is no judge"
    if asked == JUDGED_METRIC and not judged:
        return default, f"Ranked by {default} instead of {asked}: {distrust}."
    if counts and asked not in counts:
        return default, f"Ranked by {default} instead of {asked}: no trial was scored by it."
    if asked == TEXT_METRIC and not ranking.metric and calibration:
        return asked, f"Ranked by {asked}: {distrust}."
    return asked, ""


def table(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of text, production's last; the same in every medium."""
    metrics = _metrics(board)
    main, *others = [_title(board, name) for name in metrics]
    columns = ["#", "trial", main, "n", "$ per 1k", "verdict", "difference to best"]
    columns += [*others, "p50 / p95 s", "tokens/s"]
    rows = [_cells(board, row, metrics) for row in board.rows]
    if board.production is not None:
        blanks = [NONE] * (len(columns) - 6)
        cells = ["", "production", NONE, NONE, _dollars(board.production), "as logged", *blanks]
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
    source += ["95 % intervals in brackets"]
    return "\n\n".join(part for part in (text, board.note, " · ".join(source)) if part) + "\n"


def verdict(board: Leaderboard) -> str:
    """What the board comes to, in one or two sentences."""
    best = board.best
    if best is None:
        return "No trial could be ranked."
    figure = best.result.metrics[board.metric]
    quality = f"{board.metric} {interval(figure)} on {figure.scored} records"
    cost = _cost_sentence(best.result.cost, board.production)
    ties = sum(row.tie_with_best for row in board.rows)
    tied = f" {ties} more cannot be told from it at 5 %." if ties else ""
    head = f"{best.result.trial.label} answers best: {quality}{cost}.{tied}"
    if not board.promising:
        return f"{head} No trial reaches the threshold of {board.threshold:g}."
    count = f"{len(board.promising)} of {len(board.rows)} trials"
    return f"{head} The threshold of {board.threshold:g} is reached by {count}; people decide."


def decimal(value: float | None) -> str:
    """Two decimals, or a dash for what is not known."""
    return NONE if value is None else f"{value:.2f}"


def interval(figure: Estimate) -> str:
    """An estimate as ``0.71 [0.62, 0.79]``."""
    if figure.value is None:
        return NONE
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _compare(
    ranked: Sequence[TrialResult],
    scores: Mapping[str, Sequence[Score]],
    metric: str,
    threshold: float,
) -> list[Row]:
    if not ranked:
        return []
    of = {r.key: [s for s in scores.get(r.key, ()) if s.metric == metric] for r in ranked}
    differences = [paired_difference(of[r.key], of[ranked[0].key]) for r in ranked[1:]]
    adjusted = holm([d.p_value for d in differences])
    promising = [(_value(r, metric) or 0.0) >= threshold for r in ranked]
    rows = [Row(1, ranked[0], promising=promising[0])]
    for place, (difference, p_value) in enumerate(zip(differences, adjusted, strict=True), 1):
        tie = p_value >= SIGNIFICANCE
        corrected = replace(difference, p_value=p_value)
        rows.append(Row(place + 1, ranked[place], corrected, tie, promising[place]))
    return rows


def _value(result: TrialResult, metric: str) -> float | None:
    figure = result.metrics.get(metric)
    return figure.value if figure and result.status == "succeeded" else None


def _ranked_order(result: TrialResult, metric: str) -> tuple[float, float, str]:
    cost = result.cost.per_1k_requests if result.cost else None
    quality = _value(result, metric) or 0.0
    return -quality, math.inf if cost is None else cost, result.trial.label


def _unranked_order(result: TrialResult) -> tuple[bool, str]:
    return result.status != "succeeded", result.trial.label


def _default_metric(counts: Mapping[str, int], judged: bool) -> str:
    if counts.get(TOOL_METRIC, 0) > counts.get(TEXT_METRIC, 0):
        return TOOL_METRIC
    return JUDGED_METRIC if judged else TEXT_METRIC


def _records_by_metric(results: Sequence[TrialResult]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        for name, figure in result.metrics.items():
            counts[name] = max(counts.get(name, 0), figure.n)
    return counts


def _metrics(board: Leaderboard) -> list[str]:
    names = dict.fromkeys(name for row in board.rows for name in row.result.metrics)
    return [board.metric, *(name for name in names if name != board.metric)]


def _title(board: Leaderboard, metric: str) -> str:
    if metric != JUDGED_METRIC or board.calibration is None:
        return metric
    trust = "" if board.calibration["trusted"] else ", not trusted"
    return f"{metric} (judge AUC {decimal(board.calibration['auc'])}{trust})"


def _cells(board: Leaderboard, row: Row, metrics: Sequence[str]) -> list[str]:
    result = row.result
    main = result.metrics.get(board.metric)
    figure, *others = [_figure(result.metrics.get(name), main) for name in metrics]
    latency = result.latency
    return [
        str(row.rank or NONE),
        result.trial.label,
        figure,
        _count(main),
        _dollars(result.cost),
        _place(row),
        _difference(row.difference),
        *others,
        f"{latency.p50_s:.2f} / {latency.p95_s:.2f}" if latency else NONE,
        f"{latency.output_tokens_per_second:.0f}" if latency else NONE,
    ]


def _figure(figure: Estimate | None, main: Estimate | None) -> str:
    if figure is None:
        return NONE
    own = main is None or figure.scored != main.scored
    return interval(figure) + (f" (n {figure.scored})" if own else "")


def _count(figure: Estimate | None) -> str:
    if figure is None:
        return NONE
    return str(figure.n) if figure.scored == figure.n else f"{figure.scored} of {figure.n}"


def _difference(difference: Difference | None) -> str:
    if difference is None or difference.value is None:
        return NONE
    d = difference
    return f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}], p {_p(d.p_value)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _dollars(cost: Cost | None) -> str:
    return NONE if cost is None or cost.per_1k_requests is None else money(cost.per_1k_requests)


def money(dollars: float) -> str:
    """Dollars with at least two significant digits: ``1.10``, ``0.0042``."""
    digits = 2 if dollars >= 0.1 or dollars == 0 else 1 - math.floor(math.log10(dollars))
    return f"{dollars:,.{digits}f}"


def _place(row: Row) -> str:
    if row.rank is None:
        return (
            f"{row.result.status}: {row.result.error}"[:120] if row.result.error else "not scored"
        )
    place = "best" if row.rank == 1 else "tie with best" if row.tie_with_best else "worse"
    return f"{place}, promising" if row.promising else place


def _cost_sentence(cost: Cost | None, production: Cost | None) -> str:
    if cost is None or cost.per_1k_requests is None:
        return ""
    own = f", at ${money(cost.per_1k_requests)} per 1,000 requests"
    if production is None or production.per_1k_requests is None:
        return own
    return f"{own} against production's ${money(production.per_1k_requests)}"


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
