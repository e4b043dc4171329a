"""Records and a tool, as a log of production would have them."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.testing.replies import tool_reply
from flywheel.types import Json, Record

TRACK_ORDER: Json = {
    "type": "function",
    "function": {
        "name": "track_order",
        "description": "Say where an order is",
        "parameters": {
            "type": "object",
            "properties": {
                "order_id": {"type": "string"},
                "speed": {"type": "string", "enum": ["fast", "slow"]},
                "days": {"type": "integer", "description": "to look back"},
            },
            "required": ["order_id"],
        },
    },
}
"""A tool with a required argument, a choice and a number."""


def sample_record(
    query: str = "Where is order A-1?",
    answer: Json | None = None,
    *,
    system: str = "You help customers of a shop.",
    tools: Sequence[Json] | None = None,
    workload: str = "shop.router",
    timestamp: float = 1_767_229_480.0,
) -> Record:
    """A Record of one question and its answer.

    Args:
        query: What the user asks.
        answer: Production's message; default: a call of ``track_order``.
        system: The system message; empty for none.
        tools: What the model could call; default: ``track_order`` if the answer calls a tool.
        workload: The workload's id.
        timestamp: Seconds since the epoch.
    """
    answer = answer or tool_reply("track_order", {"order_id": "A-1"})
    if tools is None:
        tools = [TRACK_ORDER] if answer.get("tool_calls") else []
    lead = [{"role": "system", "content": system}] if system else []
    request: Json = {"messages": [*lead, {"role": "user", "content": query}]}
    if tools:
        request["tools"] = list(tools)
    response = {
        "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return Record(timestamp, workload, "shop-web", request, response)
