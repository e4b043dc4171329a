"""What a run has taken of what it may take. Reached means: start nothing more, finish what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flywheel.config import LEARNING, BudgetConfig
from flywheel.types import Trial


class Budget:
    """Adds up what trials took."""

    def __init__(self, limits: BudgetConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.clock, self.began = limits, clock, clock()
        self.gpu_hours = self.dollars = 0.0
        self.refused: dict[str, int] = {}
        """How many trials were not started, by the limit that was reached."""

    @property
    def bounds_work(self) -> bool:
        """Whether there is a limit on what trials take, not only on how many there are."""
        limits = (self.limits.gpu_hours, self.limits.dollars, self.limits.hours)
        return any(limit is not None for limit in limits)

    def spend(self, gpu_hours: float, dollars: float) -> None:
        """Add what a training or an answering took."""
        self.gpu_hours += gpu_hours
        self.dollars += dollars

    def reached(self) -> str:
        """The limit that is reached, as ``gpu_hours (2.1 of 2)``, or the empty string."""
        taken = {
            "gpu_hours": self.gpu_hours,
            "dollars": self.dollars,
            "hours": (self.clock() - self.began) / 3600,
        }
        for name, amount in taken.items():
            limit = getattr(self.limits, name)
            if limit is not None and amount >= limit:
                return f"{name} ({amount:.3g} of {limit:g})"
        return ""

    def refuse(self, why: str, trials: int) -> None:
        """Count trials that are not started."""
        if trials:
            self.refused[why] = self.refused.get(why, 0) + trials

    def within(self, planned: Sequence[Trial], to_come: int) -> tuple[list[Trial], int]:
        """What of a plan the number of trials allows, and how many may still be suggested.

        What nothing is trained for comes first: a sweep without its baselines shows nothing.

        Args:
            planned: Trials known by now; those kept stay in their order.
            to_come: Trials that a search would suggest.
        """
        most = self.limits.trials
        if most is None or len(planned) + to_come <= most:
            return list(planned), to_come
        self.refuse(f"trials ({most})", len(planned) + to_come - most)
        first = sorted(planned, key=lambda trial: trial.method in LEARNING)[:most]
        kept = {trial.key for trial in first}
        return [t for t in planned if t.key in kept], min(to_come, most - len(kept))

    def sentences(self) -> list[str]:
        """What was left out, for people."""
        return [
            f"budget reached: {why}; {count} trials were not started"
            for why, count in self.refused.items()
        ]
