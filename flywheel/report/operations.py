"""How fast trials answered and what they cost, in tables and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from markupsafe import Markup

from flywheel.leaderboard import Leaderboard, Row, saving
from flywheel.report import charts
from flywheel.report.facts import title, value_of
from flywheel.report.material import Material, featured
from flywheel.report.text import line
from flywheel.statistics import percentile
from flywheel.types import Json

PERCENTILES = (50, 90, 95, 99)
_SHOWN = ("per_1k_requests", "basis", "saved_percent")
"""Of a cost, in columns of their own."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One trial's latencies, in seconds."""

    row: Row
    answers: int
    percentiles: list[float]
    """At `PERCENTILES`."""
    slowest: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """One trial under each load of a load test."""

    row: Row
    slo: str
    at_slo: str | None
    """The load of the highest throughput that the SLO bears."""
    levels: list[Json]
    """As ``result.json`` has them: ``load``, throughput, ``within_slo``, times by percentile."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Every featured trial's, and the curve of each."""

    trials: list[Speed]
    chart: Markup | None
    loaded: list[Loaded]
    """Empty where there was no load test."""
    load_chart: Markup | None


@dataclass(frozen=True, slots=True)
class Price:
    """What one trial costs."""

    label: str
    dollars: float | None
    """Per 1,000 requests."""
    basis: str
    saved: float | None
    """The share of production's cost."""
    more: list[str]
    """Whatever else is known of its cost, by the columns of `Prices`."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Every trial's, and production's."""

    columns: list[str]
    rows: list[Price]


def speeds(material: Material) -> Speeds:
    """The latencies of the featured trials, as they were measured while answering."""
    trials, curves = [], []
    for row in featured(material.board):
        completions = material.completions.get(row.result.key, ())
        seconds = [c.latency_s for c in completions if not c.error]
        if seconds and row.result.latency:  # a cascade's is unknown where production's is
            trials.append(_speed(row, seconds))
            curves.append((_name(row), seconds))
    loaded = [one for row in featured(material.board) if (one := _loaded(material, row))]
    lines = [(_name(one.row), _curve(one.levels)) for one in loaded]
    return Speeds(trials, charts.latencies(curves), loaded, charts.loads(lines))


def costs(board: Leaderboard) -> Prices:
    """What each trial costs, beside production."""
    told = [(row, _more(row)) for row in board.rows if row.result.cost]
    columns = list(dict.fromkeys(name for _, more in told for name in more))
    rows = [_price(board, row, more, columns) for row, more in told]
    if board.production is not None:
        today = board.production
        blank = ["–"] * len(columns)
        rows.append(Price("production", today.per_1k_requests, today.basis, None, blank))
    return Prices([name.replace("_", " ") for name in columns], rows)


def _speed(row: Row, seconds: Sequence[float]) -> Speed:
    shares = [percentile(seconds, share) for share in PERCENTILES]
    return Speed(row, len(seconds), shares, max(seconds))


def _loaded(material: Material, row: Row) -> Loaded | None:
    load = material.results.get(row.result.key, {}).get("load")
    if not load:
        return None
    limits = {title(name): value for name, value in load["slo"].items() if value is not None}
    return Loaded(row, value_of(limits), load["at_slo"], load["levels"])


def _curve(levels: Sequence[Json]) -> list[tuple[float, float]]:
    """Requests a second, and the seconds within which 95 % of the answers came."""
    answered = [level for level in levels if level["total_s"]]
    return sorted((level["requests_per_second"], level["total_s"]["p95"]) for level in answered)


def _name(row: Row) -> str:
    return f"{row.rank} {line(row.result.trial.label, 34)}"


def _price(board: Leaderboard, row: Row, more: Json, columns: Sequence[str]) -> Price:
    basis = row.result.cost.basis if row.result.cost else ""
    saved = saving(row.cost, board.production)
    label = row.result.trial.label
    return Price(label, row.cost, basis, saved, [value_of(more.get(name)) for name in columns])


def _more(row: Row) -> Json:
    """What a cost says beside its dollars, and what training took."""
    cost = asdict(row.result.cost) if row.result.cost else {}
    known = {
        k: v for k, v in cost.items() if k not in ("per_1k_requests", "basis", "saved_percent")
    }
    trained = row.result.training.get("seconds")
    return known if trained is None else {**known, "training_seconds": trained}
