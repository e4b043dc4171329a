"""The mean of one metric's scores with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from flywheel.statistics.groups import Floats, Groups, Ints, group_codes
from flywheel.types import Estimate, Score, ScoreStatus

Z = float(special.ndtri(0.975))
SEED = 0
RESAMPLES = 9_999
_DRAWS = 8_000_000
"""Numbers drawn for one bootstrap: beyond 800 groups it takes fewer resamples."""
_ROWS = 200
"""Resamples held in memory at once."""


def estimate(scores: Sequence[Score], groups: Groups | None = None) -> Estimate:
    """The mean of one metric's scores with its 95 % interval.

    Wilson's interval for 0/1 scores (and where all scores are equal, since a bootstrap would claim
    to know them exactly); else the percentile bootstrap. With groups, Wilson's interval is that of
    as many records as the groups are worth, and the bootstrap draws whole groups.
    """
    scored = [s for s in scores if s.value is not None and math.isfinite(s.value)]
    failed = sum(s.status is ScoreStatus.FAILED for s in scores)
    unscored = len(scores) - len(scored) - failed  # what is no number is no score
    counts = {"n": len(scores), "unscored": unscored, "failed": failed}
    if not scored:
        return Estimate(None, None, None, **counts)
    values = np.array([s.value for s in scored], np.float64)
    low, high = interval(values, group_codes([s.record_id for s in scored], groups))
    return Estimate(math.fsum(values) / len(values), low, high, **counts)


def estimates(scores: Sequence[Score], groups: Groups | None = None) -> dict[str, Estimate]:
    """`estimate` of each metric that the scores are of."""
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
    return {name: estimate(of, groups) for name, of in by_metric.items()}


def interval(values: Floats, codes: Ints) -> tuple[float, float]:
    """Where the mean of all records like these lies.

    Args:
        values: N scores in 0..1, at least one.
        codes: The group of each, numbered from 0 without gaps.
    """
    sums = np.bincount(codes, values).astype(np.float64)
    sizes = np.bincount(codes).astype(np.float64)
    n, mean = len(values), math.fsum(values) / len(values)
    closed = bool(np.isin(values, (0.0, 1.0)).all()) or values.min() == values.max()
    if len(sums) == n and closed:
        return wilson(mean, n)
    if len(sums) == 1:
        return wilson(mean, 1)  # one conversation is one observation
    if closed:
        return wilson(mean, n / _design_effect(sums, sizes, mean), _t(len(sums) - 1))
    return _bootstrap(sums, sizes)


def wilson(mean: float, n: float, z: float = Z) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); conservative for other means in 0..1."""
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100) of at least one value, interpolated linearly."""
    return float(np.percentile(values, q))


def _design_effect(sums: Floats, sizes: Floats, mean: float) -> float:
    """How many records are worth one, as they come in groups (Kish 1965); at least 1.

    The variance of the mean between groups over that of as many records drawn one by one. Where
    nothing varies, a group is taken for one record.
    """
    n, many = sizes.sum(), len(sums)
    alone = mean * (1 - mean) / n
    if alone <= 0:
        return float((sizes**2).sum() / n)
    between = many / (many - 1) * ((sums - mean * sizes) ** 2).sum() / n**2
    return max(1.0, float(between / alone))


def _bootstrap(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Percentile bootstrap of whole groups, its ends moved out for how few there are.

    A plain percentile interval is as narrow as one that divides by n and takes the normal for t;
    Hesterberg (2015, The American Statistician 69:4) takes wider percentiles instead.
    """
    many = len(sums)
    order = np.lexsort((sizes, sums))
    resamples = max(999, min(RESAMPLES, _DRAWS // many))
    rng = np.random.default_rng(SEED)
    means = np.concatenate(
        [
            _resampled(sums[order], sizes[order], rng, min(_ROWS, resamples - start))
            for start in range(0, resamples, _ROWS)
        ]
    )
    tail = float(special.ndtr(-math.sqrt(many / (many - 1)) * _t(many - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return max(0.0, float(low)), min(1.0, float(high))


def _resampled(sums: Floats, sizes: Floats, rng: np.random.Generator, rows: int) -> Floats:
    drawn = rng.integers(len(sums), size=(rows, len(sums)))
    counts = sizes[drawn].sum(axis=1) if sizes.max() > 1 else len(sums)
    return np.asarray(sums[drawn].sum(axis=1) / counts)


def _t(degrees: int) -> float:
    return float(special.stdtrit(degrees, 0.975))
