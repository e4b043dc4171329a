"""The first stage: every trial that learns is trained, before any engine starts.

A small cluster holds a trainer or an engine, not both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from flywheel import curation, fanout, folders, forecast, models, planning, steps, sweep
from flywheel.config import LEARNING
from flywheel.reuse import Earlier
from flywheel.stages.metering import Meter
from flywheel.stages.session import Session
from flywheel.storage import Storage
from flywheel.types import Trial


def train(
    session: Session, meter: Meter, planned: Sequence[Trial], samples: int, earlier: Earlier
) -> list[Trial]:
    """Train what is planned, or what a search suggests.

    Args:
        session: What it works with.
        meter: Told what each training took.
        planned: All trials known beforehand.
        samples: How many a search may suggest.
        earlier: Looked into for each suggestion.

    Returns:
        The trials that were not planned but suggested on the way.
    """
    suggested: list[Trial] = []
    for method in LEARNING:
        if method == "lora" and planning.guided(session.experiment):
            guided = sweep.Guided(
                session.experiment,
                earlier.fingerprint,
                session.desk,
                session.budget,
                meter.trained,
                earlier.adopt,
                samples,
            )
            _train_all(session, method, guided)
            suggested += guided.trials.values()
        else:
            waiting = _untrained(session, method, planned, earlier.fingerprint)
            listed = sweep.Listed(waiting, session.desk, session.budget, meter.trained)
            _train_all(session, method, listed)
    return suggested


def _untrained(
    session: Session, method: str, planned: Sequence[Trial], fingerprint: str
) -> list[Trial]:
    """What is still to be trained, in its order."""
    mine = [trial for trial in planned if trial.method == method]
    waiting = [trial for trial in mine if not _over(session.desk.folder(trial))]
    if session.budget.bounds_work:  # what is cheap should not be left out
        return waiting
    records = curation.load_manifest(session.desk.storage, fingerprint).splits["train"]
    weight = partial(models.weight, beside=session.experiment.local_models)
    return forecast.longest_first(waiting, records, weight)


def _over(folder: Storage) -> bool:
    return folder.exists("training.json") or folders.stopped(folder) is not None


def _train_all(session: Session, method: str, feed: sweep.Feed) -> None:
    if not feed.expected:
        return
    search = session.experiment.search
    needs = session.cluster.trainer_needs(getattr(session.experiment.methods, method))
    step = partial(steps.train, desk=session.desk, threads=math.ceil(needs.cpus))
    what = "adapters" if method == "lora" else "models"
    show = partial(session.show, f"training {feed.expected} {what}")
    show(0, 0)
    together = search.max_concurrent or min(session.cluster.room(needs), feed.expected)
    feed = session.monitor.watch(feed, "training")
    fanout.map_over(step, feed, session.desk, together, show, needs, search.scheduler)
