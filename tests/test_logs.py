"""Lines of the log: fixed messages, ids from the context, traffic only where it is asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import logs
from flywheel.logs import about, fields, log

TEXT = "where is my parcel, says Jane"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FLYWHEEL_LOG_FORMAT", "FLYWHEEL_LOG_TEXTS"):
        monkeypatch.setenv(name, "")
    handlers, level = log.handlers[:], log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
    vars(log).pop("manager", None)


def logged(form: logs.Format = "json", *, texts: bool = False, **values: Any) -> str:
    stream = io.StringIO()
    logs.configure(form, texts=texts, stream=stream)
    with about(run="demo-1", trial="ab12"), about(record="r7"):
        log.warning("request tried again", extra=fields({"error": TEXT}, **values))
    return stream.getvalue()


def test_without_a_format_nothing_is_written_even_where_a_library_writes_all_there_is() -> None:
    """Importing ``ray.serve.llm`` gives the root logger a handler that writes every field."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        log.error("request given up", extra=fields({"error": TEXT}))
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue() == ""


def test_a_line_is_an_object_with_its_ids() -> None:
    line = json.loads(logged(status=429))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "message": "request tried again",
        "run": "demo-1",
        "trial": "ab12",
        "record": "r7",
        "status": 429,
    }


@pytest.mark.parametrize("form", ["json", "text"])
def test_traffic_stands_in_a_line_only_if_asked_for(form: logs.Format) -> None:
    assert TEXT not in logged(form)
    assert TEXT in logged(form, texts=True)


@given(value=st.text() | st.lists(st.text()) | st.floats() | st.binary())
def test_whatever_is_said_an_event_is_one_line(value: Any) -> None:
    for form in ("json", "text"):
        assert logged(form, value=value).count("\n") == 1  # type: ignore[arg-type]
    assert json.loads(logged(value=value))["message"] == "request tried again"


def test_it_is_heard_while_the_libraries_are_silenced() -> None:
    logging.disable(logging.WARNING)
    try:
        assert "request tried again" in logged()
    finally:
        logging.disable(logging.NOTSET)


def test_ids_end_with_their_block_and_are_not_those_of_other_threads() -> None:
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    with about(run="demo-1"):
        thread = Thread(target=log.info, args=("beside",))
        thread.start()
        thread.join()
        log.info("within")
    log.info("after")
    runs = [json.loads(line).get("run") for line in stream.getvalue().splitlines()]
    assert runs == [None, "demo-1", None]


def test_nothing_is_written_unless_it_was_chosen(capfd: pytest.CaptureFixture[str]) -> None:
    log.handlers[:] = [logging.NullHandler()]
    logs.adopt()
    with about(run="demo-1"):
        log.error("flywheel")
    assert logs.environment() == {}
    assert capfd.readouterr() == ("", "")


def test_another_process_makes_the_same_choice(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", texts=True)
    assert logs.environment() == {"FLYWHEEL_LOG_FORMAT": "json", "FLYWHEEL_LOG_TEXTS": "1"}
    log.handlers[:] = [logging.NullHandler()]  # as in a process just started
    logs.adopt()
    logs.adopt()
    log.info("here", extra=fields({"answer": TEXT}))
    assert json.loads(capfd.readouterr().err)["answer"] == TEXT
