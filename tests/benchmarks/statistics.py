"""Are the intervals right? Boards of candidates whose true quality is known, thousands of times.

Scores are drawn by latent normals: a record's difficulty is shared by all candidates, so that pairs
are alike as they are in life, and so is a conversation's. A candidate answers rightly where its
latent lies below the quantile of its true quality: the truth is exact, whatever the correlation.

`make bench-statistics` writes ``coverage_*`` (shares of 95 % intervals that hold the truth) and
``false_promotion_*`` (candidates as much worse as the margin allows, called promising all the same)
into ``results/statistics.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import stats

from flywheel.config import RankingConfig
from flywheel.leaderboard import rank
from flywheel.statistics import compare_all, estimate
from flywheel.types import Score, Trial, TrialResult
from tests.benchmarks import results

METRIC = "function_name_and_args_accuracy"
MARGIN = 0.1
QUALITIES = (0.95, 0.9, 0.8, 0.6)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Design:
    """What boards are drawn from."""

    qualities: Sequence[float] = QUALITIES
    """True mean score of each candidate."""
    records: int = 300
    largest: int = 1
    """Records of the largest conversation; sizes are uniform from 1."""
    graded: bool = False
    """Scores between 0 and 1 instead of right and wrong."""
    alike: float = 0.4
    """Share of the latent's variance that a record has in all candidates."""
    within: float = 0.3
    """Share of the latent's variance that a conversation has in all its records."""
    known: bool = True
    """Whether the statistics are told of the conversations."""


@dataclass(frozen=True, slots=True)
class Board:
    """One simulated board."""

    scores: dict[str, list[Score]]
    groups: dict[str, int] | None


def board(design: Design, rng: np.random.Generator) -> Board:
    """Draw one."""
    sizes = _sizes(design, rng)
    group = np.repeat(np.arange(len(sizes)), sizes)
    n, candidates = len(group), len(design.qualities)
    latent = np.sqrt(design.alike) * rng.standard_normal(n)
    latent = latent + np.sqrt(1 - design.alike) * rng.standard_normal((candidates, n))
    if design.largest > 1:
        shared = rng.standard_normal((candidates + 1, len(sizes)))
        own = np.sqrt(0.5) * (shared[:1] + shared[1:])[:, group]
        latent = np.sqrt(design.within) * own + np.sqrt(1 - design.within) * latent
    quality = np.asarray(design.qualities)[:, None]
    ranks = stats.norm.cdf(latent)
    values = ranks ** (1 / quality - 1) if design.graded else (ranks < quality).astype(float)
    names = [f"r{i:05d}" for i in range(n)]
    scores = {
        f"c{k}": [Score(name, METRIC, float(v)) for name, v in zip(names, row, strict=True)]
        for k, row in enumerate(values)
    }
    groups = (
        dict(zip(names, group.tolist(), strict=True))
        if design.largest > 1 and design.known
        else None
    )
    return Board(scores, groups)


def coverage(design: Design, boards: int, seed: int) -> tuple[float, float]:
    """Shares of intervals that hold the truth: of means, and of differences of pairs."""
    means, pairs = [], []
    for one in _boards(design, boards, seed):
        for true, scores in zip(design.qualities, one.scores.values(), strict=True):
            found = estimate(scores, one.groups)
            means.append(found.low <= true <= found.high)
        truth = dict(zip(one.scores, design.qualities, strict=True))
        for pair in compare_all(one.scores, one.groups):
            true = truth[pair.first] - truth[pair.second]
            pairs.append(pair.difference.low <= true <= pair.difference.high)
    return float(np.mean(means)), float(np.mean(pairs))


def false_promotions(
    design: Design, boards: int, seed: int, *, asked_again: bool
) -> tuple[float, float]:
    """Candidates exactly as much worse as the margin allows that a board calls promising.

    Args:
        design: Its qualities are replaced.
        boards: How many to draw.
        seed: Of the draws.
        asked_again: Compare with production asked again, which agrees with its logged answers on 95
            of 100; else with the logged answers themselves.

    Returns:
        The share of such candidates, and the share of boards of four with any of them.
    """
    production = 0.95 if asked_again else 1.0
    at_margin = [production - MARGIN] * 4
    qualities = [*at_margin, production] if asked_again else at_margin
    drawn = Design(qualities, design.records, design.largest, design.graded)
    rule = RankingConfig(
        margin=MARGIN, metric=METRIC, baseline="c4" if asked_again else None, adaptive=False
    )
    promoted = []
    for one in _boards(drawn, boards, seed):
        trials = [Trial(name, "m", "base", {}, "d", 0) for name in one.scores]
        ranked = rank(
            [
                TrialResult(t, "succeeded", metrics={METRIC: estimate(scores, one.groups)})
                for t, scores in zip(trials, one.scores.values(), strict=True)
            ],
            {t.key: scores for t, scores in zip(trials, one.scores.values(), strict=True)},
            rule,
            groups=one.groups,
        )
        promoted.append([row.promising for row in ranked.rows if row.rank])
    return float(np.mean(promoted)), float(np.any(promoted, axis=1).mean())


def figures(boards: int, seed: int = 0) -> dict[str, float]:
    """All figures by name."""
    single, clustered = Design(), Design(largest=7)
    found: dict[str, float] = {}
    designs = {
        "proportion": single,
        "clustered": clustered,
        "graded": Design(graded=True, records=150),
        "graded_clustered": Design(graded=True, records=150, largest=7),
    }
    for name, design in designs.items():
        many = boards // 2 if design.graded else boards  # resampling takes its time
        found[f"coverage_{name}"], found[f"coverage_{name}_pairs"] = coverage(design, many, seed)
    rates = {
        "": (single, False),
        "_clustered": (clustered, False),
        "_asked_again": (single, True),
        "_asked_again_clustered": (clustered, True),
    }
    for name, (design, again) in rates.items():
        one, any_of_four = false_promotions(design, boards, seed, asked_again=again)
        found[f"false_promotion_rate{name}"] = one
        found[f"false_promotion_boards_of_4{name}"] = any_of_four
    return {name: round(value, 4) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the boards, print the figures, write them down."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.statistics")
    parser.add_argument(
        "--boards", type=int, default=4_000, help="for each figure; half for graded scores"
    )
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    found = figures(options.boards)
    table = Table("figure", "share", title=f"{options.boards:,} boards each")
    for name, value in found.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table, f"{time.monotonic() - started:.0f} s")
    if not options.dry_run:
        results.write("statistics", {**found, "boards": options.boards})


def _boards(design: Design, boards: int, seed: int) -> Iterator[Board]:
    rng = np.random.default_rng(seed)
    return (board(design, rng) for _ in range(boards))


def _sizes(design: Design, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sizes of conversations, of about so many records in all."""
    many = round(2 * design.records / (1 + design.largest))
    return rng.integers(1, design.largest, size=many, endpoint=True)


if __name__ == "__main__":
    main()
