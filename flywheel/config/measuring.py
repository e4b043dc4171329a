"""What is measured apart from quality: latency under load, and cascades onto production."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flywheel.config.section import Section

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class SloConfig(Section):
    """What a caller is promised; what is left out is not limited."""

    first_token_s: Positive | None = None
    """Seconds from sending a request to the first token of its answer."""
    per_output_token_s: Positive | None = None
    """Seconds between the tokens of an answer, on its average."""
    total_s: Positive | None = None
    """Seconds from sending a request to the end of its answer; default: ``ranking.max_p95_s``."""
    share: Share = 0.95
    """A load is borne when this share of its requests keeps within all limits."""


class LatencyConfig(Section):
    """A load test of every trial, after its answers: streaming, and nothing from any cache."""

    requests: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Eval records sent at each load; several times the highest concurrency says most."""
    warmup: Annotated[int, Field(ge=0, le=1000)] = 8
    """Other records sent before each load and not counted."""
    concurrency: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 8, 32)
    """Loads with so many requests in flight."""
    replay: tuple[Positive, ...] = ()
    """Loads with the arrival times of the log, in its busiest stretch: 1 at the log's own pace,
    2 twice as fast. Arrivals later than ten minutes are left out."""
    slo: SloConfig = SloConfig()

    @model_validator(mode="after")
    def _some_load(self) -> LatencyConfig:
        if not self.concurrency and not self.replay:
            raise ValueError("concurrency and replay are both empty; name a load, or no latency")
        most = max(self.concurrency, default=0)
        if self.requests < most:
            raise ValueError(f"requests {self.requests} never reach a concurrency of {most}")
        return self


class CascadeConfig(Section):
    """Cascades: a trial's model answers, and hands over to production where that looks wrong.

    Each trial makes one, worked out from answers that exist: those to validation records choose the
    threshold, those to eval records are what is ranked.
    """

    val_records: Annotated[int, Field(ge=1)] = 200
    """Validation records that every trial is asked for, at most."""
    logprobs: bool = True
    """Ask for log-probabilities, so that an unsure answer can be handed over. Off for servers that
    refuse them: then only calls that cannot be parsed or contradict their schema are."""
