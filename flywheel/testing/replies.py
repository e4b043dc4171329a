"""What a fake endpoint or judge answers with: messages, streams, and answers that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response other than a plain answer."""

    body: Json | bytes = b""
    """JSON, or bytes sent as they are (rubbish, too)."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """``{"Retry-After": "1"}``; the content type is JSON's unless given here."""
    drop: bool = False
    """Close the connection without a response."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    first_byte_after_s: float = 0.0
    """Seconds between the headers and the body."""
    more: Sequence[tuple[float, bytes]] = ()
    """Further parts of the body, and the seconds that pass before each."""


def text_reply(text: str) -> Json:
    """An assistant message that says this."""
    return {"role": "assistant", "content": text}


def tool_reply(name: str, arguments: Json) -> Json:
    """An assistant message that calls one tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def paced_reply(
    tokens: Sequence[str], first_token_s: float = 0.0, between_tokens_s: float = 0.0
) -> Reply:
    """A streamed answer whose times are known: its role at once, then token by token.

    Args:
        tokens: What it says; its usage counts them, and 100 tokens of prompt.
        first_token_s: Seconds from the request to the first.
        between_tokens_s: Seconds between one and the next.
    """
    pieces = [{"index": 0, "delta": {"content": token}} for token in tokens]
    parts = [_event([piece]) for piece in pieces]
    usage = {"prompt_tokens": 100, "completion_tokens": len(tokens)}
    end = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}]) + _event([], usage=usage)
    parts[-1] += end + b"data: [DONE]\n\n"
    waits = [first_token_s, *[between_tokens_s] * (len(parts) - 1)]
    return Reply(
        _event([{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        headers={"Content-Type": "text/event-stream"},
        more=list(zip(waits, parts, strict=True)),
    )


def verdict(score: int) -> Json:
    """What a judge answers: a score of 1 to 10."""
    return text_reply(json.dumps({"score": score}))


def likely_verdict(chances: Mapping[int, float]) -> Json:
    """A judge's answer with log-probabilities: its score is the likeliest of these.

    Args:
        chances: How likely each score is; 10 is one token, as in most tokenizers.
    """
    score = max(chances, key=lambda s: chances[s])
    top = [{"token": str(s), "logprob": math.log(p)} for s, p in chances.items() if p]
    tokens = [
        {"token": '{"score": ', "logprob": 0.0, "top_logprobs": []},
        {"token": str(score), "logprob": math.log(chances[score]), "top_logprobs": top},
        {"token": "}", "logprob": 0.0, "top_logprobs": []},
    ]
    return {**verdict(score), "logprobs": {"content": tokens}}


def preferred(better: str) -> Json:
    """What a judge answers who compares two answers: ``A``, ``B`` or ``tie``."""
    return text_reply(json.dumps({"better": better}))


def _event(choices: Sequence[Json], **fields: Any) -> bytes:
    chunk = {"object": "chat.completion.chunk", "choices": list(choices), **fields}
    return f"data: {json.dumps(chunk)}\n\n".encode()
