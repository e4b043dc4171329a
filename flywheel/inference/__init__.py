"""Ask an endpoint for the answer to every record, and write the answers down as they come.

Requests wait at a gate (`limits`) for what the endpoint bears, go out (`client`), and are read
(`replies`); what fails in passing is tried again here. An answer is on disk (`journal`) before its
place is given to the next request, so a kill loses no more than what is in flight; an endpoint that
is paid is not asked the same thing twice (`cache`). Answers come in any order. A request that fails
for good becomes a `Completion` with an error: data, not a crash; if a trial is resumed, it is tried
again. An endpoint that is down ends the session with one sentence.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flywheel import metrics
from flywheel.inference.cache import Cache
from flywheel.inference.journal import Journal, read
from flywheel.inference.limits import Breaker, Gate, Pace
from flywheel.inference.replies import Failure
from flywheel.logs import about, fields, log
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.types import Completion, Json

if TYPE_CHECKING:
    from flywheel.inference.client import Client

__all__ = ["Answers", "Ask", "answer_all", "ask_all", "read"]

Keep = Callable[[Completion], None]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to make: whose record it answers and its body without the model's name."""

    record_id: str
    body: Json


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions, in the order of the asks, and the time this session spent on them."""

    completions: list[Completion]
    wall_s: float
    """Seconds this session spent asking."""
    asked: int
    """How many this session asked for; the others were on disk."""

    def then(self, more: Answers) -> Answers:
        """The answers to a longer list of asks, and what both took together."""
        return Answers(more.completions, self.wall_s + more.wall_s, self.asked + more.asked)


def answer_all(
    endpoint: Endpoint,
    asks: Sequence[Ask],
    folder: Storage,
    concurrency: int,
    timeout_s: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cache: Storage | None = None,
) -> Answers:
    """Ask for what is missing in ``folder`` and return everything.

    Args:
        endpoint: Where to ask.
        asks: The requests; record ids are unique.
        folder: Where completions lie.
        concurrency: Requests in flight at most.
        timeout_s: Seconds one attempt at a request may take.
        progress: Told how many of all asks have answers.
        cache: Where answers of endpoints that are paid are kept for other runs.

    Raises:
        EngineError: The endpoint is down; what was answered is in ``folder``.
    """
    done = {c.record_id: c for c in read(folder) if not c.error}
    missing = [ask for ask in asks if ask.record_id not in done]

    def keep(completion: Completion) -> None:
        done[completion.record_id] = completion
        progress(len(done), len(asks))

    progress(len(done), len(asks))
    started = time.monotonic()
    asked = ask_all(endpoint, missing, folder, concurrency, timeout_s, keep, cache=cache)
    wall = time.monotonic() - started
    return Answers([done[ask.record_id] for ask in asks], wall, asked)


def ask_all(
    endpoint: Endpoint,
    asks: Sequence[Ask],
    folder: Storage,
    concurrency: int,
    timeout_s: float,
    keep: Keep,
    *,
    cache: Storage | None = None,
    errors: bool = True,
) -> int:
    """Ask for all of this, and say how many the endpoint had to answer.

    Args:
        endpoint: Where to ask.
        asks: The requests.
        folder: Where completions are written as they come.
        concurrency: Requests in flight at most.
        timeout_s: Seconds one attempt at a request may take.
        keep: Gets each completion once it is written.
        cache: Where answers of endpoints that are paid are kept for other runs.
        errors: Whether completions that are none are written too.

    Raises:
        EngineError: The endpoint is down.
    """
    if not asks:
        return 0
    journal = Journal(folder)
    known = Cache(cache, endpoint) if cache and endpoint.client.cache else None
    session = _Session(endpoint, journal, known, keep, errors=errors)
    try:
        asyncio.run(session.run(asks, concurrency, timeout_s))
    finally:
        journal.close()
    return session.asked


class _Session:
    """Workers that share one gate: each sees one request through to the disk, then the next."""

    def __init__(
        self, endpoint: Endpoint, journal: Journal, cache: Cache | None, keep: Keep, *, errors: bool
    ) -> None:
        self._endpoint, self._rules = endpoint, endpoint.client
        self._journal, self._cache, self._keep, self._errors = journal, cache, keep, errors
        self.asked = 0

    async def run(self, asks: Sequence[Ask], concurrency: int, timeout_s: float) -> None:
        """See all requests through."""
        from flywheel.inference.client import connected

        rules, queue = self._rules, iter(asks)
        pace, breaker = Pace(concurrency, rules.requests_per_minute), Breaker(rules.outage_s)
        gate = Gate(self._endpoint.url, pace, breaker, rules.outage_s)

        async def work() -> None:
            for ask in queue:
                await self._see_through(ask, client, gate)

        async with connected(self._endpoint, timeout_s) as client:
            workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(asks)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _see_through(self, ask: Ask, client: Client, gate: Gate) -> None:
        known = await asyncio.to_thread(self._cache.get, ask.body) if self._cache else None
        with about(record=ask.record_id):
            got = known or await self._ask(ask.body, client, gate)
        outcome = "kept" if known else "failed" if got.error else "answered"
        metrics.COMPLETIONS.tell(1, model=self._endpoint.model, outcome=outcome)
        completion = replace(got, record_id=ask.record_id)
        if self._errors or not completion.error:
            await self._journal.add(completion)
        if self._cache and not known:
            await asyncio.to_thread(self._cache.put, ask.body, completion)
        self._keep(completion)

    async def _ask(self, body: Json, client: Client, gate: Gate) -> Completion:
        """The answer, tried for as often and as long as the rules allow; or its error."""
        self.asked += 1
        rules, failed, waits, first_sent = self._rules, 0, 0, 0.0
        while True:
            came = time.monotonic()
            sent = await gate.enter()
            metrics.QUEUE_SECONDS.tell(sent - came, what="request")
            first_sent = first_sent or sent
            try:
                got = await client.ask(body)
            except Failure as failure:
                gate.failed(failure, sent)
                spent = time.monotonic() - first_sent
                failed += not failure.refused  # refusals cost time, not attempts
                wait = failure.retry_after_s + _jittered(rules.backoff_s, waits)
                waits += 1
                over = failed >= rules.attempts or spent + wait > rules.retry_for_s
                _log(failure, waits, None if failure.final or over else wait)
                if failure.final or over:
                    return Completion("", error=str(failure), latency_s=round(spent, 4))
            else:
                gate.answered()
                said = {"messages": body.get("messages"), "answer": got.message}
                log.debug("answered", extra=fields(said, attempt=waits + 1))
                return replace(got, latency_s=round(time.monotonic() - first_sent, 4))
            finally:
                gate.leave()
            await asyncio.sleep(wait)


def _log(failure: Failure, attempt: int, wait_s: float | None) -> None:
    """Log an attempt that came to nothing; after ``wait_s`` there will be another."""
    facts = {"status": failure.status, "attempt": attempt}
    texts = {"error": str(failure)}
    if wait_s is None:
        log.error("request failed", extra=fields(texts, **facts))
    else:
        log.warning("request tried again", extra=fields(texts, wait_s=round(wait_s, 3), **facts))


def _jittered(base_s: float, waits: int) -> float:
    """Exponential backoff with full jitter (Brooker, 2015, AWS Architecture Blog)."""
    return random.uniform(0, min(30.0, base_s * 2**waits))
