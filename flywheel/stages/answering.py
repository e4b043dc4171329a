"""The second stage: whatever is asked of a trial while its engine or endpoint is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from flywheel import fanout, folders, loadtest, steps, trials
from flywheel.asking import Asked
from flywheel.config import LEARNING
from flywheel.folders import Desk
from flywheel.serving import Endpoint
from flywheel.stages.hosting import Engines
from flywheel.stages.metering import Meter
from flywheel.stages.session import Session
from flywheel.types import Trial


def answer(session: Session, meter: Meter, engines: Engines, planned: Sequence[Trial]) -> None:
    """Ask what is trained: as many trials at once as have an engine's replica to themselves."""
    desk = session.desk
    asking_steps = list(askings(session, meter))
    due = {
        trial.key: [asking for asking in asking_steps if asking.due(desk.folder(trial))]
        for trial in planned
        if not _failed(desk, trial)
    }
    waiting = [trial for trial in planned if due.get(trial.key)]
    if not waiting:
        return
    endpoints: dict[str, Endpoint] = {}
    queues = engines.queues(waiting, endpoints)
    asks = [(asking.marker, asking.ask) for asking in asking_steps]
    step = partial(steps.ask, asks=asks, desk=desk, endpoints=endpoints)
    titles = list(dict.fromkeys(trial.candidate for trial in waiting))
    whom = titles[0] if len(titles) == 1 else f"{len(titles)} candidates"

    def spent(trial: Trial) -> None:
        for asking in due[trial.key]:
            asking.ended(trial)

    with Asked(queues, desk, session.budget, spent) as feed:
        show = partial(session.show, f"answering with {whom}")
        show(0, 0)
        watched = session.monitor.watch(feed, "answering")
        fanout.map_over(step, watched, desk, feed.places, show)


def askings(session: Session, meter: Meter) -> Iterator[steps.Asking]:
    """What is done while a trial's engine is held, in this order."""
    latency, cascades = session.experiment.latency, session.experiment.cascades
    yield steps.Asking(steps.ANSWERS, trials.answer, meter.answered)
    if cascades:
        ask = partial(steps.ask_val, most=cascades.val_records)
        yield steps.Asking("val.json", ask, meter.answered_val)
    if latency:
        ask = partial(steps.ask_under_load, config=latency)
        yield steps.Asking(loadtest.MARKER, ask, meter.load_tested)


def _failed(desk: Desk, trial: Trial) -> bool:
    """A trial without the weights it was to learn has failed, or was stopped, in training."""
    folder = desk.folder(trial)
    learned = folder.exists("training.json") and folders.stopped(folder) is None
    return trial.method in LEARNING and not learned
