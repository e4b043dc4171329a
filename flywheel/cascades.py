"""Cascades: a model answers, and hands over to production where its answer looks wrong.

Worked out from answers that exist. A record that is handed over gets production's answer, so it is
right by definition; what is left is to choose how unsure is too unsure (`choose`, on validation
records) and to see what that comes to on others (`Rule.reason`, on eval records). The idea is that
of FrugalGPT (Chen et al., 2023, arXiv:2305.05176), with the model's own log-probability for a
scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flywheel import scoring
from flywheel.schemas import violation
from flywheel.scoring.tool_calls import parse
from flywheel.statistics import Groups, estimate
from flywheel.types import Completion, Estimate, Json, Record, Score

THRESHOLDS = 50
"""Tried at most, at even distances among the validation answers' own."""
NO_ANSWER, UNPARSABLE, VIOLATION, UNSURE = (
    "no_answer",
    "unparsable_call",
    "violates_schema",
    "unsure",
)
"""Why an answer is handed over."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A record and what the cascade's model said to it."""

    record: Record
    completion: Completion
    wrong: str
    """Why it is handed over however sure the model was; empty where it need not be."""

    @classmethod
    def of(cls, record: Record, completion: Completion) -> Answered:
        """Look at an answer as the cascade would: production's is not known to it."""
        return cls(record, completion, _wrong(record, completion))


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold came to on validation records."""

    threshold: float | None
    handed_over: float
    """Share of the records."""
    agreement: Estimate
    """The metric's mean, records handed over being right."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a cascade hands over, and how that was chosen."""

    threshold: float | None
    """Mean log-probability (nats a token) under which an answer is handed over; ``None``: only
    answers that are wrong on their face are."""
    chosen: Point
    curve: Sequence[Point]
    """All that was tried, from handing over least to most."""

    def reason(self, answered: Answered) -> str:
        """Why an answer is handed over; empty if it stands."""
        return reason(answered, self.threshold)

    def to_json(self) -> Json:
        """For ``result.json``."""
        return {
            "threshold": self.threshold,
            "val": asdict(self.chosen),
            "curve": [asdict(point) for point in self.curve],
        }


def reason(answered: Answered, threshold: float | None) -> str:
    """Why an answer is handed over at a threshold; empty if it stands.

    An answer whose log-probability is not known is unsure at any threshold.
    """
    if answered.wrong or threshold is None:
        return answered.wrong
    sure = answered.completion.mean_logprob
    return UNSURE if sure is None or sure < threshold else ""


def scores(answered: Answered, handed_over: bool, call_order: str = "free") -> list[Score]:
    """By every programmatic metric: of the model's own answer, or of production's."""
    record = answered.record
    production = Completion(record.id, record.answer)
    return scoring.score(record, production if handed_over else answered.completion, call_order)


def choose(
    val: Sequence[Answered], metric: str, call_order: str, margin: float, groups: Groups | None
) -> Rule | None:
    """The threshold that hands over least of those surely within the margin of production.

    Surely: the lower end of the 95 % interval of the agreement lies above 1 less the margin. As
    the threshold was chosen on these records, that is no proof; other records must confirm it.

    Args:
        val: Validation records.
        metric: A programmatic one.
        call_order: As in the experiment's ``scoring``.
        margin: As in its ``ranking``.
        groups: Records that belong together.

    Returns:
        ``None`` where only a cascade that hands over everything is within the margin, if any.
    """
    own, theirs = ([_by_metric(a, handed, metric, call_order) for a in val] for handed in (0, 1))
    curve = []
    for threshold in [None, *_thresholds(val)]:
        handed = [bool(reason(answered, threshold)) for answered in val]
        told = [b if over else a for a, b, over in zip(own, theirs, handed, strict=True)]
        found = estimate([score for score in told if score], groups)
        curve.append(Point(threshold, sum(handed) / len(handed), found))
    able = [p for p in curve if p.handed_over < 1 and (p.agreement.low or 0.0) > 1 - margin]
    best = min(able, key=lambda p: p.handed_over, default=None)
    return Rule(best.threshold, best, curve) if best else None


def _wrong(record: Record, completion: Completion) -> str:
    if completion.message is None:
        return NO_ANSWER
    if parse(completion.message) is None:
        return UNPARSABLE
    calls = completion.message.get("tool_calls") or []
    return VIOLATION if violation(calls, record.tools) else ""


def _by_metric(answered: Answered, handed: int, metric: str, call_order: str) -> Score | None:
    found = scores(answered, bool(handed), call_order)
    return next((score for score in found if score.metric == metric), None)


def _thresholds(val: Sequence[Answered]) -> list[float]:
    """Log-probabilities of answers that are not handed over anyway, from low to high."""
    known = [a.completion.mean_logprob for a in val if not a.wrong]
    values = np.unique([value for value in known if value is not None])
    if len(values) > THRESHOLDS:
        values = values[np.linspace(0, len(values) - 1, THRESHOLDS).round().astype(int)]
    return [float(value) for value in values]
