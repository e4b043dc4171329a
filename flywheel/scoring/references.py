"""A ground-truth file: what the right answer to a record is, in place of what production said.

JSON Lines, one object each: ``{"id": "<record id>", "expected": "<text>"}``, or in place of the
text an assistant's message as the OpenAI chat API has it, tool calls included. Answers are masked
as the records were. Scores by such a file are others than those by production's answers, so the
hash of what it says is part of every trial's key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from flywheel.errors import ConfigError
from flywheel.redaction import Redactor, redactor
from flywheel.types import Json, Record, content_hash

MISSING = "no_reference"
"""Why a record that the file does not name is not scored."""
MAX_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class References:
    """The expected message by record id."""

    messages: Mapping[str, Json]
    identity: str
    """The hash of what is expected of which record."""

    def of(self, record: Record) -> Record | None:
        """The record with what is expected as its answer; ``None`` where nothing is."""
        message = self.messages.get(record.id)
        if message is None:
            return None
        return replace(record, response={"choices": [{"message": message}]})

    def rows(self) -> Iterator[Json]:
        """The file again, as it is kept beside a run."""
        return ({"id": name, "expected": message} for name, message in self.messages.items())

    @classmethod
    def of_rows(cls, rows: Iterator[Json]) -> References:
        """Inverse of `rows`."""
        return _references({row["id"]: row["expected"] for row in rows})


def read(path: str, masking: bool | str) -> References:
    """Read a ground-truth file; reading it again unchanged costs nothing.

    Args:
        path: Where it is.
        masking: As ``dataset.masking`` of the experiment file.

    Raises:
        ConfigError: It cannot be read, or a line is wrong; names the line.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 -- told apart by time and size
    except OSError as error:
        raise ConfigError(f"scoring.references: {path} cannot be read ({error.strerror})") from None
    if found.st_size > MAX_BYTES:
        raise ConfigError(f"scoring.references: {path} is larger than {MAX_BYTES:,} bytes")
    mode = masking if isinstance(masking, str) else "on" if masking else "off"
    return _read(path, mode, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _read(path: str, mode: str, mtime_ns: int, size: int) -> References:
    mask, messages = redactor(mode), dict[str, Json]()
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"scoring.references: {path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, message = _entry(line, messages)
        except ValueError as error:
            raise ConfigError(f"scoring.references: {path}:{number}: {error}") from None
        messages[name] = _masked(message, mask)
    if not messages:
        raise ConfigError(f"scoring.references: {path} holds no answer")
    return _references(messages)


def _references(messages: Mapping[str, Json]) -> References:
    return References(messages, content_hash(messages))


def _entry(line: bytes, known: Mapping[str, Json]) -> tuple[str, Json]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(row, dict) or row.keys() != {"id", "expected"}:
        raise ValueError('must be an object with "id" and "expected", and nothing else')
    name, expected = row["id"], row["expected"]
    if not isinstance(name, str) or not name:
        raise ValueError("id must be the id of a record")
    if name in known:
        raise ValueError(f"record {name} is there twice")
    return name, _message(expected)


def _message(expected: Any) -> Json:
    if isinstance(expected, str):
        return {"role": "assistant", "content": expected}
    if not isinstance(expected, dict) or not expected.keys() & {"content", "tool_calls"}:
        raise ValueError("expected must be a text, or a message with content or tool_calls")
    calls, content = expected.get("tool_calls") or [], expected.get("content")
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise ValueError("expected.tool_calls must be calls as the OpenAI chat API has them")
    if not (content is None or isinstance(content, str | list)):
        raise ValueError("expected.content must be text")
    return {"role": "assistant", **expected}


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return False
    return isinstance(function.get("name"), str) and isinstance(function.get("arguments"), str)


def _masked(message: Json, mask: Redactor) -> Json:
    alone = Record(0.0, "", "", {"messages": []}, {"choices": [{"message": message}]}, "expected")
    return mask(alone)[0].answer
