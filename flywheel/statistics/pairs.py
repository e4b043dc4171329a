"""Every trial against every other, on the records that both scored.

A board of T trials and N records is a T x N matrix with NaN for what has no score. Sums over the
records of a group take the place of records wherever records come in groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from flywheel.statistics.groups import Floats, Groups, Ints, group_codes
from flywheel.statistics.means import RESAMPLES, SEED, Z
from flywheel.types import Score

_CELLS = 8_000_000
"""Pairs times records held in memory at once, several times over."""
_FLIPS = 500
"""Rows of random signs held in memory at once."""
_EXTREME = 100
"""Once so many were as extreme as what was seen, a pair's chance is known well enough (Besag and
Clifford 1991, Biometrika 78:2); it is then above 1 %."""
_TAIL = 1 / (4 * special.ndtr(-math.sqrt(2)))
"""The best constant of Bentkus and Dzindzalieta (2015, Bernoulli 21:2): a sum of fixed numbers with
random signs goes beyond z standard deviations at most this many times as often as a normal."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of ``a - b`` over the records that both scored, and the chance of it by luck."""

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, under the hypothesis that a and b are equally good; ``None`` if not tested."""
    n: int
    """Records that both scored."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair of a board."""

    first: str
    second: str
    """Trial keys."""
    difference: Difference
    """First less second, with the p-value corrected for all pairs of the board (Holm)."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Inverse of `dataclasses.asdict`."""
        return cls(data["first"], data["second"], Difference(**data["difference"]))


def compare_all(
    scores: Mapping[str, Sequence[Score]], groups: Groups | None = None
) -> list[Comparison]:
    """Compare all pairs of trials by one metric, with Holm's correction over all of them.

    For 0/1 scores: the interval of Agresti and Min and the exact McNemar test. Otherwise: Student's
    interval of the differences and a sign-flip permutation test. With groups the interval's
    variance is that between groups, and the test flips whole groups.

    Args:
        scores: One metric's scores by trial key.
        groups: Records that belong together.
    """
    keys = list(scores)
    found = _differences(*_matrix(list(scores.values()), groups))
    adjusted = holm([d.p_value if d.p_value is not None else 1.0 for d in found])
    first, second = np.triu_indices(len(keys), 1)
    return [
        Comparison(keys[a], keys[b], Difference(d.value, d.low, d.high, p, d.n))
        for a, b, d, p in zip(first, second, found, adjusted, strict=True)
    ]


