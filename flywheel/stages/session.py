"""What all stages work with. A session is one process at work on a run; a resumed run has more."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.budget import Budget
from flywheel.cluster import Cluster
from flywheel.config import Experiment
from flywheel.folders import Desk
from flywheel.monitor import Monitor
from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Session:
    """One process at work on a run."""

    experiment: Experiment
    desk: Desk
    cluster: Cluster
    budget: Budget
    monitor: Monitor
    provenance: Json
    """Where its figures come from, see `flywheel.provenance`."""

    def show(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is; ``total`` is 0 while unknown."""
        self.monitor.update(stage, done, total)
