"""One attempt at one request over HTTP: its answer, or the `Failure` that it was.

All that an endpoint sends is bounded in size and in time. aiohttp carries it, at a twentieth of the
processor time per request that the OpenAI client or httpx take.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from flywheel.inference.replies import Failure, answer_in, failure_in
from flywheel.serving import Endpoint
from flywheel.types import Completion, Json

Heard = Callable[[bytes], None]
MOST_BYTES = 16 * 1024 * 1024
"""Of one response."""


@asynccontextmanager
async def connected(endpoint: Endpoint, timeout_s: float) -> AsyncIterator[Client]:
    """Open connections to an endpoint, and close them.

    Raises:
        ConfigError: Its key is not in the environment.
    """
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key_env:
        name = endpoint.client.api_key_header
        bearer = "Bearer " if name.lower() == "authorization" else ""
        headers[name] = bearer + endpoint.api_key
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(timeout_s, connect=endpoint.client.connect_timeout_s),
        connector=aiohttp.TCPConnector(limit=0),  # `limits.Gate` counts
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy(endpoint.url),
    ) as session:
        yield Client(session, endpoint)


class Client:
    """An endpoint's open connections; `connected` makes it."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        """Take what the session does not know: place, model, and whether to stream."""
        self._session, self._url = session, endpoint.completions_url
        self._key = endpoint.api_key.encode() if endpoint.api_key_env else b""
        self._first_s = endpoint.client.first_token_timeout_s
        self._extra: Json = {"model": endpoint.model}
        if self._first_s is not None:
            self._extra |= {"stream": True, "stream_options": {"include_usage": True}}

    async def ask(self, body: Json, heard: Heard = lambda part: None) -> Completion:
        """Make one attempt; the completion is nobody's yet.

        Args:
            body: Without the model's name.
            heard: Gets the response's body part by part, as it comes.

        Raises:
            Failure: There is no answer.
        """
        first = asyncio.timeout(self._first_s)
        try:
            async with (
                first,
                self._session.post(
                    self._url, data=_payload({**body, **self._extra}), allow_redirects=False
                ) as response,
            ):
                content = await _content(response, first, heard)
        except TimeoutError as error:
            late = f"no token within {self._first_s:g} s" if first.expired() else str(error)
            raise Failure(late or "no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(f"{type(error).__name__}: {error}") from None
        if self._key:  # some servers repeat the key they refuse, and what is kept goes to disk
            content = content.replace(self._key, b"***")
        if response.status != 200:
            raise failure_in(response.status, response.headers, content)
        return answer_in(content, streamed=response.content_type == "text/event-stream")


async def _content(response: aiohttp.ClientResponse, first: asyncio.Timeout, heard: Heard) -> bytes:
    """The whole body; ``first`` ends with its first bytes."""
    parts, size = [], 0
    async for chunk in response.content.iter_any():
        first.reschedule(None)
        heard(chunk)
        parts.append(chunk)
        size += len(chunk)
        if size > MOST_BYTES:
            raise Failure(f"the endpoint sent more than {MOST_BYTES} bytes", 200, final=True)
    return b"".join(parts)


def _proxy(url: str) -> str | None:
    """What the environment says about proxies, read once: aiohttp would look at each request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _payload(body: Json) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # integers beyond 64 bits, half a surrogate pair
        return json.dumps(body).encode()
