"""What a leaderboard holds, as ``leaderboard.json`` has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from flywheel.statistics import Comparison, Difference
from flywheel.types import Cost, Estimate, Json, TrialResult


class Verdict(StrEnum):
    """What the interval of candidate minus baseline says about the margin."""

    NOT_INFERIOR = "not inferior"
    """All of it lies above minus the margin."""
    INFERIOR = "inferior"
    """All of it lies below."""
    UNDECIDED = "undecided"
    """It holds the margin: these records do not settle it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trial's place."""

    rank: int | None
    """``None`` for a trial that failed, that the ranking metric scored nowhere, or that is
    production asked again."""
    result: TrialResult
    difference: Difference | None = None
    """This trial less the best one, paired, its p-value corrected for all pairs of the board
    (Holm); ``None`` for the best and for unranked trials."""
    tie_with_best: bool = False
    """Not distinguishable from the best at 5 % (Holm over the board)."""
    to_production: Difference | None = None
    """This trial less the baseline: production asked again, or its logged answers. Without a
    ground-truth file those are right by definition, and nothing is tested (no p-value)."""
    verdict: Verdict = Verdict.UNDECIDED
    blocked: str = ""
    """What else stands against it, in one sentence: too slow, too many records without a score."""
    pareto: bool = False
    """No other trial is better in quality, cost or p95 without being worse in another."""

    @property
    def promising(self) -> bool:
        """Not inferior to production within the margin; a human decides what follows."""
        return self.verdict is Verdict.NOT_INFERIOR

    @property
    def eligible(self) -> bool:
        """Promising, and nothing else stands against it."""
        return self.promising and not self.blocked

    @property
    def cost(self) -> float | None:
        """Dollars per 1,000 requests, where known."""
        return self.result.cost.per_1k_requests if self.result.cost else None

    def to_json(self) -> Json:
        """A JSON object, the result as in ``result.json``."""
        said = {"promising": self.promising, "eligible": self.eligible}
        return {**asdict(self), **said, "result": self.result.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> Row:
        """Inverse of `to_json`."""
        kept = {k: v for k, v in data.items() if k not in ("promising", "eligible")}
        for name in ("difference", "to_production"):
            kept[name] = Difference(**data[name]) if data[name] else None
        kept["verdict"] = Verdict(data["verdict"])
        kept["result"] = TrialResult.from_json(data["result"])
        return cls(**kept)


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Every trial in order, and what it was compared with.

    First what may replace production, the cheapest on top, then the others by quality; failed
    trials come last, without a rank.
    """

    metric: str
    """What the rows are ranked by."""
    margin: float
    """By how much a candidate may be worse than the baseline."""
    rows: list[Row]
    pairs: list[Comparison] = field(default_factory=list)
    """Every ranked trial, and production asked again, against every other."""
    asked_again: str = ""
    """Key of the trial that is production asked again; its agreement with its own logged answers
    is the ceiling. Empty: candidates are compared with the logged answers."""
    note: str = ""
    """Why the metric or the baseline is not the one asked for."""
    production: Cost | None = None
    calibration: Json | None = None
    """How well the judge told references from shuffled answers; ``None`` without a judge."""
    logged: Estimate | None = None
    """How production's logged answers score by a ground-truth file; ``None`` where there is no such
    file, and they are right by definition."""
    power: Json | None = None
    """What the eval records could show; see `flywheel.statistics.Power`."""
    provenance: Json = field(default_factory=dict)
    """``date``, ``commit`` and whatever else says where the figures come from."""

    @property
    def ranked(self) -> list[Row]:
        """The rows that have a rank."""
        return [row for row in self.rows if row.rank]

    @property
    def best(self) -> Row | None:
        """The row of the highest quality."""
        return next((row for row in self.ranked if row.difference is None), None)

    @property
    def ties(self) -> list[Row]:
        """The best, and what cannot be told from it."""
        return [row for row in self.ranked if row.difference is None or row.tie_with_best]

    @property
    def recommended(self) -> Row | None:
        """The cheapest that may replace production; where none may, the cheapest of `ties`."""
        ranked = self.ranked
        if ranked and ranked[0].eligible:
            return ranked[0]
        return min(
            self.ties,
            key=lambda row: (bool(row.blocked), row.cost is None, row.cost or 0.0),
            default=None,
        )

    @property
    def foremost(self) -> Row | None:
        """What a verdict is about: what may replace production, else what comes closest to it."""
        choice, promising = self.recommended, self.promising
        if choice is not None and choice.eligible:
            return choice
        return promising[0] if promising else self.best

    @property
    def promising(self) -> list[Row]:
        """The rows that are not inferior to production."""
        return [row for row in self.rows if row.promising]

    @property
    def ground_truth(self) -> bool:
        """A ground-truth file says what is right, production's answers do not."""
        return self.logged is not None

    @property
    def ceiling(self) -> Row | None:
        """Production asked again, where it was."""
        return next((row for row in self.rows if row.result.key == self.asked_again), None)

    @property
    def saved(self) -> tuple[int, int]:
        """Requests that stopping early spared, and those that a full run takes."""
        trials = [row.result for row in self.rows if not row.result.cascade]
        stops = [result.provenance.get("stopped") for result in trials]
        spared = sum(stop["of"] - stop["asked"] for stop in stops if stop)
        asked = [result.metrics.get(self.metric) for result in trials]
        return spared, spared + sum(figure.n for figure in asked if figure)

    @property
    def dataset(self) -> str:
        """Fingerprint of the dataset that all trials answered."""
        return self.rows[0].result.trial.dataset if self.rows else ""

    def to_json(self) -> Json:
        """The content of ``leaderboard.json``."""
        recommended = self.recommended.result.key if self.recommended else None
        rows = [row.to_json() for row in self.rows]
        found = {"recommended": recommended, "saved": list(self.saved)}
        return {**asdict(self), "rows": rows, **found}

    @classmethod
    def from_json(cls, data: Json) -> Leaderboard:
        """Inverse of `to_json`."""
        kept = {name: value for name, value in data.items() if name not in ("recommended", "saved")}
        kept["production"] = Cost(**data["production"]) if data["production"] else None
        kept["logged"] = Estimate(**data["logged"]) if data.get("logged") else None
        kept["rows"] = [Row.from_json(row) for row in data["rows"]]
        kept["pairs"] = [Comparison.from_json(pair) for pair in data["pairs"]]
        return cls(**kept)
