"""The few-shot prompt: examples before the query, as turns or as text.

They stand either as earlier turns of the conversation (``turns``, for models served here) or as
text in the system message (``system``, for endpoints: OpenAI's protocol refuses a tool call in the
history that no tool answered; the text is that of NVIDIA's blueprint).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from flywheel.methods import base
from flywheel.rendering import query_of
from flywheel.scoring.text import text_of
from flywheel.types import Json, Record

_HEADER = (
    "You are a helpful assistant that can answer questions and help with tasks.\n"
    "Here are some examples of how you should respond to different types of requests:"
)


def request(
    record: Record, examples: Sequence[Record], style: str, order: str = "nearest_last"
) -> Json:
    """The record's request with examples.

    Args:
        record: The eval record.
        examples: Training records, nearest first; without any, the request is production's.
        style: ``turns`` or ``system``.
        order: ``nearest_last``, so that it stands beside the query, or ``nearest_first``.
    """
    body = base.request(record)
    if not examples:
        return body
    ordered = list(examples if order == "nearest_first" else reversed(examples))
    build = _as_turns if style == "turns" else _as_system
    return {**body, "messages": build(record.messages, ordered)}


def _as_turns(messages: Sequence[Json], examples: Sequence[Record]) -> list[Json]:
    lead = [m for m in messages[:1] if m["role"] in {"system", "developer"}]
    turns: list[Json] = []
    for example in examples:
        turns += [{"role": "user", "content": query_of(example)}, _bare(example.answer)]
    return [*lead, *turns, *messages[len(lead) :]]


def _as_system(messages: Sequence[Json], examples: Sequence[Record]) -> list[Json]:
    text = "\n\n".join([_HEADER, *(_as_text(example) for example in examples)])
    if messages[0]["role"] in {"system", "developer"}:
        first = {**messages[0], "content": f"{text}\n\n{text_of(messages[0])}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _as_text(example: Record) -> str:
    seen = "".join(f"{m['role']}: {text_of(m)}\n\n" for m in example.messages)
    said = f"{example.answer.get('role', 'assistant')}: {text_of(example.answer)}"
    text = f"For example, if the conversation looks like this:\n{seen}\nThen you'll respond with:\n"
    calls = example.answer.get("tool_calls")
    return text + said + (f"\nTool calls:\n{json.dumps(calls, indent=2)}" if calls else "")


def _bare(answer: Json) -> Json:
    kept = {name: answer[name] for name in ("content", "tool_calls") if answer.get(name)}
    return {"role": "assistant", "content": None, **kept}
