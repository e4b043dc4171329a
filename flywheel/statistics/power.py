"""What a number of records can show, known before anything is spent.

Normal approximations for 0/1 scores. Of a pair, only the records on which the two disagree tell
them apart (Connor 1987, Biometrics 43:1); against logged answers a trial has one share to show.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scipy import special

from flywheel.types import Json

POWER = 0.8
"""The chance of showing what is there."""
_SURE, _LIKELY = float(special.ndtri(0.975)), float(special.ndtri(POWER))
"""Standard errors, at what must be excluded and at what is true, that must lie between the two."""


@dataclass(frozen=True, slots=True)
class Power:
    """What the records of a run can show, four times in five."""

    records: int
    margin: float
    disagreement: float
    """Expected share of records on which a good candidate and the baseline differ."""
    smallest_margin: float
    """Within which a good candidate could be shown to lie."""
    detectable_difference: float
    """Between two candidates that differ on as many records as expected."""
    records_needed: int | None
    """For the margin; ``None`` where a candidate that differs so often lies outside it."""

    @property
    def enough(self) -> bool:
        """Whether a good candidate will probably be shown not to be inferior."""
        return self.records_needed is not None and self.records >= self.records_needed

    def to_json(self) -> Json:
        """For ``leaderboard.json``."""
        return {**asdict(self), "enough": self.enough}

    @property
    def sentence(self) -> str:
        """What it comes to."""
        if self.records_needed is None:
            return (
                f"a candidate that differs from production on {self.disagreement:.0%} of the "
                f"records lies outside the margin of {self.margin:g}, however many there are"
            )
        return (
            f"{self.records} eval records can show a margin of {self.smallest_margin:.2f}; the "
            f"margin of {self.margin:g} takes {self.records_needed} (a candidate that differs on "
            f"{self.disagreement:.0%} of them, power {POWER:.0%}), and two candidates are told "
            f"apart from a difference of {self.detectable_difference:.2f} on"
        )


def plan(records: int, margin: float, disagreement: float, *, asked_again: bool) -> Power:
    """What a number of records can show.

    Args:
        records: Of the eval split, one by one; fewer conversations show less.
        margin: By how much a candidate may be worse.
        disagreement: Expected share of records on which a good candidate and the baseline differ.
        asked_again: Whether the baseline is production asked again, which a good candidate loses
            to as often as it wins. Logged answers are right by definition: every difference is a
            loss, so what is expected of it is taken off the margin.
    """
    from scipy import optimize

    def reach(within: float) -> float:
        """What must lie between truth and margin, in scores, times the root of the records."""
        true = disagreement if asked_again else disagreement * (1 - disagreement)
        excluded = disagreement if asked_again else within * (1 - within)
        return _SURE * math.sqrt(excluded) + _LIKELY * math.sqrt(true)

    def room(within: float) -> float:
        return within - (0.0 if asked_again else disagreement)

    def shown(within: float) -> float:
        return room(within) - reach(within) / math.sqrt(records)

    needed = math.ceil((reach(margin) / room(margin)) ** 2) if room(margin) > 0 else None
    return Power(
        records=records,
        margin=margin,
        disagreement=disagreement,
        smallest_margin=float(optimize.brentq(shown, 0, 1)) if shown(1) > 0 else 1.0,
        detectable_difference=(_SURE + _LIKELY) * math.sqrt(disagreement / records),
        records_needed=needed,
    )
