"""How well a value tells two kinds of things apart, and how far so many of each can show it."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.statistics.means import Z

_EDGE = 1e-9
"""At 0 and 1 themselves nothing varies."""


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties half (Mann-Whitney).

    0.5, no separation shown, where either side is empty.
    """
    if not len(positives) or not len(negatives):
        return 0.5
    from scipy import stats  # a second of imports that only a judge's calibration needs

    u = stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(u) / (len(positives) * len(negatives))


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """Where the area of many like these lies, with 95 % confidence.

    Newcombe 2006, Statistics in Medicine 25:559, method 5: all areas from which ``auc`` is no
    further away than 1.96 standard deviations, these by Hanley and McNeil 1982 for as many of
    either kind as there are on average. So an area of 1 has a width, too.

    Args:
        auc: As `roc_auc` gives it.
        positives: How many it rests on, at least one.
        negatives: The same.
    """
    from scipy import optimize

    mean = (positives + negatives) / 2

    def beyond(area: float) -> float:
        """Above 0 where an area is too far away."""
        spread = 2 * mean - 1 - (3 * mean - 3) / ((2 - area) * (1 + area))
        variance = area * (1 - area) / (positives * negatives) * spread
        return (area - auc) ** 2 - Z**2 * variance

    inside = min(max(auc, _EDGE), 1 - _EDGE)
    low = float(optimize.brentq(beyond, 0.0, inside)) if auc > 0 else 0.0
    high = float(optimize.brentq(beyond, inside, 1.0)) if auc < 1 else 1.0
    return low, high
