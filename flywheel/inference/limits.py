"""How many requests go out, and when: what one endpoint bears, learned from what it refuses.

`Pace` and `Breaker` are rules without a clock of their own; `Gate` makes requests wait for them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from math import inf

from flywheel.errors import EngineError
from flywheel.inference.replies import Failure

TRIP = 4
"""Failures in a row, with no answer in between, from which an endpoint counts as down."""
_LEAST_STEPS = 8


class Pace:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989) of slots and rate.

    A refusal halves both, once for all requests that were under way; a whole round of answers
    gives one slot back. Neither ever exceeds what the configuration allows.
    """

    def __init__(self, ceiling: int, per_minute: float | None) -> None:
        """Start at the ceiling of requests in flight, and of requests a minute."""
        self._ceiling = ceiling
        self._every = 60 / per_minute if per_minute else 0.0
        self._steps = max(ceiling, _LEAST_STEPS)
        self._share = 1.0
        self._cut_at = self._turn = self._closed_until = -inf

    @property
    def slots(self) -> int:
        """How many requests may be in flight."""
        return max(1, int(self._ceiling * self._share + 1e-9))

    @property
    def opens_at(self) -> float:
        """When the next request may start."""
        return max(self._turn, self._closed_until)

    def started(self, now: float) -> None:
        """A request went out; one that came a little late does not slow those after it."""
        every = self._every / self._share
        self._turn = every + (now if self._turn == -inf else max(self._turn, now - every))

    def answered(self) -> None:
        """The endpoint bore it."""
        self._share = min(1.0, self._share + 1 / (self._steps * self.slots))

    def refused(self, now: float, sent_at: float, retry_after_s: float) -> None:
        """The endpoint answered 429 to a request sent at ``sent_at``."""
        self._closed_until = max(self._closed_until, now + retry_after_s)
        if sent_at > self._cut_at:
            self._share = max(1 / self._steps, self._share / 2)
            self._cut_at = now


class Breaker:
    """Stops asking an endpoint that is down, looks at it from time to time, and gives up at last.

    Only an answer closes it again. An endpoint that never answered anything gets a quarter of the
    patience: trial after trial would wait for it.
    """

    def __init__(self, outage_s: float) -> None:
        """Take the seconds an endpoint may be down."""
        self._outage_s = outage_s
        self._alive = False
        self.answered()

    def answered(self) -> None:
        """The endpoint sent a proper response."""
        self._failures, self._since = 0, inf
        self._pause_s = min(1.0, self._outage_s / 16)
        self.opens_at = -inf
        """When the next look is due."""

    @property
    def open(self) -> bool:
        """Whether one request at a time is enough, to look whether the endpoint is back."""
        return self._failures >= TRIP

    def failed(self, now: float, sent_at: float, *, responded: bool) -> None:
        """A request came to nothing; ``responded``: the endpoint said so itself."""
        self._alive = self._alive or responded
        self._failures += 1
        self._since = min(self._since, sent_at)
        if self.open and sent_at >= self.opens_at:  # others were under way when it opened
            self.opens_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, 30.0, self._outage_s / 4)

    def down_for(self, now: float) -> float:
        """Seconds the endpoint has been down, from when that is longer than patience; else 0."""
        patience = self._outage_s if self._alive else self._outage_s / 4
        return now - self._since if self.open and now - self._since >= patience else 0.0


class Gate:
    """What every request to one endpoint passes: first come, first served."""

    def __init__(self, url: str, pace: Pace, breaker: Breaker, outage_s: float) -> None:
        """Take the rules, and what to call the endpoint in an error."""
        self._url, self._pace, self._breaker, self._outage_s = url, pace, breaker, outage_s
        self._busy = 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    async def enter(self) -> float:
        """Wait until a request may go out, and say when it did (monotonic seconds)."""
        async with self._turn:
            while True:
                slots = 1 if self._breaker.open else self._pace.slots
                wait = max(self._pace.opens_at, self._breaker.opens_at) - time.monotonic()
                if self._busy < slots and wait <= 0:
                    break
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait if self._busy < slots else None):
                        await self._freed.wait()
            now = time.monotonic()
            self._pace.started(now)
            self._busy += 1
            return now

    def leave(self) -> None:
        """The request is over, whatever became of it."""
        self._busy -= 1
        self._freed.set()

    def answered(self) -> None:
        """It was answered."""
        self._pace.answered()
        self._breaker.answered()

    def failed(self, failure: Failure, sent_at: float) -> None:
        """It was not.

        Raises:
            EngineError: The endpoint is given up.
        """
        now = time.monotonic()
        if failure.final:  # the request is at fault, not the endpoint
            self._breaker.answered()
            return
        after = failure.retry_after_s
        if failure.refused:
            self._pace.refused(now, sent_at, after)
        self._breaker.failed(now, sent_at, responded=failure.status > 0)
        if after > self._outage_s:
            raise EngineError(f"{self._url} wants {after:.0f} s of rest ({failure}); {_RESUME}")
        if seconds := self._breaker.down_for(now):
            raise EngineError(
                f"{self._url} has not answered for {seconds:.0f} s (the last: {failure}); {_RESUME}"
            )


_RESUME = "answers so far are kept, run it again later"
