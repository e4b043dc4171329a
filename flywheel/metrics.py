"""What Ray's own metrics show of a run: every name, and how they are told.

Ray's agent on each node exports them, with the prefix ``ray_``, where Prometheus finds Ray's own.
Outside Ray (a test, a script) telling is a no-op: nothing here starts or imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

PREFIX = "ray_"
"""What Ray puts before a name."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it counts, and what its tags tell apart."""

    name: str
    kind: Literal["Counter", "Gauge", "Histogram"]
    says: str
    tags: tuple[str, ...]
    boundaries: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets, in seconds."""

    @property
    def exported(self) -> str:
        """The name Prometheus sees; of a histogram, that of its buckets."""
        ending = {"Counter": "_total", "Histogram": "_bucket"}.get(self.kind, "")
        return PREFIX + self.name.removesuffix(ending) + ending

    def tell(self, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge, or enter a value into a histogram."""
        ray = sys.modules.get("ray")
        nothing = self.kind == "Counter" and not value  # which Ray refuses
        if nothing or ray is None or not ray.is_initialized():
            return
        metric = _of_ray(self)
        do = {"Counter": "inc", "Gauge": "set", "Histogram": "observe"}[self.kind]
        getattr(metric, do)(value, tags=tags)


@cache
def _of_ray(metric: Metric) -> Any:
    from ray.util import metrics

    more = {"boundaries": list(metric.boundaries)} if metric.boundaries else {}
    make = getattr(metrics, metric.kind)
    return make(metric.name, description=metric.says, tag_keys=metric.tags, **more)


TRIALS = Metric("flywheel_trials", "Gauge", "Trials of a run, by state.", ("run", "state"))
GPU_SECONDS = Metric(
    "flywheel_gpu_seconds", "Gauge", "GPU seconds that a run's ended trials took.", ("run",)
)
DOLLARS = Metric("flywheel_dollars", "Gauge", "Dollars that a run's ended trials took.", ("run",))
COMPLETIONS = Metric(
    "flywheel_completions_total",
    "Counter",
    "Requests that came to an end, the judge's too: answered, kept from before, or failed.",
    ("model", "outcome"),
)
JUDGE_ERRORS = Metric(
    "flywheel_judge_errors_total", "Counter", "Answers that the judge left unscored.", ("judge",)
)
ENGINE_STARTS = Metric(
    "flywheel_engine_starts_total", "Counter", "Engines that were started.", ("model",)
)
QUEUE_SECONDS = Metric(
    "flywheel_queue_seconds",
    "Histogram",
    "Seconds until a request, a trainer or an engine got its place; an engine's start is in it.",
    ("what",),
    (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0),
)
ALL = (TRIALS, GPU_SECONDS, DOLLARS, COMPLETIONS, JUDGE_ERRORS, ENGINE_STARTS, QUEUE_SECONDS)


def trials(run: str, states: Mapping[str, int]) -> None:
    """Set how many trials are in each state; name those that are empty, too."""
    for state, count in states.items():
        TRIALS.tell(count, run=run, state=state)
