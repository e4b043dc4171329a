"""What the program logs of its work: standard logging below the logger ``flywheel``.

    with about(run="demo-1", trial="ab12"):
        log.info("asked again", extra=fields(record="r1", status=429))

Whose run, trial and record a line is about is kept in the context, so no function passes ids
along. A line is a fixed message and fields. What production's users and models wrote may only
stand in `texts`, which are left out unless asked for. Nothing is written before `configure`; the
choice stands in the environment, so that a Ray worker makes the same one (`adopt`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

log = logging.getLogger("flywheel")
log.addHandler(logging.NullHandler())
log.propagate = False  # to handlers of libraries, which would write texts too

Format = Literal["text", "json"]

_FORMAT, _TEXTS = "FLYWHEEL_LOG_FORMAT", "FLYWHEEL_LOG_TEXTS"
_IDS: ContextVar[Mapping[str, str]] = ContextVar("ids", default={})  # noqa: B039 -- never changed


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Say what lines within are about: ``run``, ``trial``, ``record``."""
    token = _IDS.set({**_IDS.get(), **ids})
    try:
        yield
    finally:
        _IDS.reset(token)


def fields(texts: Mapping[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """What a line says beside its message, as logging's ``extra``.

    Args:
        texts: What may hold traffic: prompts, answers, what an endpoint said.
        values: Everything else, fit for JSON.
    """
    return {"flywheel_fields": values, "flywheel_texts": texts or {}}


def configure(form: Format, *, texts: bool = False, stream: TextIO | None = None) -> None:
    """Write lines to ``stream`` (standard error), here and in the processes of this run.

    Args:
        form: ``json``: an object a line; ``text``: for people.
        texts: Whether traffic may stand in them.
        stream: Where to.
    """
    os.environ[_FORMAT] = form
    os.environ[_TEXTS] = "1" if texts else ""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines(form, texts=texts))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if texts else logging.INFO)
    log.manager = logging.Manager(logging.root)  # `logging.disable` silences the libraries alone


def environment() -> dict[str, str]:
    """What a process of this run needs to `adopt` the choice; empty if none was made."""
    names = (_FORMAT, _TEXTS) if os.environ.get(_FORMAT) else ()
    return {name: os.environ.get(name, "") for name in names}


def adopt() -> None:
    """Log as the run's driver does: to this process's standard error, which Ray keeps in a file."""
    if all(isinstance(handler, logging.NullHandler) for handler in log.handlers):
        form = os.environ.get(_FORMAT)
        if form:
            configure("json" if form == "json" else "text", texts=bool(os.environ.get(_TEXTS)))


class _Lines(logging.Formatter):
    """One line per event, whatever stands in it."""

    def __init__(self, form: Format, *, texts: bool) -> None:
        super().__init__()
        self._form, self._texts = form, texts

    def format(self, record: logging.LogRecord) -> str:
        """The event as an object, or as words."""
        values: dict[str, Any] = {**_IDS.get(), **getattr(record, "flywheel_fields", {})}
        if self._texts:
            values |= getattr(record, "flywheel_texts", {})
        if record.exc_info and record.exc_info[0]:
            values["exception"] = record.exc_info[0].__name__
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level = record.levelname.lower()
        if self._form == "json":
            lead = {"time": when, "level": level, "message": record.getMessage()}
            return _json({**lead, **values})
        told = [f"{name}={_json(value)}" for name, value in values.items()]
        return " ".join([when, level, record.getMessage(), *told])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
