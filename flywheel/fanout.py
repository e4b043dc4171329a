"""Ray Tune maps trials over a cluster; what a trial does is `flywheel.trials`'s.

Trials journal their own results, so Tune's part is to place them, to bound how many run at once,
and to pass on how far they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ray import tune

from flywheel.cluster import Needs
from flywheel.errors import FlywheelError, boundary
from flywheel.trials import Desk, Progress, write_failure
from flywheel.types import Json, Trial

_REPORT_EVERY_S = 1.0


def map_over(
    step: Callable[[Trial, Progress], None],
    trials: Sequence[Trial],
    desk: Desk,
    needs: Needs,
    concurrent: int,
    progress: Progress,
) -> None:
    """Let Ray Tune run ``step`` for every trial.

    A trial that fails leaves ``failed.json`` and disturbs no other.

    Args:
        step: `train` or `answer` with everything but trial and progress bound; picklable.
        trials: What to run, in this order.
        desk: Where trials work.
        needs: What one trial holds meanwhile.
        concurrent: How many run at once at most.
        progress: Told the sum over trials, in steps or records.
    """
    if not trials:
        return
    # Results are journaled by the trials themselves; Tune's own files would only cost time.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C must reach the pipeline
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output ignores verbose=0
    for trial in trials:
        desk.folder(trial).remove("failed.json")
    resources = {"cpu": needs.cpus, **({"gpu": needs.gpus} if needs.gpus else {})}
    grid = {"trial": tune.grid_search([asdict(trial) for trial in trials])}
    with boundary(FlywheelError, "running trials on Ray Tune"):
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(_in_tune, step=step, desk=desk), resources),
            param_space=grid,
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",
                storage_path=desk.run.at("tune").url,
                verbose=0,
                callbacks=[_Tell(len(trials), progress)],
            ),
        ).fit()
    for trial, result in zip(trials, found, strict=True):
        if result.error is not None and not desk.folder(trial).exists("failed.json"):
            write_failure(desk.folder(trial), result.error)
    desk.run.remove("tune")  # snapshots, pickles among them, that nobody goes on from


class _Tell(tune.Callback):  # type: ignore[misc]
    """Sums up what trials report; those not heard of yet count like the others."""

    def __init__(self, trials: int, progress: Progress) -> None:
        self.trials, self.progress = trials, progress
        self.seen: dict[str, tuple[int, int]] = {}

    def __getstate__(self) -> Json:
        """Tune pickles callbacks with its snapshots; a terminal cannot be pickled."""
        return {}

    def on_trial_result(self, *_: Any, trial: Any, result: Json, **__: Any) -> None:
        """Pass on the sums."""
        self.seen[trial.trial_id] = (result["reached"], result["total"])
        done = sum(d for d, _ in self.seen.values())
        total = sum(t for _, t in self.seen.values())
        self.progress(done, round(total * self.trials / len(self.seen)))


def _in_tune(config: Json, step: Callable[[Trial, Progress], None], desk: Desk) -> None:
    """Body of a Tune trial: run the step; its failure is data."""
    trial = Trial(**config["trial"])
    folder = desk.folder(trial)
    folder.write_json("spec.json", {"key": trial.key, "label": trial.label, **asdict(trial)})
    try:
        step(trial, _reporter())
    except Exception as error:  # noqa: BLE001 -- whatever stops a trial must not stop the others
        write_failure(folder, error)


def _reporter() -> Progress:
    """Report to Tune at most once a second: its result loop is slow."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _REPORT_EVERY_S:
            last = time.monotonic()
            tune.report({"reached": done, "total": total})  # "done" would end the trial

    return report
