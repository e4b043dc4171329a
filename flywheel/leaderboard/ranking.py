"""Which trials may replace production, and in what order a human should look at them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flywheel.config import RankingConfig
from flywheel.leaderboard.board import Leaderboard, Row, Verdict
from flywheel.statistics import (
    Comparison,
    Difference,
    Groups,
    compare_all,
    estimate,
    paired_difference,
)
from flywheel.types import Cost, Json, Score, TrialResult

TOOL_METRIC = "function_name_and_args_accuracy"
JUDGED_METRIC = "similarity"
LABEL_METRIC = "label_accuracy"
PLAIN = "_plain"
"""What ends the name of a judged metric that takes scores as they were written."""
TEXT_METRIC = "exact_match"
SIGNIFICANCE = 0.05


def rank(
    results: Sequence[TrialResult],
    scores: Mapping[str, Sequence[Score]],
    ranking: RankingConfig,
    *,
    groups: Groups | None = None,
    calibration: Json | None = None,
    production: Cost | None = None,
    power: Json | None = None,
    logged: Sequence[Score] | None = None,
    provenance: Json | None = None,
) -> Leaderboard:
    """Compare every trial with every other and with production, and put them in order.

    First what may replace production (not inferior within the margin, fast enough, scored on enough
    records), by cost; then the others by quality, cost, label.

    Args:
        results: Trials of one dataset.
        scores: Every metric's scores by trial key.
        ranking: Metric, margin, limits, and which candidate is production asked again.
        groups: Records that belong together, as in the results' intervals.
        calibration: The judge's, if there is a judge.
        production: What production costs today.
        power: What the records could show.
        logged: Scores of production's logged answers by a ground-truth file; ``None`` where there
            is none, and they are right by definition.
        provenance: Where the figures come from.
    """
    metric, note = choose_metric(results, ranking, calibration, logged=logged is not None)
    scored = [r for r in results if _figure(r, metric) is not None]
    again, worry = _asked_again(scored, ranking)
    pairs = compare_all(
        {r.key: [s for s in scores.get(r.key, ()) if s.metric == metric] for r in scored}, groups
    )
    own = None if logged is None else [s for s in logged if s.metric == metric]
    to_logged = {r.key: _to_logged(r, metric, own, scores, groups) for r in scored}
    rows = _rows([r for r in scored if r is not again], pairs, metric, ranking, again, to_logged)
    others = sorted((r for r in results if r not in scored), key=_unranked_order)
    rows += [Row(None, result) for result in [*([again] if again else []), *others]]
    return Leaderboard(
        metric=metric,
        margin=ranking.margin,
        rows=rows,
        pairs=pairs,
        asked_again=again.key if again else "",
        note=" ".join(filter(None, (note, worry))),
        production=production,
        calibration=calibration,
        logged=None if own is None else estimate(own, groups),
        power=power,
        provenance=provenance or {},
    )


def choose_metric(
    results: Sequence[TrialResult],
    ranking: RankingConfig,
    calibration: Json | None,
    *,
    logged: bool = False,
) -> tuple[str, str]:
    """What to rank by, and a note where that needs saying.

    A workload counts as one of tools when more records offer tools than are answered in text. With
    ``logged``, production's own answers are scored, which no judge has done.
    """
    counts = _records_by_metric(results)
    similar = JUDGED_METRIC in counts and not _distrust(JUDGED_METRIC, results, calibration, logged)
    default = _default_metric(counts, similar)
    asked = ranking.metric or default
    judged = asked if judges_of(calibration, asked) else JUDGED_METRIC
    distrust = _distrust(judged, results, calibration, logged)
    if asked == judged and distrust:
        return default, f"Ranked by {default} instead of {asked}: {distrust}."
    if counts and asked not in counts:
        return default, f"Ranked by {default} instead of {asked}: no trial was scored by it."
    if asked == TEXT_METRIC and not ranking.metric and calibration and distrust:
        return asked, f"Ranked by {asked}: {distrust}."
    return asked, ""


def judges_of(calibration: Json | None, metric: str) -> Json | None:
    """The calibration of those who judged a metric; ``None`` for a program's."""
    if calibration is None:
        return None
    metric = metric.removesuffix(PLAIN)
    found: dict[str, Json] = calibration.get("by_metric") or {JUDGED_METRIC: calibration}
    return found.get(metric)


def _distrust(
    metric: str, results: Sequence[TrialResult], calibration: Json | None, logged: bool
) -> str:
    """Why a judged metric may not rank; empty where it may."""
    judges = judges_of(calibration, metric)
    if judges is None:
        return "there is no judge"
    said = {result.provenance.get("judges", {}).get(metric) for result in results}
    if said - {None, judges.get("identity")}:
        return "the judge has changed since its calibration"
    if not judges["trusted"]:
        return "the judge is not trusted"
    return "production's answers are not judged by the ground-truth file" if logged else ""


def _asked_again(
    scored: Sequence[TrialResult], ranking: RankingConfig
) -> tuple[TrialResult | None, str]:
    """The trial that is production asked again, and a note where it is missing."""
    if ranking.baseline is None:
        return None, ""
    for result in scored:
        if (result.trial.candidate, result.trial.method) == (ranking.baseline, "base"):
            return result, ""
    return None, (
        f"Compared with production's logged answers: {ranking.baseline}, production asked again, "
        "has no scores."
    )


