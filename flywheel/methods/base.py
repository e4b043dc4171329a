"""Replay production's prompt unchanged."""

from __future__ import annotations

from flywheel.types import Json, Record


def request(record: Record) -> Json:
    """The part of a logged request that any model can be asked again."""
    kept = ("messages", "tools", "tool_choice", "response_format", "stop", "max_tokens")
    body = {name: record.request[name] for name in kept if record.request.get(name) is not None}
    limit = record.request.get("max_completion_tokens")
    return {**body, "max_tokens": limit} if limit and "max_tokens" not in body else body
