"""A mean of a judge's scores, corrected by the people who looked at some of the same answers."""

from __future__ import annotations

import numpy as np
from scipy import special

from flywheel.statistics.groups import Floats, Groups, group_codes
from flywheel.statistics.means import wilson
from flywheel.types import Estimate

LEAST = 10
"""Labels from which an interval is given; with fewer the normal approximation says little."""


def corrected_mean(
    judged: dict[str, float], labelled: dict[str, float], groups: Groups | None = None
) -> Estimate | None:
    """The mean of what people would say of all records, by prediction-powered inference.

    The judge's mean over what nobody labelled, plus what people differ from the judge on a random
    sample (Angelopoulos et al. 2023, Science 382, "Prediction-powered inference"). The judge
    counts for as much as it agrees with people, so that a bad one does no harm (Angelopoulos, Duchi
    and Zrnic 2023, "PPI++", arXiv:2311.01453). The variance is that between groups.

    Args:
        judged: The judge's value by record, 0..1.
        labelled: People's value for a random sample of these records, 0..1.
        groups: Records that belong together.

    Returns:
        The mean with its 95 % interval, n being the records; ``None`` for fewer than `LEAST`
        labels.
    """
    names = [name for name in judged if name in labelled]
    rest = [name for name in judged if name not in labelled]
    if len(names) < LEAST:
        return None
    people = np.array([labelled[name] for name in names])
    judge, others = (np.array([judged[name] for name in part]) for part in (names, rest))
    codes = group_codes([*names, *rest], groups)
    weight = _trust(people, judge, others)
    offsets = people - weight * judge
    means = offsets.mean(), weight * others.mean() if rest else 0.0
    value = float(np.clip(sum(means), 0, 1))
    moves = (offsets - means[0]) / len(names)
    if rest:
        moves = np.concatenate([moves, (weight * others - means[1]) / len(rest)])
    many = len(np.unique(codes))
    variance = (np.bincount(codes, moves) ** 2).sum() * many / max(1, many - 1)
    half = float(special.stdtrit(len(names) - 1, 0.975)) * float(np.sqrt(variance))
    low, high = max(0.0, value - half), min(1.0, value + half)
    if np.ptp(people) == 0:  # as little variance as seen is not as little as there is
        least, most = wilson(float(people[0]), len(names))
        low, high = min(low, least), max(high, most)
    return Estimate(value, low, high, len(judged))


def _trust(people: Floats, judge: Floats, others: Floats) -> float:
    """The weight of the judge that makes the interval shortest."""
    everything = np.concatenate([judge, others])
    spread = everything.var() * (1 + len(people) / max(1, len(others)))
    if not len(others) or spread <= 0:
        return 0.0
    return float(np.clip(np.cov(people, judge)[0, 1] / spread, 0, 1))
