"""What a number of records can show, known before anything is spent.

Normal approximations of paired comparisons (Connor 1987, Biometrics 43:1, for 0/1 scores): only the
records on which two trials disagree tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scipy import stats

from flywheel.types import Json

POWER = 0.8
"""The chance of showing what is there."""
_REACH = float(stats.norm.ppf(0.975) + stats.norm.ppf(POWER))
"""Standard errors between what is true and what must be excluded."""


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
    loss = 0.0 if asked_again else disagreement
    deviation = math.sqrt(disagreement - loss**2)
    room = margin - loss
    needed = math.ceil((_REACH * deviation / room) ** 2) if room > 0 else None
    return Power(
        records=records,
        margin=margin,
        disagreement=disagreement,
        smallest_margin=loss + _REACH * deviation / math.sqrt(records),
        detectable_difference=_REACH * math.sqrt(disagreement / records),
        records_needed=None if needed is None else max(needed, 1),
    )
