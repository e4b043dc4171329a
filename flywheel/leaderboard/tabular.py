"""The leaderboard for programs and spreadsheets: CSV with a row per trial, numbers unrounded."""

from __future__ import annotations

import csv
import io
from typing import Any

from flywheel.leaderboard.board import Leaderboard, Row
from flywheel.types import Json

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def to_csv(board: Leaderboard) -> str:
    """A row per trial in the board's order, and one for production.

    Metrics have columns ``NAME``, ``NAME low``, ``NAME high`` (95 %), ``NAME n``,
    ``NAME unscored`` and ``NAME failed``, the ranking one first; dollars are per 1,000 requests.
    Text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    rows = [_row(board, row) for row in board.rows]
    if board.production is not None:
        cost = board.production
        rows.append(
            {"trial": "production", "dollars": cost.per_1k_requests, "cost basis": cost.basis}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _row(board: Leaderboard, row: Row) -> Json:
    result, trial = row.result, row.result.trial
    cells: Json = {
        "rank": row.rank,
        "trial": trial.label,
        "candidate": trial.candidate,
        "model": trial.model,
        "method": trial.method,
        "status": result.status,
        "verdict": row.verdict.value if row.rank else None,
        "recommended": row is board.recommended,
        "pareto": row.pareto,
        "tie with best": row.tie_with_best,
        "blocked": row.blocked,
        "error": result.error,
        "dollars": row.cost,
        "cost basis": result.cost.basis if result.cost else None,
    }
    for name, gap in (("to best", row.difference), ("to production", row.to_production)):
        ends = (gap.value, gap.low, gap.high, gap.p_value) if gap else (None,) * 4
        titles = (name, f"{name} low", f"{name} high", f"{name} p")
        cells |= dict(zip(titles, ends, strict=True))
    metrics = sorted(result.metrics.items(), key=lambda one: one[0] != board.metric)
    for name, f in metrics:
        cells |= {name: f.value, f"{name} low": f.low, f"{name} high": f.high}
        cells |= {f"{name} n": f.n, f"{name} unscored": f.unscored, f"{name} failed": f.failed}
    if speed := result.latency:
        cells |= {"p50 s": speed.p50_s, "p95 s": speed.p95_s}
        cells |= {"tokens/s": speed.output_tokens_per_second, "concurrency": speed.concurrency}
    return {**cells, "key": result.key}


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return f"'{text}" if text.startswith(_FORMULA) else text
