"""Ray Tune maps trials over a cluster; what a trial does is `flywheel.trials`'s.

Tune asks our feed for the next trial, bounds how many run at once, stops early what its scheduler
gives up, and passes on how far all are. A Tune trial itself holds a sliver of a CPU: training runs
in a task of its own, outside the trial's placement group, with the CPUs and GPUs it needs. Trials
journal their own results; Tune's snapshots and logs, which lag and grow, never reach the storage.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import ray
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from flywheel import logs, metrics, nodes, versions
from flywheel.cluster import Needs
from flywheel.config import SchedulerConfig
from flywheel.errors import (
    ClusterError,
    FlywheelError,
    StorageError,
    TrialStoppedError,
    boundary,
)
from flywheel.folders import (
    Desk,
    failure,
    read_spec,
    stopped,
    write_failure,
    write_spec,
    write_stop,
)
from flywheel.storage import Storage
from flywheel.sweep import Feed
from flywheel.trials import Progress
from flywheel.types import Json, Trial

Step = Callable[[Trial, Progress], None]

_REPORT_EVERY_S = 1.0
_STORAGE_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before looking whether a storage is back that failed a step."""
_OUTAGES = 3
"""Of the storage, that one step is waited for."""
_SLIVER = 0.001
"""Ray CPUs of a Tune trial."""
_SLACK = 0.05
"""Ray CPUs that a task asks for less than it holds: slivers need them."""
_BREAKS = (StorageError, ClusterError)
"""What no trial can help: it ends the run, once those under way have ended."""
_RESTARTS = 1
"""Of a process that was killed: the machine may have been taken away; twice is no accident."""
_PERCENT = 100
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must reach the pipeline
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most reports bring no new validation loss
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # nobody goes on from Tune's snapshots
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def map_over(
    step: Step,
    feed: Feed,
    desk: Desk,
    concurrent: int,
    progress: Callable[[int, int], None],
    needs: Needs | None = None,
    scheduler: SchedulerConfig = SchedulerConfig(),  # noqa: B008 -- it is frozen
) -> None:
    """Let Ray Tune run ``step`` for every trial of a feed.

    A trial that fails leaves ``failed.json`` and disturbs no other.

    Args:
        step: `train` or `answer` with everything but trial and progress bound; picklable.
        feed: Gives the trials.
        desk: Where trials work.
        concurrent: How many run at once at most.
        progress: Told the sum over trials, in steps or records.
        needs: What a task of its own holds for each trial; none: the step runs in Tune's trial.
        scheduler: What stops trials early; it goes by the validation losses that steps report.

    Raises:
        StorageError: The storage takes no word of a trial.
        ClusterError: A node that joined late has other versions than this process. Trials under
            way on other nodes have come to their end.
    """
    if not feed.expected:
        return
    if needs is not None:  # what may fill a node must leave room for the slivers
        slack = max(_SLACK, 2 * _SLIVER * concurrent)
        needs = replace(needs, cpus=round(max(0.0, needs.cpus - slack), 3))
    os.environ.update(_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(concurrent))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of snapshots that nobody needs
    source = _Source(feed, desk, concurrent, scheduler.kind)
    step = partial(_fitting, step=step, driver=versions.installed())
    with boundary(FlywheelError, "running trials on Ray Tune"), source.faithful():
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_in_tune, step=step, desk=desk, needs=needs),
                {"cpu": _SLIVER},
            ),
            tune_config=tune.TuneConfig(
                metric="val_loss",
                mode="min",
                search_alg=source,
                scheduler=_scheduler(scheduler),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",
                storage_path="/tune",
                storage_filesystem=_forgotten(),
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                verbose=0,
                callbacks=[_Tell(feed, progress)],
            ),
        ).fit()


def _forgotten() -> PyFileSystem:
    """A file system in memory, for Tune's snapshots: nobody goes on from them.

    In the run's storage they would be pickles, and Tune would stumble where it takes nothing.
    """
    memory = MemoryFileSystem(skip_instance_cache=True)
    memory.store, memory.pseudo_dirs = {}, [""]  # else all of this process's are one
    return PyFileSystem(FSSpecHandler(memory))


class _Source(Searcher):  # type: ignore[misc]
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
        except _BREAKS as trouble:
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


def _scheduler(config: SchedulerConfig) -> Any:
    """Tune's, going by percent: a rung is a share of a training, however long that is."""
    grace = config.grace * _PERCENT
    if config.kind == "asha":
        return ASHAScheduler(
            time_attr="percent",
            grace_period=grace,
            max_t=_PERCENT + 1,  # at its own maximum it would stop what is about to be saved
            reduction_factor=config.reduction,
        )
    if config.kind == "median":
        return MedianStoppingRule(
            time_attr="percent",
            grace_period=grace,
            min_time_slice=math.inf,  # never pause: a training cannot go on from a pause
        )
    return FIFOScheduler()


class _Tell(tune.Callback):  # type: ignore[misc]
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


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _in_tune(config: Json, step: Step, desk: Desk, needs: Needs | None) -> None:
    """Body of a Tune trial: run the step here, or watch over the task that runs it."""
    key, report = config["key"], _Reporter()
    try:
        if needs is None:
            _run(key, step, desk, report)
        else:
            _watch(key, step, desk, needs, report)
    except _BREAKS as error:  # the storage took no word of a failure either
        report.end(error)
    else:
        report.end()


