"""Flywheel's own log schema: timestamp, workload_id, client_id, request, response.

A document that has but a request or a response is taken for one, too: it passes as it is, and is
rejected for its reason when the logs are read.
"""

from __future__ import annotations

from flywheel.types import Json


def recognises(document: Json) -> bool:
    """It has a request or a response."""
    return "request" in document or "response" in document


def log_object(document: Json) -> Json:
    """The document itself."""
    return document
