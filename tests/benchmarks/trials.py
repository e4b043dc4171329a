"""What trials cost that do nothing: time beyond the ideal, and the driver's memory.

    python -m tests.benchmarks.trials [--quick]

1,000 trials wait, four at a time, and do nothing else; each waits as a training does, in a task of
its own outside its Tune trial. Ideally they take their waiting divided by four. Memory is what the
driver's resident set grows by, after a first, smaller sweep has loaded what is loaded once.
A full run writes ``results/trials.json``, from which documents quote.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from flywheel import cluster, fanout, folders
from flywheel.budget import Budget
from flywheel.cluster import Needs
from flywheel.config import BudgetConfig
from flywheel.folders import Desk
from flywheel.storage import Storage
from flywheel.sweep import Listed
from flywheel.trials import Progress
from flywheel.types import Trial

from . import results

TRIALS, WARM, QUICK = 1_000, 50, 100
WAIT_S = 1.5
TOGETHER = 4

console = Console(width=110, highlight=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one sweep took."""

    trials: int
    seconds: float
    grown_bytes: int

    @property
    def overhead(self) -> float:
        """Time taken, as a multiple of the ideal."""
        return self.seconds / (self.trials * WAIT_S / TOGETHER)

    @property
    def kb_per_trial(self) -> float:
        """The driver's growth."""
        return self.grown_bytes / self.trials / 1_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results of a full run."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.trials")
    parser.add_argument("--quick", action="store_true", help="100 trials; writes no results")
    quick = parser.parse_args(arguments).quick
    with tempfile.TemporaryDirectory() as folder, cluster.connect():
        sweep(Path(folder) / "warm", WARM)
        figures = sweep(Path(folder) / "measured", QUICK if quick else TRIALS)
    table = Table("figure", "value", title=f"{figures.trials} trials that do nothing")
    table.add_row("seconds", f"{figures.seconds:.1f}")
    table.add_row("ideal seconds", f"{figures.trials * WAIT_S / TOGETHER:.1f}")
    table.add_row("times the ideal", f"{figures.overhead:.3f}")
    table.add_row("driver's memory per trial, kB", f"{figures.kb_per_trial:.1f}")
    console.print(table)
    if not quick:
        results.write(
            "trials",
            {
                "overhead_1000_trials": round(figures.overhead, 3),
                "driver_kb_per_trial": round(figures.kb_per_trial, 1),
                "trials": {"count": TRIALS, "wait_s": WAIT_S, "together": TOGETHER},
            },
        )


def sweep(folder: Path, count: int) -> Figures:
    """Run so many trials, and see that each was done."""
    desk = Desk(Storage(str(folder)), "bench")
    planned = [Trial("c", "m", "lora", {"n": n}, "f", 0) for n in range(count)]
    feed = Listed(planned, desk, Budget(BudgetConfig()), lambda trial: None)
    step = partial(wait, desk=desk)
    before, began = _resident(), time.perf_counter()
    fanout.map_over(step, feed, desk, TOGETHER, lambda done, total: None, Needs(0.01, 0))
    seconds = time.perf_counter() - began
    grown = _resident() - before
    missing = [t for t in planned if not desk.folder(t).exists("training.json")]
    failed = {folders.failure(desk.folder(t)) for t in missing}
    assert not missing, f"{len(missing)} of {count} trials did not end: {failed}"
    return Figures(count, seconds, grown)


def wait(trial: Trial, progress: Progress, desk: Desk) -> None:
    """What a trial does that does nothing."""
    time.sleep(WAIT_S)
    progress(1, 1, None)
    desk.folder(trial).write_json("training.json", {})


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
