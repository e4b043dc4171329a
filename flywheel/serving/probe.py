"""What a served model sees and says, token by token: the engine's side of `flywheel.parity`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from flywheel.errors import EngineError, boundary
from flywheel.parity import LIKELIEST, Generation
from flywheel.serving import Endpoint
from flywheel.types import Json, Record

_LOOK_EVERY_S = 2.0


def generate(
    endpoint: Endpoint, records: Sequence[Record], tokens: int, timeout_s: float
) -> list[Generation]:
    """Let an engine of ours answer records greedily, all at once, as its users' requests come in.

    Where that fails it is done once more, when the engine answers: a replica that died is replaced.

    Args:
        endpoint: A vLLM server; others do not tell token ids.
        records: What to answer.
        tokens: Answer tokens at most.
        timeout_s: Seconds one request may take.

    Raises:
        EngineError: A request failed, or the server is not vLLM.
    """
    with boundary(EngineError, f"asking {endpoint.model} for token ids"):
        return asyncio.run(_ask_twice(endpoint, records, tokens, timeout_s))


async def _ask_twice(
    endpoint: Endpoint, records: Sequence[Record], tokens: int, timeout_s: float
) -> list[Generation]:
    from openai import APIConnectionError, InternalServerError

    try:
        return await _ask_all(endpoint, records, tokens, timeout_s)
    except (APIConnectionError, InternalServerError):
        await _answering(endpoint, timeout_s)
    return await _ask_all(endpoint, records, tokens, timeout_s)


async def _answering(endpoint: Endpoint, timeout_s: float) -> None:
    """Wait until the base model says something, for as long as an outage may last."""
    from openai import APIError, AsyncOpenAI

    base = endpoint.model.partition(":")[0]
    ends = time.monotonic() + endpoint.client.outage_s
    async with AsyncOpenAI(
        base_url=endpoint.url, api_key=endpoint.api_key, timeout=timeout_s, max_retries=0
    ) as client:
        while True:
            try:
                await client.chat.completions.create(
                    model=base, messages=[{"role": "user", "content": "?"}], max_tokens=1
                )
            except APIError:
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                return


async def _ask_all(
    endpoint: Endpoint, records: Sequence[Record], tokens: int, timeout_s: float
) -> list[Generation]:
    from openai import AsyncOpenAI

    extra = {"return_token_ids": True, "return_tokens_as_token_ids": True}

    async def ask(client: AsyncOpenAI, record: Record) -> Generation:
        body: Json = {"messages": record.messages}
        if record.tools:
            body["tools"] = record.tools
        reply = await client.chat.completions.create(
            model=endpoint.model,
            **body,
            temperature=0.0,
            max_tokens=tokens,
            logprobs=True,
            top_logprobs=LIKELIEST,
            extra_body=extra,
        )
        return _generation(record.id, reply.model_dump())

    async with AsyncOpenAI(
        base_url=endpoint.url, api_key=endpoint.api_key, timeout=timeout_s
    ) as client:
        return list(await asyncio.gather(*(ask(client, record) for record in records)))


def _generation(record_id: str, reply: Json) -> Generation:
    choice = reply["choices"][0]
    places: list[Json] = choice["logprobs"]["content"]
    return Generation(
        record_id,
        reply["prompt_token_ids"],
        [_id(place) for place in places],
        [{_id(one): one["logprob"] for one in [*place["top_logprobs"], place]} for place in places],
    )


def _id(place: Any) -> int:
    """``token_id:17`` is how vLLM spells token 17 when asked to."""
    return int(place["token"].removeprefix("token_id:"))
