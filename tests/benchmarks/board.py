"""How long a board of 50 candidates on 5,000 records takes: every mean, every pair, the order.

Timed from scores to `Leaderboard`, for 0/1 scores, graded ones, and graded ones that come in
conversations; a fiftieth of the scores is missing. Candidates lie from far apart to alike, so that
some pairs are plain and some take every resample. The figure is the slowest of the three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from flywheel.config import RankingConfig
from flywheel.leaderboard import Leaderboard, rank
from flywheel.statistics import Groups, estimate
from flywheel.types import Score, ScoreStatus, Trial, TrialResult
from tests.benchmarks import results

METRIC = "function_name_and_args_accuracy"
KINDS = ("binary", "graded", "graded, in conversations")
Scores = dict[str, list[Score]]


def scores(kind: str, candidates: int, records: int) -> tuple[Scores, Groups | None]:
    """Made-up scores of each candidate, and the records' groups."""
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(size=records)
    found = {}
    for k in range(candidates):
        noisy = np.clip(1.2 - k / candidates - 0.6 * difficulty * rng.uniform(size=records), 0, 1)
        values = noisy if kind != "binary" else rng.uniform(size=records) < noisy
        lost = rng.uniform(size=records) < 0.02
        found[f"c{k}"] = [
            _score(i, float(v), missing=bool(m))
            for i, (v, m) in enumerate(zip(values, lost, strict=True))
        ]
    groups = {f"r{i}": i // 4 for i in range(records)} if "conversations" in kind else None
    return found, groups


def board(found: Scores, groups: Groups | None) -> Leaderboard:
    """What is timed."""
    trials = [
        TrialResult(
            Trial(name, "m", "base", {}, "d", 0),
            "succeeded",
            metrics={METRIC: estimate(its, groups)},
        )
        for name, its in found.items()
    ]
    by_key = {trial.key: found[trial.trial.candidate] for trial in trials}
    return rank(trials, by_key, RankingConfig(metric=METRIC), groups=groups)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the boards, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.board")
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--records", type=int, default=5_000)
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    options = parser.parse_args(arguments)
    table = Table("scores", "pairs", "seconds", title="Boards")
    seconds = []
    for kind in KINDS:
        found, groups = scores(kind, options.candidates, options.records)
        started = time.perf_counter()
        made = board(found, groups)
        seconds.append(time.perf_counter() - started)
        table.add_row(kind, f"{len(made.pairs):,}", f"{seconds[-1]:.1f}")
    Console().print(table)
    if not options.dry_run:
        name = f"seconds_board_{options.candidates}x{options.records}"
        results.write("scoring", {name: round(max(seconds), 1)})


def _score(i: int, value: float, *, missing: bool) -> Score:
    if missing:
        return Score(f"r{i}", METRIC, None, ScoreStatus.FAILED, "timeout")
    return Score(f"r{i}", METRIC, value)


if __name__ == "__main__":
    main()
