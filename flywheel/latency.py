"""What a load test comes to: when its requests go out, and what their times say of a load.

The sending is `flywheel.inference.load`'s, the order of things `flywheel.loadtest`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.config import LatencyConfig, SloConfig
from flywheel.statistics import percentile
from flywheel.types import Completion, Json, LoadLevel, LoadTest, Percentiles

LONGEST_S = 600.0
"""Of one replay: what would be due later is not sent."""


@dataclass(frozen=True, slots=True)
class Load:
    """How requests go out: so many in flight, or each when it is due."""

    name: str
    concurrency: int | None = None
    pace: float | None = None
    """Of a replay, in multiples of the log's own."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one request of a load test took; a line of ``latency/<load>.jsonl``."""

    record_id: str
    sent_s: float
    """When it went out, or was due; seconds from the beginning of the load."""
    total_s: float
    first_token_s: float | None = None
    """Of an answer that came in one piece, when that came; ``None`` where the request failed."""
    gaps_s: Sequence[float] = ()
    """Between the pieces of the answer as they came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""

    @property
    def per_output_token_s(self) -> float | None:
        """Seconds per token after the first; ``None`` where the answer came in one piece."""
        further = max(self.completion_tokens - 1, len(self.gaps_s))
        return sum(self.gaps_s) / further if self.gaps_s else None

    @property
    def completion(self) -> Completion:
        """What it was billed for, without the answer."""
        return Completion(
            self.record_id,
            None if self.error else {},
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            latency_s=self.total_s,
            error=self.error,
            cached_tokens=self.cached_tokens,
        )


def loads(config: LatencyConfig) -> list[Load]:
    """The loads of an experiment, in its order."""
    return [
        *(Load(f"concurrency-{n}", concurrency=n) for n in dict.fromkeys(config.concurrency)),
        *(Load(f"replay-{pace:g}", pace=pace) for pace in dict.fromkeys(config.replay)),
    ]


def arrivals(timestamps: Sequence[float], requests: int, pace: float) -> list[float]:
    """When requests are due, in seconds from the first: the busiest stretch of the log.

    Args:
        timestamps: Of the log's calls, in seconds; at least one.
        requests: How many of them in a row to take; fewer where there are no more, or the last
            would be due after `LONGEST_S`.
        pace: How much faster than the log.
    """
    times = np.sort(np.asarray(timestamps, np.float64))
    count = min(requests, len(times))
    spans = times[count - 1 :] - times[: len(times) - count + 1]
    begin = int(np.argmin(spans))
    due = (times[begin : begin + count] - times[begin]) / pace
    return [float(at) for at in due if at <= LONGEST_S]


def level(load: str, timings: Sequence[Timing], slo: SloConfig) -> LoadLevel:
    """What the timings of one load say. Percentiles are interpolated linearly."""
    answered = [t for t in timings if not t.error]
    ends = [t.sent_s + t.total_s for t in timings]
    seconds = max(ends) - min(t.sent_s for t in timings)
    gaps = [gap for t in answered for gap in t.gaps_s]
    firsts = [t.first_token_s for t in answered if t.first_token_s is not None]
    per_token = [t.per_output_token_s for t in answered if t.per_output_token_s is not None]
    return LoadLevel(
        load=load,
        requests=len(timings),
        failed=len(timings) - len(answered),
        seconds=seconds,
        requests_per_second=len(answered) / seconds if seconds else 0.0,
        output_tokens_per_second=(
            sum(t.completion_tokens for t in answered) / seconds if seconds else 0.0
        ),
        within_slo=sum(within(t, slo) for t in timings) / len(timings),
        first_token_s=_percentiles(firsts),
        inter_token_s=_percentiles(gaps),
        per_output_token_s=_percentiles(per_token),
        total_s=_percentiles([t.total_s for t in answered]),
    )


def within(timing: Timing, slo: SloConfig) -> bool:
    """Whether a request was answered within every limit; goodput counts these."""
    if timing.error:
        return False
    limits = [
        (timing.first_token_s, slo.first_token_s),
        (timing.per_output_token_s, slo.per_output_token_s),
        (timing.total_s, slo.total_s),
    ]
    return all(limit is None or took is None or took <= limit for took, limit in limits)


def load_test(levels: Sequence[LoadLevel], slo: SloConfig) -> LoadTest:
    """Which of the levels the SLO bears at the highest throughput.

    That is the goodput of DistServe (Zhong et al., 2024, arXiv:2401.09670) over the loads tried.
    """
    borne = [one for one in levels if one.within_slo >= slo.share and one.requests_per_second]
    best = max(borne, key=lambda one: one.requests_per_second, default=None)
    told: Json = slo.model_dump()
    return LoadTest(told, list(levels), best.load if best else None)


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    return Percentiles(*(percentile(values, q) for q in (50, 95, 99))) if values else None
