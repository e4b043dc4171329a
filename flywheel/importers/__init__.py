"""Bring exports of other tools into flywheel's log schema, one document at a time.

Each format is a module here that recognises its documents and reshapes them; what a document does
not say (a workload, a client, a time) comes from whoever imports it. Nothing is validated:
`flywheel.records` does that when the logs are read. Equal documents give equal log objects, so that
importing twice changes nothing.

Adding a format means one module with `Format`'s two functions, and its place in `_FORMATS`.
"""

from __future__ import annotations

from typing import Protocol

from flywheel.errors import NotRecognised
from flywheel.importers import fine_tuning, log_schema, nemo_agent_toolkit, stored_completions
from flywheel.types import Json

UNDATED = 1.0
"""Timestamp of documents that have none, seconds since the epoch: a clock would differ twice."""


class Format(Protocol):
    """What a format's module holds."""

    def recognises(self, document: Json) -> bool:
        """Whether the document is of this format, by its outermost fields."""
        ...

    def log_object(self, document: Json) -> Json:
        """The document in the log schema; timestamp, workload_id and client_id may be missing.

        Raises:
            ValueError: The document is of this format, but says too little.
        """
        ...


_FORMATS: tuple[Format, ...] = (nemo_agent_toolkit, log_schema, stored_completions, fine_tuning)
"""The first that recognises a document reads it."""
_KNOWN = "flywheel's log schema, OpenAI fine-tuning or stored completions, NeMo Agent Toolkit"


def convert(
    document: Json,
    source: str,
    *,
    workload_id: str = "",
    client_id: str = "",
    timestamp: float = UNDATED,
) -> Json:
    """The log object of one exported document; one in the log schema passes unchanged.

    Args:
        document: The parsed document.
        source: Where it stands, for the error.
        workload_id: For documents that name no workload.
        client_id: For documents that name no client.
        timestamp: For documents without a time, seconds since the epoch.

    Raises:
        NotRecognised: No format fits, or something is missing; the message says what to give.
    """
    known = _FORMATS if isinstance(document, dict) else ()
    form = next((form for form in known if form.recognises(document)), None)
    if form is None:
        raise NotRecognised(f"{source}: is of no known format ({_KNOWN})")
    defaults = {"workload_id": workload_id, "client_id": client_id}
    try:
        log = form.log_object(document)
        return log if log is document else {"timestamp": timestamp, **_completed(log, defaults)}
    except ValueError as error:
        raise NotRecognised(f"{source}: {error}") from None


def _completed(log: Json, defaults: dict[str, str]) -> Json:
    for name, value in defaults.items():
        if not log.get(name) and not value:
            raise ValueError(f"names no {name}; give one with --{name.replace('_', '-')}")
    return {**log, **{name: log.get(name) or value for name, value in defaults.items()}}