def _watch(key: str, step: Step, desk: Desk, needs: Needs, report: Progress) -> None:
    """Run the step in a task of its own; that its trainer was killed is data."""
    try:
        for done, total, val_loss in _task(key, step, desk, needs):
            report(done, total, val_loss)
    except Exception as error:  # noqa: BLE001 -- whatever stops a trial must not stop the others
        cause = getattr(error, "cause", error)
        if isinstance(cause, ClusterError):
            raise cause from None
        write_failure(desk.trials.at(key), cause)


def _run(key: str, step: Step, desk: Desk, report: Progress) -> None:
    """Run the step; its failure is data."""
    logs.adopt()
    folder = desk.trials.at(key)
    with logs.about(run=desk.run_id, trial=key):
        try:
            _patiently(lambda: step(read_spec(folder), report), folder)
        except TrialStoppedError:
            return
        except ClusterError:  # no failure of the trial's
            raise
        except Exception as error:  # noqa: BLE001 -- it must not stop the others
            kind = type(error).__name__
            logs.log.error(
                "trial failed", extra=logs.fields({"error": str(error)}, error_type=kind)
            )
            write_failure(folder, error)


def _fitting(trial: Trial, progress: Progress, *, step: Step, driver: Mapping[str, str]) -> None:
    """Run the step unless this node has other versions than the driver."""
    nodes.require_here(driver)
    step(trial, progress)


def _patiently(work: Callable[[], None], folder: Storage) -> None:
    """Begin again once the storage is back: a step finds what it had done, and goes on from there.

    Raises:
        StorageError: It stayed away.
    """
    for _ in range(_OUTAGES):
        try:
            work()
        except StorageError as error:
            _wait_for(folder, error)
        else:
            return
    work()


def _wait_for(folder: Storage, error: StorageError) -> None:
    """Wait until a trial's folder takes its own spec again: nothing is asked that would be lost."""
    for wait_s in _STORAGE_WAITS_S:
        logs.log.warning("storage away", extra=logs.fields(error=str(error), wait_s=wait_s))
        time.sleep(wait_s)
        try:
            folder.write_bytes("spec.json", folder.read_bytes("spec.json"))
        except StorageError:
            continue
        else:
            return
    raise error


def _task(
    key: str, step: Step, desk: Desk, needs: Needs
) -> Iterator[tuple[int, int, float | None]]:
    """Run the step in a Ray task of its own and give what it reports."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # Left to itself Ray would place the task into the trial's sliver, where it never fits.
    outside = PlacementGroupSchedulingStrategy(placement_group=None)
    kind = {"accelerator_type": needs.accelerator} if needs.accelerator else {}
    task = _remote_reports().options(
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        scheduling_strategy=outside,
        num_returns="streaming",
        max_retries=_RESTARTS,
        **kind,
    )
    for item in task.remote(key, step, desk, time.time()):
        yield ray.get(item)


@cache
def _remote_reports() -> Any:
    return ray.remote(_reports)


def _reports(
    key: str, step: Step, desk: Desk, sent_at: float
) -> Iterator[tuple[int, int, float | None]]:
    """Body of the task: the step runs beside, so that what it reports can leave as it comes."""
    metrics.QUEUE_SECONDS.tell(max(0.0, time.time() - sent_at), what="trainer")
    items: queue.SimpleQueue[tuple[int, int, float | None] | Exception | None]
    items = queue.SimpleQueue()
    folder, looked = desk.trials.at(key), time.monotonic()

    def report(done: int, total: int, val_loss: float | None = None) -> None:
        nonlocal looked
        items.put((done, total, val_loss))
        if time.monotonic() - looked >= _REPORT_EVERY_S:
            looked = time.monotonic()
            if stopped(folder) is not None:
                raise TrialStoppedError("others of this search do better")

    def run() -> None:
        try:
            _run(key, step, desk, report)
            items.put(None)
        except Exception as error:  # noqa: BLE001 -- raised where it is waited for
            items.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while (item := items.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


class _Reporter:
    """Reports to Tune at most once a second, and each new validation loss: its loop is slow."""

    def __init__(self) -> None:
        self.last: Json = {"reached": 0, "total": 1, "percent": 0.0, "seconds": 0.0}
        self.val_loss: float | None = None
        self.told = 0.0
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, val_loss: float | None = None, /) -> None:
        now = time.monotonic()
        self.first = self.first or (done, now)
        seconds = now - self.first[1]
        if done > self.first[0]:  # the first report came after the first step
            seconds *= done / (done - self.first[0])
        self.last = {"reached": done, "total": total, "seconds": seconds}
        self.last["percent"] = _PERCENT * done / max(total, 1)
        new = val_loss is not None and val_loss != self.val_loss
        self.val_loss = val_loss
        if new or done == total or now - self.told >= _REPORT_EVERY_S:
            self.told = now
            tune.report({**self.last, **({"val_loss": val_loss} if new else {})})

    def end(self, broken: FlywheelError | None = None) -> None:
        """Report that the step ended by itself, or what ends the run."""
        loss = math.inf if self.val_loss is None else self.val_loss
        last = {**self.last, "val_loss": loss, "broken": broken}
        tune.report({**last, "ended": True})  # "done" would end the trial
