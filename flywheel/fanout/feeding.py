"""Between our feed and Ray Tune: which trial is next, which are stopped, how far all are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from flywheel.config import SchedulerConfig
from flywheel.errors import FlywheelError
from flywheel.fanout.working import BREAKS, PERCENT
from flywheel.folders import Desk, failure, write_failure, write_spec, write_stop
from flywheel.sweep import Feed
from flywheel.types import Json, Trial


class Source(Searcher):  # type: ignore[misc]
    """Hands our feed's trials to Tune, and tells the feed how they ended.

    It bounds how many run at once itself, and gives out the next trial when one has ended: Tune
    then keeps the ended one's process for it. Asked for more than that, Tune would start a process
    for each trial that waits and throw it away unused.
    """

    def __init__(self, feed: Feed, desk: Desk, concurrent: int, scheduler: str) -> None:
        super().__init__(metric="val_loss", mode="min")
        self.feed, self.desk = feed, desk
        self.concurrent, self.scheduler = concurrent, scheduler
        self.running: dict[str, Trial] = {}
        self.broken: FlywheelError | None = None
        """Why no trial is given out any more."""

    def __getstate__(self) -> Json:
        """Tune pickles it with its snapshots; a study cannot be pickled."""
        return {}

    def suggest(self, trial_id: str) -> Json | str | None:
        """The next trial's key, its spec being in its folder; none while no place is free."""
        if len(self.running) >= self.concurrent or not self.feed.ready:
            return None
        trial = None if self.broken else self.feed.next()
        if trial is None:
            return str(self.FINISHED)
        folder = self.desk.folder(trial)
        for name in ("failed.json", "stopped.json"):
            folder.remove(name)
        write_spec(folder, trial)
        self.running[trial_id] = trial
        return {"key": trial.key}

    def on_trial_complete(
        self, trial_id: str, result: Json | None = None, error: bool = False
    ) -> None:
        """Let the feed know; Tune would swallow what goes wrong here and call again."""
        try:
            self._ended(self.running.pop(trial_id), result or {}, error=error)
        except BREAKS as trouble:
            self.broken = trouble

    def _ended(self, trial: Trial, result: Json, *, error: bool) -> None:
        """Leave word of what the trial could not: that its actor died, or that it was stopped."""
        folder = self.desk.folder(trial)
        if result.get("broken"):
            raise result["broken"]
        if error and not failure(folder):
            write_failure(folder, FlywheelError("the process that ran it ended"))
        elif result and not result.get("ended") and not folder.exists("training.json"):
            kept = ("val_loss", "reached", "total", "seconds")
            facts = {name: result[name] for name in kept}
            share = result["reached"] / result["total"]
            write_stop(folder, {"by": self.scheduler, "share": share, **facts})
        self.feed.ended(trial)

    @contextmanager
    def faithful(self) -> Iterator[None]:
        """Raise at the end what Tune was not told, as it came, whatever Tune made of it.

        Raises:
            FlywheelError: One of those that end a run.
        """
        try:
            yield
        finally:
            if self.broken is not None:
                raise self.broken

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: trials keep their own journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nobody goes on from Tune's snapshots."""


class Tell(tune.Callback):  # type: ignore[misc]
    """Sums up what trials report; those not heard of yet count like the others."""

    def __init__(self, feed: Feed, progress: Callable[[int, int], None]) -> None:
        self.feed, self.progress = feed, progress
        self.seen: dict[str, tuple[int, int]] = {}

    def __getstate__(self) -> Json:
        """Tune pickles callbacks with its snapshots; a terminal cannot be pickled."""
        return {}

    def on_trial_result(self, *_: Any, trial: Any, result: Json, **__: Any) -> None:
        """Pass on the sums."""
        self.seen[trial.trial_id] = (result["reached"], result["total"])
        done = sum(d for d, _ in self.seen.values())
        total = sum(t for _, t in self.seen.values())
        trials = max(self.feed.expected, len(self.seen))
        self.progress(done, round(total * trials / len(self.seen)))


def scheduler_of(config: SchedulerConfig) -> Any:
    """Tune's, going by percent: a rung is a share of a training, however long that is."""
    grace = config.grace * PERCENT
    if config.kind == "asha":
        return ASHAScheduler(
            time_attr="percent",
            grace_period=grace,
            max_t=PERCENT + 1,  # at its own maximum it would stop what is about to be saved
            reduction_factor=config.reduction,
        )
    if config.kind == "median":
        return MedianStoppingRule(
            time_attr="percent",
            grace_period=grace,
            min_time_slice=math.inf,  # never pause: a training cannot go on from a pause
        )
    return FIFOScheduler()
