"""OpenAI's stored chat completions, each together with its messages.

``GET /v1/chat/completions`` lists completions that were created with ``store: true``: the response
(``id``, ``created``, ``choices``, ``usage``) with the request's parameters (``tools``,
``temperature``, ``metadata``) in one object, but without the input. That comes from
``GET /v1/chat/completions/{id}/messages``. Assumed here is one document per completion with its
input under ``messages``: the list, or the page as the API gave it (``{"object": "list", "data":
[...]}``). A message of parts has them in ``content_parts``.

``created`` is the time; ``workload_id`` and ``client_id`` are read from ``metadata``, where an
application can put them.
"""

from __future__ import annotations

from typing import Any

from flywheel.types import Json

_RESPONSE = (
    "id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint",
    "request_id",
)  # fmt: skip


def recognises(document: Json) -> bool:
    """It is a completion."""
    return document.get("object") == "chat.completion" and "choices" in document


def log_object(document: Json) -> Json:
    """Request and response taken apart.

    Raises:
        ValueError: The completion's messages are not with it, or not all of them.
    """
    request = {k: v for k, v in document.items() if k == "model" or k not in _RESPONSE}
    if "input_user" in request:
        request["user"] = request.pop("input_user")
    request["messages"] = [_message(message) for message in _messages(document.get("messages"))]
    response = {k: document[k] for k in _RESPONSE if k in document}
    log = {"request": request, "response": response, **_names(document.get("metadata"))}
    if document.get("created") is not None:
        log["timestamp"] = document["created"]
    return log


def _messages(value: Any) -> list[Any]:
    if isinstance(value, dict):
        if value.get("has_more"):
            raise ValueError("only the first page of its messages is there")
        value = value.get("data")
    if isinstance(value, list):
        return value
    raise ValueError(
        "is a stored completion without its messages; add what "
        "GET /v1/chat/completions/{id}/messages gives as its field messages"
    )


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    kept = {k: v for k, v in message.items() if k not in ("id", "content_parts")}
    return {**kept, "content": message["content_parts"]} if message.get("content_parts") else kept


def _names(metadata: Any) -> Json:
    tags = metadata if isinstance(metadata, dict) else {}
    return {name: tags[name] for name in ("workload_id", "client_id") if tags.get(name)}
