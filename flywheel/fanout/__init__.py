"""Ray Tune maps trials over a cluster; what a trial does is `flywheel.trials`'s.

`feeding`, in the driver: Tune asks our feed for the next trial, bounds how many run at once, stops
early what its scheduler gives up, and passes on how far all are. `working`, on the nodes: a Tune
trial itself holds a sliver of a CPU; training runs in a task of its own, outside the trial's
placement group, with the CPUs and GPUs it needs. Trials journal their own results; Tune's snapshots
and logs, which lag and grow, never reach the storage.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune

from flywheel import versions
from flywheel.cluster import Needs
from flywheel.config import SchedulerConfig
from flywheel.errors import FlywheelError, boundary
from flywheel.fanout.feeding import Source, Tell, scheduler_of
from flywheel.fanout.working import RESTARTS, SLIVER, Step, fitting, in_tune
from flywheel.folders import Desk
from flywheel.sweep import Feed

__all__ = ["map_over"]

_SLACK = 0.05
"""Ray CPUs that a task asks for less than it holds: slivers need them."""
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
        slack = max(_SLACK, 2 * SLIVER * concurrent)
        needs = replace(needs, cpus=round(max(0.0, needs.cpus - slack), 3))
    os.environ.update(_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(concurrent))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of snapshots that nobody needs
    source = Source(feed, desk, concurrent, scheduler.kind)
    step = partial(fitting, step=step, driver=versions.installed())
    with boundary(FlywheelError, "running trials on Ray Tune"), source.faithful():
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(in_tune, step=step, desk=desk, needs=needs), {"cpu": SLIVER}
            ),
            tune_config=tune.TuneConfig(
                metric="val_loss",
                mode="min",
                search_alg=source,
                scheduler=scheduler_of(scheduler),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.time_ns()}",
                storage_path="/tune",
                storage_filesystem=_forgotten(),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                verbose=0,
                callbacks=[Tell(feed, progress)],
            ),
        ).fit()


def _forgotten() -> PyFileSystem:
    """A file system in memory, for Tune's snapshots: nobody goes on from them.

    In the run's storage they would be pickles, and Tune would stumble where it takes nothing.
    """
    memory = MemoryFileSystem(skip_instance_cache=True)
    memory.store, memory.pseudo_dirs = {}, [""]  # else all of this process's are one
    return PyFileSystem(FSSpecHandler(memory))


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)