def paired_difference(
    a: Sequence[Score], b: Sequence[Score], groups: Groups | None = None
) -> Difference:
    """Compare two trials by one metric; see `compare_all`."""
    return _differences(*_matrix([a, b], groups))[0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for having made as many comparisons (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def _matrix(trials: Sequence[Sequence[Score]], groups: Groups | None) -> tuple[Floats, Ints]:
    """Scores as a matrix, its columns by group, and where each group's columns begin."""
    records = sorted({s.record_id for scores in trials for s in scores})
    codes = group_codes(records, groups)
    order = np.argsort(codes, kind="stable")
    column = {records[at]: place for place, at in enumerate(order)}
    values = np.full((len(trials), len(records)), np.nan)
    for row, scores in zip(values, trials, strict=True):
        at = [column[s.record_id] for s in scores]
        row[at] = [math.nan if s.value is None else s.value for s in scores]
    values[~np.isfinite(values)] = np.nan  # what is no number is no score
    return values, np.unique(codes[order], return_index=True)[1]


def _differences(values: Floats, starts: Ints) -> list[Difference]:
    first, second = np.triu_indices(len(values), 1)
    step = max(1, _CELLS // max(1, values.shape[1]))
    chunks = (slice(begin, begin + step) for begin in range(0, len(first), step))
    return [
        difference
        for chunk in chunks
        for difference in _some(values[first[chunk]] - values[second[chunk]], starts)
    ]


def _some(raw: Floats, starts: Ints) -> list[Difference]:
    """The pairs whose differences, NaN where a score is missing, are the rows of ``raw``."""
    if not raw.shape[1]:
        return [Difference(None, None, None, 1.0, 0)] * len(raw)
    shared = ~np.isnan(raw)
    raw[~shared] = 0.0
    pairs = _Pairs(raw, _by_group(raw, starts), _by_group(shared.astype(np.float64), starts))
    low, high = pairs.interval()
    p_values = pairs.p_values()
    return [
        Difference(float(v), float(lo), float(hi), float(p), int(n))
        if n
        else Difference(None, None, None, 1.0, 0)
        for v, lo, hi, p, n in zip(pairs.mean, low, high, p_values, pairs.n, strict=True)
    ]


def _by_group(cells: Floats, starts: Ints) -> Floats:
    return cells if len(starts) == cells.shape[1] else np.add.reduceat(cells, starts, axis=1)


class _Pairs:
    """P pairs over N records in G groups; what is one number a pair is an array of P."""

    def __init__(self, differences: Floats, sums: Floats, sizes: Floats) -> None:
        self.sums, self.sizes = sums, sizes
        """P x G: of a group's differences, and of its records."""
        self.n = sizes.sum(axis=1)
        self.some = np.maximum(self.n, 1)
        self.total, self.squares = differences.sum(axis=1), (differences**2).sum(axis=1)
        self.mean = self.total / self.some
        self.alone = (sizes <= 1).all(axis=1)
        """Whether every record is a group of its own."""
        self.signs_only = (differences == np.rint(differences)).all(axis=1)
        """Whether scores are right or wrong, nothing between."""

    def interval(self) -> tuple[Floats, Floats]:
        """95 % intervals of the means."""
        centre, variance, spread = self.mean, self._variance(), self._spread_of_records()
        closed = self.signs_only | (variance <= 0)
        n = self.n + 2
        centre = np.where(closed, self.total / n, centre)
        variance = np.where(closed, ((self.squares + 1) / n - centre**2) / n, variance)
        many = (self.sizes > 0).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            student = special.stdtrit(np.maximum(many - 1, 1), 0.975)
            between = self._variance_of_groups(many) / spread
            alike = (self.sizes**2).sum(axis=1) / self.some
            effect = np.where(spread > 0, np.maximum(between, 1), alike)
        times = np.where(self.alone & closed, Z, student)
        half = times * np.sqrt(variance * np.where(self.alone, 1, effect))
        half = np.where((many < 2) & ~self.alone, 2.0, half)  # one group shows nothing
        low, high = np.maximum(-1.0, centre - half), np.minimum(1.0, centre + half)
        return np.minimum(low, self.mean), np.maximum(high, self.mean)

    def p_values(self) -> Floats:
        """Chances of differences as large, were the two trials equally good."""
        exact = self.alone & self.signs_only
        result = _mcnemar((self.squares + self.total) / 2, (self.squares - self.total) / 2)
        if not exact.all():
            result[~exact] = _sign_flip(self.sums[~exact])
        return result

    def _spread_of_records(self) -> Floats:
        """The variance of the mean, were records drawn one by one."""
        spread = np.maximum(self.squares / self.some - self.mean**2, 0)
        return np.asarray(spread / self.some)

    def _variance(self) -> Floats:
        """The same without bias."""
        unbiased = self._spread_of_records() * self.some / np.maximum(self.n - 1, 1)
        return np.where(unbiased > 1e-18, unbiased, 0)

    def _variance_of_groups(self, many: npt.NDArray[Any]) -> Floats:
        apart = self.sums - self.mean[:, None] * self.sizes
        correction = many / np.maximum(many - 1, 1)
        return np.asarray(correction * (apart**2).sum(axis=1) / self.some**2)


def _mcnemar(better: Floats, worse: Floats) -> Floats:
    """Exact test of the records that only one of the two got right (McNemar 1947)."""
    fewer, some = np.minimum(better, worse), (better + worse).astype(np.int64)
    return np.asarray(np.minimum(1.0, 2 * special.bdtr(fewer, some, 0.5)))


def _sign_flip(sums: Floats) -> Floats:
    """Permutation test: were two trials alike, each group's sum could as well have the other sign.

    Resampling can show no chance below 1 in 10,000, too coarse for the pairs of a large board, so a
    bound that holds for every sum with random signs takes over where it is lower.
    """
    spread = np.sqrt((sums**2).sum(axis=1))
    seen = abs(sums.sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(spread > 0, 2 * _TAIL * special.ndtr(-seen / spread), 1.0)
    chance = np.minimum(bound, 1.0)
    left = np.flatnonzero((bound > 1 / (RESAMPLES + 1)) & (spread > 0))
    extreme = np.zeros(len(sums))
    rng = np.random.default_rng(SEED)
    for start in range(0, RESAMPLES, _FLIPS):
        if not len(left):
            break
        done = min(start + _FLIPS, RESAMPLES)
        signs = rng.integers(0, 2, size=(done - start, sums.shape[1]), dtype=np.int8) * 2.0 - 1
        flipped = abs(signs @ sums[left].T)
        extreme[left] += (flipped >= seen[left] - 1e-9).sum(axis=0)
        chance[left] = np.minimum(bound[left], (extreme[left] + 1) / (done + 1))
        left = left[extreme[left] < _EXTREME]
    return np.asarray(chance)
