"""A trial's step where it runs: in Tune's own trial, or in a Ray task that this trial watches over.

A step that fails leaves word in the trial's folder; what no trial can help ends the run.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import ray
from ray import tune

from flywheel import logs, metrics, nodes
from flywheel.cluster import Needs
from flywheel.errors import ClusterError, FlywheelError, StorageError, TrialStoppedError
from flywheel.fanout.patience import patiently
from flywheel.folders import Desk, read_spec, stopped, write_failure
from flywheel.trials import Progress
from flywheel.types import Json, Trial

Step = Callable[[Trial, Progress], None]

SLIVER = 0.001
"""Ray CPUs of a Tune trial."""
BREAKS = (StorageError, ClusterError)
"""What no trial can help: it ends the run, once those under way have ended."""
PERCENT = 100
_REPORT_EVERY_S = 1.0
RESTARTS = 1
"""Of a process that was killed: the machine may have been taken away; twice is no accident."""


def in_tune(config: Json, step: Step, desk: Desk, needs: Needs | None) -> None:
    """Body of a Tune trial: run the step here, or watch over the task that runs it."""
    key, report = config["key"], _Reporter()
    try:
        if needs is None:
            _run(key, step, desk, report)
        else:
            _watch(key, step, desk, needs, report)
    except BREAKS as error:  # the storage took no word of a failure either
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
            patiently(lambda: step(read_spec(folder), report), folder)
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


def fitting(trial: Trial, progress: Progress, *, step: Step, driver: Mapping[str, str]) -> None:
    """Run the step unless this node has other versions than the driver."""
    nodes.require_here(driver)
    step(trial, progress)


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
        max_retries=RESTARTS,
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
        self.last["percent"] = PERCENT * done / max(total, 1)
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
