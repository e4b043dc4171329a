"""The fast lane of `flywheel.records.parse_line`, for lines of the plain shape.

Most of a workload's lines are one conversation of plain messages with the same tool list and
settings as thousands before. Such a line is decoded by msgspec, and each distinct tool list
is looked at once. Whatever is not plain (an unknown field, parts, legacy calls, a fault of
any kind) gets no answer here but from `parse_line`: this lane makes no rules of its own, and a
test holds that it never says anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from flywheel.records import parse_line
from flywheel.redaction import needs_masking
from flywheel.schemas import Signature, signature
from flywheel.types import (
    Json,
    Normalisation,
    Record,
    canonical_json,
    json_text,
    tools_digest,
)

_REMEMBERED = 4096
"""Distinct tool lists kept; beyond, all are forgotten."""
_MOST_BRACKETS = 48
"""Lines with more outside their tools may be nested too deep; the slow lane counts exactly."""
_LATEST = 1e11
"""Seconds; larger timestamps are milliseconds, which the slow lane notes."""
_SPOKEN = ("user", "system", "developer")
_CALL = {"id", "type", "function"}
_FUNCTION = {"name", "arguments"}
_ASSISTANT = {"role", "content", "tool_calls"}
_TOOL_RESULT = {"role", "content", "tool_call_id"}
_ANSWER = {"role", "content", "tool_calls", "refusal"}
_FINISHED = ("stop", "tool_calls", None)


class _NotPlainError(Exception):
    """The line belongs to the slow lane."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    timestamp: int | float
    workload_id: str
    client_id: str
    request: dict[str, msgspec.Raw]
    response: Json


@dataclass(frozen=True, slots=True)
class Tools:
    """A distinct tool list, looked at once."""

    value: list[Json] | None
    """``None`` where the request has none."""
    text: str | None
    """As it is stored."""
    digest: bytes
    signatures: dict[str, Signature]
    """By tool name."""
    brackets: int


@dataclass(slots=True)
class Plain:
    """A record taken apart: what a row needs, without building a `Record`."""

    timestamp: float
    workload_id: str
    client_id: str
    request: Json
    """Without tools."""
    tools: Tools
    response: Json
    normalisations: tuple[Normalisation, ...]

    @property
    def answer(self) -> Json:
        """Production's message."""
        message: Json = self.response["choices"][0]["message"]
        return message

    def record(self) -> Record:
        """The `Record` that `parse_line` gives for the same line."""
        tools = {} if self.tools.value is None else {"tools": self.tools.value}
        where = (self.timestamp, self.workload_id, self.client_id)
        request = {**self.request, **tools}
        return Record(*where, request, self.response, normalisations=self.normalisations)


NO_TOOLS = Tools(None, None, tools_digest([]), {}, 0)


