"""What a set of scores can be trusted to say: means with intervals, and paired comparisons.

Scores of 0 and 1 have closed forms; other scores are resampled with a fixed seed, so that the same
scores always give the same figures, in whatever order they come. All intervals cover 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from flywheel.types import Estimate, Score, ScoreStatus

Z = float(stats.norm.ppf(0.975))
SEED = 0
RESAMPLES = 9_999
BATCH = 500
"""Resamples held in memory at once."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of ``a - b`` over the records that both scored, and the chance of it by luck."""

    value: float | None
    low: float | None
    high: float | None
    p_value: float
    """Two-sided, under the hypothesis that a and b are equally good."""
    n: int
    """Records that both scored."""


def estimate(scores: Sequence[Score]) -> Estimate:
    """The mean of one metric's scores with its 95 % interval.

    Wilson's interval for 0/1 scores (and where all scores are equal, since a bootstrap would claim
    to know them exactly); else the percentile bootstrap.
    """
    values = np.sort([s.value for s in scores if s.value is not None])
    counts = {
        "n": len(scores),
        "unscored": sum(s.status is ScoreStatus.UNSCORED for s in scores),
        "failed": sum(s.status is ScoreStatus.FAILED for s in scores),
    }
    if not len(values):
        return Estimate(None, None, None, **counts)
    mean = float(values.mean())
    closed = set(values) <= {0.0, 1.0} or values[0] == values[-1]
    low, high = wilson(mean, len(values)) if closed else _bootstrap(values)
    return Estimate(mean, low, high, **counts)


def paired_difference(a: Sequence[Score], b: Sequence[Score]) -> Difference:
    """Compare two trials by one metric on the records that both scored.

    For 0/1 scores: the interval of Agresti and Min and the exact McNemar test. Otherwise: the
    percentile bootstrap of the differences and a sign-flip permutation test.
    """
    first, second = _by_record(a), _by_record(b)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Difference(None, None, None, 1.0, 0)
    differences = np.sort([first[r] - second[r] for r in shared])
    binary = {*(first[r] for r in shared), *(second[r] for r in shared)} <= {0.0, 1.0}
    closed = binary or differences[0] == differences[-1]
    low, high = _agresti_min(differences) if closed else _bootstrap(differences)
    p_value = _mcnemar(differences) if binary else _sign_flip(differences)
    return Difference(float(differences.mean()), low, high, p_value, len(shared))


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); conservative for other means in 0..1."""
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for having made as many comparisons (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties half (Mann-Whitney).

    0.5, no separation shown, where either side is empty.
    """
    if not len(positives) or not len(negatives):
        return 0.5
    u = stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(u) / (len(positives) * len(negatives))


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100) of at least one value, interpolated linearly."""
    return float(np.percentile(values, q))


def _by_record(scores: Sequence[Score]) -> dict[str, float]:
    return {s.record_id: s.value for s in scores if s.value is not None}


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def _agresti_min(differences: np.ndarray) -> tuple[float, float]:
    """Wald interval after adding half a pair to each cell (Agresti and Min 2005)."""
    n = len(differences) + 2
    mean = differences.sum() / n
    variance = ((differences**2).sum() + 1) / n - mean**2
    half = Z * math.sqrt(variance / n)
    return max(-1.0, float(mean) - half), min(1.0, float(mean) + half)


def _mcnemar(differences: np.ndarray) -> float:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flip(differences: np.ndarray) -> float:
    """Permutation test: were a and b alike, each difference could as well have the other sign."""
    rng = np.random.default_rng(SEED)
    seen = abs(differences.sum()) - 1e-9
    extreme = 0
    for start in range(0, RESAMPLES, BATCH):
        rows = min(BATCH, RESAMPLES - start)
        signs = rng.choice((-1, 1), size=(rows, len(differences)))
        extreme += int((abs(signs @ differences) >= seen).sum())
    return (extreme + 1) / (RESAMPLES + 1)