def _rows(
    ranked: Sequence[TrialResult],
    pairs: Sequence[Comparison],
    metric: str,
    ranking: RankingConfig,
    again: TrialResult | None,
    to_logged: Mapping[str, Difference],
) -> list[Row]:
    """The ranked rows, in order."""
    if not ranked:
        return []
    best = min(ranked, key=lambda r: _by_quality(r, metric))
    between = {(p.first, p.second): p.difference for p in pairs}
    rows = []
    for result in ranked:
        difference = _less(result, best, between) if result is not best else None
        gap = _less(result, again, between) if again else to_logged[result.key]
        rows.append(
            Row(
                rank=0,
                result=result,
                difference=difference,
                tie_with_best=difference is not None and (difference.p_value or 0) >= SIGNIFICANCE,
                to_production=gap,
                verdict=Verdict.INFERIOR if _stop(result) else _verdict(gap, ranking.margin),
                blocked=_blocked(result, metric, ranking),
                pareto=not any(_dominates(other, result, metric) for other in ranked),
            )
        )
    rows.sort(key=lambda row: _order(row, metric))
    return [replace(row, rank=place) for place, row in enumerate(rows, start=1)]


def _less(
    result: TrialResult, other: TrialResult, between: Mapping[tuple[str, str], Difference]
) -> Difference:
    """One trial less another, whichever way the pair was computed."""
    if (result.key, other.key) in between:
        return between[result.key, other.key]
    d = between[other.key, result.key]
    if d.value is None or d.low is None or d.high is None:
        return d
    return Difference(-d.value, -d.high, -d.low, d.p_value, d.n)


def _to_logged(
    result: TrialResult,
    metric: str,
    logged: Sequence[Score] | None,
    scores: Mapping[str, Sequence[Score]],
    groups: Groups | None,
) -> Difference:
    """A trial less production's logged answers, which score 1 unless a file says otherwise."""
    if logged is not None:
        mine = [score for score in scores.get(result.key, ()) if score.metric == metric]
        return paired_difference(mine, logged, groups)
    figure = result.metrics[metric]
    if figure.value is None or figure.low is None or figure.high is None:
        return Difference(None, None, None, None, 0)
    return Difference(figure.value - 1, figure.low - 1, figure.high - 1, None, figure.scored)


def _verdict(gap: Difference, margin: float) -> Verdict:
    if gap.low is None or gap.high is None:
        return Verdict.UNDECIDED
    if gap.low > -margin:
        return Verdict.NOT_INFERIOR
    return Verdict.INFERIOR if gap.high < -margin else Verdict.UNDECIDED


def _blocked(result: TrialResult, metric: str, ranking: RankingConfig) -> str:
    figure = result.metrics[metric]
    missing = figure.n - figure.scored
    reasons = []
    if stop := _stop(result):
        reasons.append("stopped after {asked} of {of} records".format(**stop))
    if missing > ranking.max_missing * figure.n:
        reasons.append(f"{missing} of {figure.n} records without a score")
    limit, p95_s = ranking.max_p95_s, result.p95_s
    if result.load and result.load.borne is None:
        reasons.append("the SLO bears no load that was tried")
    elif limit is not None and (p95_s is None or p95_s > limit):
        told = "unknown, the limit being" if p95_s is None else f"{p95_s:.2f} s, over"
        reasons.append(f"p95 {told} {limit:g} s")
    saved = result.cost.saved_percent if result.cost else None
    if result.cascade and saved is not None and saved <= 0:
        reasons.append("saves nothing")
    return "; ".join(reasons)


def _stop(result: TrialResult) -> Json:
    """How far a trial came that was stopped early as surely worse than the margin allows."""
    stopped: Json = result.provenance.get("stopped", {})
    return stopped


def _dominates(one: TrialResult, other: TrialResult, metric: str) -> bool:
    pairs = list(zip(_merits(one, metric), _merits(other, metric), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _merits(result: TrialResult, metric: str) -> tuple[float, float, float]:
    """Shortfall, dollars, seconds: less is better, and what is not known is worst."""
    seconds = math.inf if result.p95_s is None else result.p95_s
    return -(_figure(result, metric) or 0.0), _dollars(result), seconds


def _order(row: Row, metric: str) -> tuple[bool, float, tuple[float, float, str]]:
    dollars = _dollars(row.result) if row.eligible else 0.0
    return not row.eligible, dollars, _by_quality(row.result, metric)


def _by_quality(result: TrialResult, metric: str) -> tuple[float, float, str]:
    return -(_figure(result, metric) or 0.0), _dollars(result), result.trial.label


def _dollars(result: TrialResult) -> float:
    cost = result.cost.per_1k_requests if result.cost else None
    return math.inf if cost is None else cost


def _figure(result: TrialResult, metric: str) -> float | None:
    figure = result.metrics.get(metric)
    return figure.value if figure and result.status == "succeeded" else None


def _unranked_order(result: TrialResult) -> tuple[bool, str]:
    return result.status != "succeeded", result.trial.label


def _default_metric(counts: Mapping[str, int], judged: bool) -> str:
    if counts.get(TOOL_METRIC, 0) > counts.get(TEXT_METRIC, 0):
        return TOOL_METRIC
    if counts.get(LABEL_METRIC, 0) >= max(counts.get(TEXT_METRIC, 0), 1):
        return LABEL_METRIC
    if judged:
        return JUDGED_METRIC
    of_programs = [metric for metric in counts if metric != JUDGED_METRIC]
    return TEXT_METRIC if TEXT_METRIC in of_programs or not of_programs else of_programs[0]


def _records_by_metric(results: Sequence[TrialResult]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        for name, figure in result.metrics.items():
            counts[name] = max(counts.get(name, 0), figure.n)
    return counts
