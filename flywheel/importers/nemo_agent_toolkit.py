"""Documents of the NeMo Agent Toolkit's data flywheel exporter, ``contract_version`` 1.0 and 1.1.

Both versions have one schema (the toolkit registers the same record class for both): the log
schema, with ``contract_version`` and ``error_details`` beside it. Read from its public source,
what differs from OpenAI's format is repaired here: roles may be LangChain's (``human``, ``ai``,
``chain``); calls have no ids, though the tool messages that answer them name some, so the
assistant's calls get the ids of the tool messages that follow, in order. Arguments are objects, and
fields without a value are ``null``: both are left for `flywheel.records` to settle.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from flywheel.types import Json

VERSIONS = ("1.0", "1.1")
_ROLES = {"human": "user", "ai": "assistant", "chain": "function"}
_OURS = ("timestamp", "workload_id", "client_id", "request", "response")


def recognises(document: Json) -> bool:
    """It names the version of its contract."""
    return "contract_version" in document


def log_object(document: Json) -> Json:
    """The document without the exporter's own fields, in OpenAI's format.

    Raises:
        ValueError: The version is unknown, or the exporter says that the call failed.
    """
    if document["contract_version"] not in VERSIONS:
        raise ValueError(f"its contract_version is none of {', '.join(VERSIONS)}")
    if document.get("error_details"):
        raise ValueError("its error_details say that the call failed")
    log = {k: document[k] for k in _OURS if k in document}
    request = log.get("request")
    if isinstance(request, dict) and isinstance(request.get("messages"), list):
        log["request"] = {**request, "messages": _messages(request["messages"])}
    return log


def _messages(messages: list[Any]) -> list[Any]:
    renamed = [_with_role(message) for message in messages]
    return [_with_ids(renamed, i) for i in range(len(renamed))]


def _with_role(message: Any) -> Any:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        return message
    return {**message, "role": _ROLES[role]}


def _with_ids(messages: list[Any], i: int) -> Any:
    message = messages[i]
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list):
        return message
    results = list(takewhile(_is_result, messages[i + 1 :]))
    ids = [result.get("tool_call_id") for result in results] + [None] * len(calls)
    return {**message, "tool_calls": [_with_id(*pair) for pair in zip(calls, ids, strict=False)]}


def _is_result(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "tool"


def _with_id(call: Any, call_id: Any) -> Any:
    if not isinstance(call, dict) or call.get("id") or not call_id:
        return call
    return {"id": call_id, **call}
