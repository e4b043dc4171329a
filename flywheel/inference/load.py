"""One load of a load test: requests go out by its rule, and when each piece came is written down.

Nothing is retried and nothing cached: a request that fails is one that was not answered in time.
The endpoint's own limits (`limits.Gate`) hold here as elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from flywheel.inference import Ask
from flywheel.inference.limits import Breaker, Gate, Pace
from flywheel.inference.replies import Failure
from flywheel.latency import Timing
from flywheel.serving import Endpoint
from flywheel.types import Completion

if TYPE_CHECKING:
    from flywheel.inference.client import Client

T = TypeVar("T")
_SAYS = ("content", "tool_calls", "reasoning_content", "reasoning", "refusal")
"""What of a streamed piece is part of an answer; some servers send its role before they compute."""


def send(
    endpoint: Endpoint,
    asks: Sequence[Ask],
    timeout_s: float,
    *,
    concurrency: int,
    due_s: Sequence[float] | None = None,
    warmup: Sequence[Ask] = (),
) -> list[Timing]:
    """Send requests and time their answers.

    Args:
        endpoint: Where to; it is asked to stream.
        asks: What to send.
        timeout_s: Seconds one request may take.
        concurrency: Requests in flight (a closed loop).
        due_s: When each request goes out instead, in seconds from the first, however many are in
            flight (an open loop). Its times count from then, so that one that waits shows it.
        warmup: Sent before over the same connections, and not timed.

    Raises:
        EngineError: The endpoint is down.
    """
    return asyncio.run(_Sender(endpoint, timeout_s).run(asks, concurrency, due_s, warmup))


class _Sender:
    """Sends the requests of one load."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint, self._timeout_s = endpoint.streaming(timeout_s), timeout_s

    async def run(
        self,
        asks: Sequence[Ask],
        concurrency: int,
        due_s: Sequence[float] | None,
        warmup: Sequence[Ask],
    ) -> list[Timing]:
        """Warm up, then send by the rule."""
        from flywheel.inference.client import connected

        rules = self._endpoint.client
        most = concurrency if due_s is None else len(asks)
        pace, breaker = Pace(most, rules.requests_per_minute), Breaker(rules.outage_s)
        self._gate = Gate(self._endpoint.url, pace, breaker, rules.outage_s)
        async with connected(self._endpoint, self._timeout_s) as client:
            await self._closed(client, warmup, concurrency)
            if due_s is None:
                return await self._closed(client, asks, concurrency)
            return await self._open(client, asks, due_s)

    async def _closed(self, client: Client, asks: Sequence[Ask], concurrency: int) -> list[Timing]:
        """Workers take the next request when their last is answered."""
        queue, found, began = iter(asks), list[Timing](), time.monotonic()

        async def work() -> None:
            for ask in queue:
                found.append(await self._one(client, ask, began))

        await _together([work() for _ in range(min(concurrency, len(asks)))])
        return found

    async def _open(
        self, client: Client, asks: Sequence[Ask], due_s: Sequence[float]
    ) -> list[Timing]:
        """Each request has a task of its own, which sleeps until it is due."""
        began, pairs = time.monotonic(), zip(asks, due_s, strict=True)
        return await _together([self._one(client, ask, began, began + due) for ask, due in pairs])

    async def _one(
        self, client: Client, ask: Ask, began: float, due: float | None = None
    ) -> Timing:
        if due is not None:
            await asyncio.sleep(due - time.monotonic())
        sent = await self._gate.enter()
        start, heard, got = sent if due is None else due, Stopwatch(), Completion("")
        try:
            got = await client.ask(ask.body, heard)
            self._gate.answered()
        except Failure as failure:
            got = Completion("", error=str(failure))
            self._gate.failed(failure, sent)
        finally:
            self._gate.leave()
        ended = time.monotonic()
        return _timing(ask, got, heard.times, began, start, ended)


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it at once; where one fails, the others are stopped."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Stopwatch:
    """Notes when each piece of a streamed answer came, the answer coming in any parts."""

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self.times: list[float] = []
        """Monotonic seconds of each event that held a part of the answer."""
        self._rest = bytearray()

    def __call__(self, part: bytes) -> None:
        """Take the next part of the response's body."""
        now = time.monotonic()
        self._rest += part
        if b"\n" in part:
            *lines, self._rest = self._rest.split(b"\n")
            self.times += [now for line in lines if _says(line)]


def _says(line: bytes | bytearray) -> bool:
    """Whether a line of server-sent events holds a part of an answer."""
    if not line.startswith(b"data:"):
        return False
    try:
        delta = orjson.loads(line.removeprefix(b"data:"))["choices"][0]["delta"]
        return any(delta.get(name) for name in _SAYS)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False  # what is no answer at all, `replies` says


def _timing(
    ask: Ask, got: Completion, times: Sequence[float], began: float, start: float, ended: float
) -> Timing:
    answered = times if not got.error else ()
    return Timing(
        record_id=ask.record_id,
        sent_s=start - began,
        total_s=ended - start,
        first_token_s=None if got.error else (answered[0] if answered else ended) - start,
        gaps_s=[b - a for a, b in pairwise(answered)],
        prompt_tokens=got.prompt_tokens,
        completion_tokens=got.completion_tokens or len(answered),
        cached_tokens=got.cached_tokens,
        error=got.error,
    )
