"""OpenAI's fine-tuning JSONL: a conversation in ``messages``, with ``tools`` where it has any.

The last message is production's answer, those before it are the request, as in NVIDIA's loader.
Fields beside them (``tools``, ``parallel_tool_calls``, legacy ``functions``) belong to the request;
``weight``, which only says what to train on, is left out. The format has no time, workload or
client; where a document carries one all the same (``timestamp``, ``workload_id``, ``client_id``),
it counts.
"""

from __future__ import annotations

from typing import Any

from flywheel.types import Json

_OURS = ("timestamp", "workload_id", "client_id")


def recognises(document: Json) -> bool:
    """It has messages."""
    return "messages" in document


def log_object(document: Json) -> Json:
    """The last message as the answer to the others.

    Raises:
        ValueError: The last message is no assistant's.
    """
    messages = document["messages"]
    answer = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(answer, dict) or answer.get("role") != "assistant":
        raise ValueError("its last message is no assistant's, so there is no answer")
    request = {k: v for k, v in document.items() if k not in _OURS}
    request["messages"] = [_without_weight(message) for message in messages[:-1]]
    reason = "tool_calls" if answer.get("tool_calls") else "stop"
    choice = {"index": 0, "finish_reason": reason, "message": _without_weight(answer)}
    response = {"object": "chat.completion", "choices": [choice]}
    ours = {k: document[k] for k in _OURS if document.get(k) is not None}
    return {**ours, "request": request, "response": response}


def _without_weight(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {k: v for k, v in message.items() if k != "weight"}