class FastLane:
    """Remembers what repeats from line to line, and nothing else."""

    def __init__(self, *, keep_violations: bool = False) -> None:
        """See `flywheel.records.parse_line`."""
        self._keep_violations = keep_violations
        self._decode = msgspec.json.Decoder(_Line).decode
        self._any = msgspec.json.Decoder().decode
        self._tools: dict[bytes, Tools] = {}

    def parse(self, line: bytes) -> Plain | None:
        """A line of the plain shape, or ``None``."""
        try:
            if not line.isascii():
                line.decode()
            return self._parse(self._decode(line), line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _NotPlainError):
            return None

    def _parse(self, log: _Line, line: bytes) -> Plain:
        raw = log.request
        tools = self._known_tools(raw.pop("tools", None))
        _need(line.count(b"{") + line.count(b"[") - tools.brackets <= _MOST_BRACKETS)
        _need(0 < log.timestamp < _LATEST)
        _need(bool(log.workload_id.strip() and log.client_id.strip()))
        _need("functions" not in raw and "function_call" not in raw)
        changed: set[Normalisation] = set()
        request = {name: self._any(value) for name, value in raw.items()}
        self._check_messages(request.get("messages"), changed)
        self._check_response(log.response, tools, changed)
        return Plain(
            float(log.timestamp),
            log.workload_id,
            log.client_id,
            request,
            tools,
            log.response,
            tuple(sorted(changed)),
        )

    def _known_tools(self, raw: msgspec.Raw | None) -> Tools:
        if raw is None:
            return NO_TOOLS
        text = bytes(raw)
        tools = self._tools.get(text)
        if tools is None:
            if len(self._tools) >= _REMEMBERED:
                self._tools.clear()
            tools = self._tools[text] = self._look_at(text)
        return tools

    def _look_at(self, text: bytes) -> Tools:
        """Let `parse_line` judge a tool list, in a line that is otherwise beyond doubt."""
        line = b'{"timestamp":1,"workload_id":"w","client_id":"c","request":{"messages":[{"role":'
        line += b'"user","content":"q"}],"tools":' + text + b'},"response":{"choices":[{"message":'
        line += b'{"role":"assistant","content":"a"}}]}}'
        judged = parse_line(line, "", 0)
        value = self._any(text)
        _need(isinstance(judged, Record) and not judged.normalisations and judged.tools == value)
        stored = json_text(value)
        _need(bool(value) and not needs_masking(stored))
        functions = [tool["function"] for tool in value]
        signatures = {f["name"]: signature(f.get("parameters")) for f in functions}
        brackets = text.count(b"{") + text.count(b"[")
        return Tools(value, stored, tools_digest(value), signatures, brackets)

    def _check_messages(self, messages: Any, changed: set[Normalisation]) -> None:
        _need(type(messages) is list and bool(messages))
        asked: set[str] = set()
        for message in messages:
            _need(type(message) is dict)
            role, content = message.get("role"), message.get("content")
            if role in _SPOKEN:
                _need(len(message) == 2 and type(content) is str)
            elif role == "assistant":
                _need(message.keys() <= _ASSISTANT)
                asked.update(self._check_said(message, content, changed))
            else:
                _need(role == "tool" and message.keys() == _TOOL_RESULT and type(content) is str)
                _need(message["tool_call_id"] in asked)

    def _check_said(self, message: Json, content: Any, changed: set[Normalisation]) -> list[str]:
        """The ids of the calls that an earlier answer made."""
        calls = message.get("tool_calls")
        if not calls:
            _need("tool_calls" not in message and type(content) is str)
            return []
        _need(content is None or type(content) is str)
        self._check_calls(calls, changed)
        return [call["id"] for call in calls]

    def _check_response(self, response: Json, tools: Tools, changed: set[Normalisation]) -> None:
        _need(isinstance(response.get("usage"), dict | None))
        choices: Any = response.get("choices")
        _need(type(choices) is list and len(choices) == 1 and type(choices[0]) is dict)
        choice: Json = choices[0]
        message: Any = choice.get("message")
        _need(choice.get("finish_reason") in _FINISHED and type(message) is dict)
        _need(not choice.keys() - {"index", "message", "finish_reason", "logprobs"})
        _need(choice.get("logprobs") is None and type(choice.get("index", 0)) is int)
        _need(message.keys() <= _ANSWER and message.get("refusal") is None)
        _need(message.get("role") == "assistant")
        content = message.get("content")
        if calls := message.get("tool_calls"):
            _need(content is None or type(content) is str)
            arguments = self._check_calls(calls, changed)
            self._check_signatures(calls, arguments, tools, changed)
        else:
            _need("tool_calls" not in message and type(content) is str and bool(content.strip()))

    def _check_calls(self, calls: Any, changed: set[Normalisation]) -> list[Json]:
        """Put the calls' arguments into canonical form, in place, and give them parsed."""
        _need(type(calls) is list)
        parsed = []
        for call in calls:
            _need(type(call) is dict and call.keys() == _CALL and call["type"] == "function")
            function = call["function"]
            _need(type(function) is dict and function.keys() == _FUNCTION)
            name, logged = function["name"], function["arguments"]
            _need(type(name) is str and bool(name.strip()))
            _need(type(logged) is str and bool(logged.strip()) and type(call["id"]) is str)
            value = self._any(logged)
            _need(type(value) is dict)
            canonical = canonical_json(value)
            if canonical != logged:
                function["arguments"] = canonical
                changed.add(Normalisation.CANONICAL_ARGUMENTS)
            parsed.append(value)
        return parsed

    def _check_signatures(
        self, calls: list[Json], arguments: list[Json], tools: Tools, changed: set[Normalisation]
    ) -> None:
        if not tools.signatures:
            return
        for call, value in zip(calls, arguments, strict=True):
            signature = tools.signatures.get(call["function"]["name"])
            if signature is None or signature.contradiction(value, call["function"]["arguments"]):
                _need(self._keep_violations)
                changed.add(Normalisation.VIOLATES_SCHEMA)


def _need(plain: bool) -> None:
    if not plain:
        raise _NotPlainError
