"""Ask an endpoint for the answer to every record, and write the answers down as they come.

Answers arrive in any order and are written in shards of a fixed size; what is on disk is never
asked again. A request that fails for good becomes a `Completion` with an error: data, not a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.types import Completion, Json

SHARD = 32
"""Completions per file: what a killed run can lose, besides the requests in flight."""
RETRIES = 4
"""Retries of lost connections and of 408, 409, 429 and 5xx, with jittered backoff."""


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
) -> Answers:
    """Ask for what is missing in ``folder`` and return everything.

    Args:
        endpoint: Where to ask.
        asks: The requests; record ids are unique.
        folder: Where shards of completions lie.
        concurrency: Requests in flight.
        timeout_s: Seconds one request may take.
        progress: Told how many of all asks have answers.
    """
    done = {c.record_id: c for c in read(folder)}
    missing = [ask for ask in asks if ask.record_id not in done]
    writer = _Writer(folder)

    def keep(completion: Completion) -> None:
        done[completion.record_id] = completion
        writer.add(completion)
        progress(len(done), len(asks))

    progress(len(done), len(asks))
    started = time.monotonic()
    try:
        if missing:
            asyncio.run(ask_all(endpoint, missing, concurrency, timeout_s, keep))
    finally:
        writer.flush()
    wall = time.monotonic() - started
    return Answers([done[ask.record_id] for ask in asks], wall, len(missing))


def read(folder: Storage) -> list[Completion]:
    """The completions on disk."""
    return [Completion(**row) for name in folder.names(".jsonl") for row in folder.read_lines(name)]


async def ask_all(
    endpoint: Endpoint,
    asks: Sequence[Ask],
    concurrency: int,
    timeout_s: float,
    keep: Callable[[Completion], None],
) -> None:
    """Ask, ``concurrency`` requests in flight; ``keep`` gets each answer as it comes."""
    from openai import AsyncOpenAI

    queue = iter(asks)
    key = endpoint.api_key
    secret = key if endpoint.api_key_env else ""
    async with AsyncOpenAI(
        base_url=endpoint.url,
        api_key=key,
        max_retries=RETRIES,
        timeout=timeout_s,
    ) as client:

        async def work() -> None:
            for ask in queue:
                completion = await _ask(client, endpoint.model, ask)
                # Some servers repeat the key they refuse, and what is kept goes to disk.
                masked = completion.error.replace(secret, "***") if secret else completion.error
                keep(replace(completion, error=masked))

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(asks)))))


async def _ask(client: Any, model: str, ask: Ask) -> Completion:
    from openai import OpenAIError

    started = time.monotonic()
    try:
        raw = await client.chat.completions.with_raw_response.create(model=model, **ask.body)
        reply = _Reply.model_validate_json(raw.content)
    except OpenAIError as error:
        return Completion(ask.record_id, error=_explain(error), latency_s=_since(started))
    except ValidationError as error:
        return Completion(ask.record_id, error=_misshapen(error), latency_s=_since(started))
    if not reply.choices:
        return Completion(ask.record_id, error="the endpoint sent no choices")
    choice = reply.choices[0]
    usage = reply.usage or _Usage()
    return Completion(
        record_id=ask.record_id,
        message=choice.message.to_json(),
        finish_reason=choice.finish_reason or "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        latency_s=_since(started),
    )


class _Function(BaseModel):
    name: str
    arguments: str | None = None


class _Call(BaseModel):
    id: str | None = None
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    refusal: str | None = None

    def to_json(self) -> Json:
        """The assistant message in OpenAI form; a call without arguments has empty ones."""
        shape: Json = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            shape["tool_calls"] = [
                {
                    "id": call.id or "",
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.arguments or "{}",
                    },
                }
                for call in self.tool_calls
            ]
        return {**shape, "refusal": self.refusal} if self.refusal else shape


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Reply(BaseModel):
    """What counts in a chat completion. Servers differ in the rest, so it is not looked at."""

    choices: list[_Choice] = []
    usage: _Usage | None = None


def _misshapen(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"the endpoint sent no chat completion: {where} {first['msg']}"[:300]


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _since(started: float) -> float:
    return round(time.monotonic() - started, 4)


class _Writer:
    """Collects completions into shard files numbered after those that exist."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._next = len(folder.names(".jsonl"))
        self._waiting: list[Completion] = []

    def add(self, completion: Completion) -> None:
        self._waiting.append(completion)
        if len(self._waiting) >= SHARD:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            rows = [asdict(c) for c in self._waiting]
            self._folder.write_lines(f"{self._next:05d}.jsonl", rows)
            self._next += 1
            self._waiting = []
