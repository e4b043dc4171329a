"""What is done with one trial where it runs: it is trained, or asked step by step.

A run's stages bind these functions to it and let Ray Tune call them with a trial and a progress
(`flywheel.fanout`), so they are picklable and know nothing else of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel import folders, loadtest, trials
from flywheel.config import LatencyConfig
from flywheel.folders import Desk
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.trials import Progress
from flywheel.types import Trial

ANSWERS = "answers.json"
"""What marks the first step of asking; the others build on it."""
Ask = Callable[[Trial, Desk, Endpoint, Progress], None]


@dataclass(frozen=True, slots=True)
class Asking:
    """One of the steps that ask a trial's endpoint."""

    marker: str
    """What it writes last."""
    ask: Ask
    ended: Callable[[Trial], None]
    """Tells the budget what it took."""

    def due(self, folder: Storage) -> bool:
        """Whether it is still to be done, as far as is known before."""
        return _due(folder, self.marker)


def train(trial: Trial, progress: Progress, desk: Desk, threads: int) -> None:
    """See `flywheel.trials.train`."""
    trials.train(trial, desk, threads, progress)


def ask(
    trial: Trial,
    progress: Progress,
    asks: Sequence[tuple[str, Ask]],
    desk: Desk,
    endpoints: dict[str, Endpoint],
) -> None:
    """Do what is due of these steps, each given with its marker, in their order."""
    for marker, step in asks:
        if _due(desk.folder(trial), marker):
            step(trial, desk, endpoints[trial.key], progress)


def ask_val(trial: Trial, desk: Desk, endpoint: Endpoint, progress: Progress, most: int) -> None:
    """See `flywheel.trials.answer_val`."""
    trials.answer_val(trial, desk, endpoint, most, progress)


def ask_under_load(
    trial: Trial, desk: Desk, endpoint: Endpoint, progress: Progress, config: LatencyConfig
) -> None:
    """See `flywheel.loadtest.measure`."""
    loadtest.measure(trial, desk, endpoint, config, progress)


def _due(folder: Storage, marker: str) -> bool:
    """A trial that was stopped before it had all its answers waits for no further step."""
    if folder.exists(marker):
        return False
    return not (folder.exists(ANSWERS) and folders.read_stop(folder))
