"""What an endpoint sent, read: an answer, or the `Failure` that it stands for.

Servers differ, and some send rubbish: only what counts in a chat completion is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from statistics import fmean
from typing import Any

import orjson
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from flywheel.normalising import ShapeError, assembled
from flywheel.types import Completion, Json

_PASSING = {408, 409, 429}
"""Statuses worth another try, besides all from 500 on."""
_DAY_S = 86400.0


class Failure(Exception):  # noqa: N818 -- caught and counted, never shown as it is
    """An attempt without an answer, in one sentence."""

    def __init__(
        self, text: str, status: int = 0, *, final: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(" ".join(text.split())[:300])
        self.status = status
        """HTTP status; 0 where the endpoint sent none."""
        self.final = final
        """The request is at fault: another attempt would fail alike."""
        self.retry_after_s = retry_after_s
        """What the endpoint asked to wait."""

    @property
    def refused(self) -> bool:
        """The endpoint had too many requests."""
        return self.status == 429


def answer_in(content: bytes, *, streamed: bool) -> Completion:
    """The answer in the body of a response with status 200; it is nobody's yet.

    Raises:
        Failure: There is none. Another replica may be in better health, so it is not final.
    """
    try:
        if streamed:
            reply = _Reply.model_validate(_put_together(content))
        else:
            reply = _Reply.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _misshapen(f"{where} {first['msg']}") from None
    if not reply.choices:
        raise Failure(f"the endpoint sent no choices{reply.complaint}", 200)
    choice = reply.choices[0]
    usage = reply.usage or _Usage()
    return Completion(
        record_id="",
        message=choice.message.to_json(),
        finish_reason=choice.finish_reason or "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        logprobs=_tokens(choice.logprobs),
        cached_tokens=usage.cached_tokens,
        mean_logprob=choice.mean_logprob,
    )


def _tokens(sent: object) -> list[Json]:
    """Tokens with the likeliest at their places; none where any part is not in OpenAI's shape.

    Of an answer whose tokens come without others, the mean says enough.
    """
    try:
        tokens = _Logprobs.model_validate(sent).content
    except ValidationError:  # older servers have another shape, most send nothing
        return []
    if not any(token.top for token in tokens):
        return []
    return [
        {"token": t.token, "logprob": t.logprob, "top": {o.token: o.logprob for o in t.top}}
        for t in tokens
    ]


def failure_in(status: int, headers: Mapping[str, str], content: bytes) -> Failure:
    """What a response of another status says."""
    passing = {"true": True, "false": False}.get(
        headers.get("x-should-retry", ""), status in _PASSING or status >= 500
    )
    return Failure(
        f"HTTP {status}: {_said(headers, content)}",
        status,
        final=not passing,
        retry_after_s=_retry_after(headers),
    )


def _misshapen(why: str) -> Failure:
    return Failure(f"the endpoint sent no chat completion: {why}", 200)


def _put_together(content: bytes) -> Json:
    """One response out of server-sent events, which must have come to their end."""
    try:
        lines = (line.removeprefix(b"data:").strip() for line in content.splitlines()
                 if line.startswith(b"data:"))  # fmt: skip
        chunks = [orjson.loads(line) for line in lines if line != b"[DONE]"]
        whole: Json = assembled(chunks, set())
    except (ValueError, ShapeError) as error:
        raise _misshapen(str(error)) from None
    if not isinstance(whole, dict):  # no chunk of a completion among them
        raise _misshapen(f"the stream held {content[:100]!r}")
    if not any(choice["finish_reason"] for choice in whole["choices"]):
        raise _misshapen("the stream broke off")
    first = whole["choices"][0]
    first["logprobs"] = {"content": _logprobs(chunks, first["index"])}
    return whole


def _logprobs(chunks: list[Json], index: int) -> list[Any]:
    """The log-probabilities of one choice, which `assembled` has no use for."""
    pieces = (piece for chunk in chunks for piece in chunk.get("choices") or [])
    told = [piece.get("logprobs") for piece in pieces if piece.get("index", index) == index]
    places = [one.get("content") for one in told if isinstance(one, dict)]
    return [place for several in places if isinstance(several, list) for place in several]


def _said(headers: Mapping[str, str], content: bytes) -> str:
    """The error's message, where it is in the shape that most servers use."""
    if "Location" in headers:
        return f"this place moved to {headers['Location']}"
    try:
        said = orjson.loads(content)
    except ValueError:
        return content[:400].decode("utf-8", "replace")
    inner = said.get("error", said) if isinstance(said, dict) else said
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait, from a header in milliseconds, in seconds, or with a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return min(max(0.0, seconds), _DAY_S) if isfinite(seconds) else 0.0
    try:
        date = parsedate_to_datetime(headers["Retry-After"])
    except (KeyError, ValueError):
        return 0.0
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max(0.0, (aware - datetime.now(UTC)).total_seconds()), _DAY_S)


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
    logprobs: Any = None

    @property
    def mean_logprob(self) -> float | None:
        """Over the answer's tokens; ``None`` where not all of them have one."""
        places = self.logprobs.get("content") if isinstance(self.logprobs, dict) else None
        try:
            mean = fmean(place["logprob"] for place in places or ())
        except (TypeError, KeyError, ValueError, OverflowError):  # none there, or not as it should
            return None
        return mean if isfinite(mean) else None


class _Likely(BaseModel):
    token: str
    logprob: FiniteFloat


class _Token(_Likely):
    top: list[_Likely] = Field(default=[], alias="top_logprobs")


class _Logprobs(BaseModel):
    content: list[_Token]


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Any = None

    @property
    def cached_tokens(self) -> int:
        """Never more than the prompt has."""
        details = self.prompt_tokens_details
        told = details.get("cached_tokens") if isinstance(details, dict) else None
        return min(max(0, told), self.prompt_tokens) if isinstance(told, int) else 0


class _Reply(BaseModel):
    """What counts in a chat completion."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None

    @property
    def complaint(self) -> str:
        """Some servers send their errors with status 200."""
        return f": {self.error}" if self.error else ""
