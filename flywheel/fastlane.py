"""The fast lane of `flywheel.records.parse_line`, for lines of the plain shape.

Most of a workload's lines are one conversation of plain messages with the same tool list and
settings as thousands before. Such a line is decoded and its shape checked by msgspec; each distinct
tool list, system prompt and set of settings is looked at once. Whatever is not plain (an unknown
field, parts, legacy calls, a fault of any kind) gets no answer here but from `parse_line`: this
lane makes no rules of its own, and a test holds that it never says anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, convert

from flywheel.datasets.keys import Said, links
from flywheel.records import parse_line
from flywheel.redaction import needs_masking
from flywheel.schemas import Signature, signature
from flywheel.types import (
    Json,
    Normalisation,
    Record,
    canonical_json,
    digest,
    json_bytes,
    settings_of,
)

_REMEMBERED = 4096
"""Distinct values of a kind that are kept; beyond, all are forgotten."""
_MOST_BRACKETS = 48
"""What holds more may be nested too deep; the slow lane counts exactly."""
_LATEST = 1e11
"""Seconds; larger timestamps are milliseconds, which the slow lane notes."""
_SPOKEN = ("user", "system", "developer")
_TOOL_RESULT = {"role", "content", "tool_call_id"}


class _NotPlainError(Exception):
    """The line belongs to the slow lane."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    timestamp: int | float
    workload_id: str
    client_id: str
    request: dict[str, msgspec.Raw]
    response: msgspec.Raw


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    arguments: Annotated[str, Meta(min_length=1)]


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: _Function


_Calls = Annotated[list[_Call], Meta(min_length=1)]


class _Earlier(msgspec.Struct, forbid_unknown_fields=True):
    """An assistant's message of the conversation."""

    role: Literal["assistant"]
    content: str | None = None
    tool_calls: _Calls | UnsetType = UNSET


class _Answer(_Earlier, forbid_unknown_fields=True):
    refusal: None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    message: _Answer
    index: int = 0
    finish_reason: Literal["stop", "tool_calls"] | None = None
    logprobs: None = None


class _Response(msgspec.Struct):
    choices: Annotated[list[_Choice], Meta(min_length=1, max_length=1)]
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """A distinct tool list, looked at once."""

    value: list[Json] | None
    """``None`` where the request has none."""
    text: bytes | None
    """As it is stored."""
    digest: bytes
    signatures: dict[str, Signature]
    """By tool name."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a request says besides messages and tools, looked at once."""

    values: Json
    """In logged order, ``None`` in the place of the messages."""
    before: bytes
    """The request's JSON text up to its first message."""
    after: bytes
    """The text after its last."""
    digest: bytes
    links: bytes
    clean: bool
    """Whether there certainly is nothing to mask."""


class Message(msgspec.Struct):
    """One message of a conversation."""

    value: Json
    text: bytes
    """As it is stored."""
    said: Said
    clean: bool
    """Whether there certainly is nothing to mask; known of those that repeat."""

    @classmethod
    def of(cls, value: Json) -> Message:
        """A message of which nothing is known."""
        return cls(value, json_bytes(value), Said.of(value), clean=False)


class Plain(msgspec.Struct):
    """A record taken apart: what a row needs, without building a `Record`."""

    timestamp: float
    workload_id: str
    client_id: str
    settings: Settings
    messages: list[Message]
    tools: Tools
    response: Json
    normalisations: tuple[Normalisation, ...]

    @property
    def answer(self) -> Json:
        """Production's message."""
        message: Json = self.response["choices"][0]["message"]
        return message

    @property
    def request(self) -> Json:
        """The request without its tools."""
        return {**self.settings.values, "messages": [message.value for message in self.messages]}

    def request_text(self) -> bytes:
        """The same as it is stored."""
        texts = b",".join([message.text for message in self.messages])
        return b"%b%b%b" % (self.settings.before, texts, self.settings.after)

    def rest(self) -> bytes:
        """JSON text of what is neither message nor response."""
        return b"\n".join([self.settings.before, self.settings.after, self.tools.text or b""])

    def saying(self, messages: list[Json], response: Json) -> Plain:
        """The same with other messages and another response; what is the same object stays."""
        told = [
            old if new is old.value else Message.of(new)
            for new, old in zip(messages, self.messages, strict=True)
        ]
        return msgspec.structs.replace(self, messages=told, response=response)

    def record(self) -> Record:
        """The `Record` that `parse_line` gives for the same line."""
        tools = {} if self.tools.value is None else {"tools": self.tools.value}
        where = (self.timestamp, self.workload_id, self.client_id)
        request = {**self.request, **tools}
        return Record(*where, request, self.response, normalisations=self.normalisations)


NO_TOOLS = Tools(None, None, digest([]), {})


class FastLane:
    """Remembers what repeats from line to line, and nothing else."""

    def __init__(self, *, keep_violations: bool = False) -> None:
        """See `flywheel.records.parse_line`."""
        self._keep_violations = keep_violations
        self._decode = msgspec.json.Decoder(_Line).decode
        self._any = msgspec.json.Decoder().decode
        self._list = msgspec.json.Decoder(list[msgspec.Raw]).decode
        self._tools: dict[bytes, Tools] = {}
        self._messages: dict[bytes, Message] = {}
        self._settings: dict[tuple[tuple[str, bytes], ...], Settings] = {}

    def parse(self, line: bytes) -> Plain | None:
        """A line of the plain shape, or ``None``."""
        try:
            if not line.isascii():
                line.decode()
            return self._parse(self._decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _NotPlainError):
            return None

    def _parse(self, log: _Line) -> Plain:
        raw = log.request
        tools = self._known_tools(raw.pop("tools", None))
        _need(0 < log.timestamp < _LATEST)
        _need(bool(log.workload_id.strip() and log.client_id.strip()))
        _need("messages" in raw)
        said, raw["messages"] = raw["messages"], _PLACE
        settings = self._known_settings(raw)
        changed: set[Normalisation] = set()
        messages = self._conversation(said, changed)
        response = self._shallow(bytes(log.response))
        self._check_response(response, tools, changed)
        return Plain(
            float(log.timestamp),
            log.workload_id,
            log.client_id,
            settings,
            messages,
            tools,
            response,
            tuple(sorted(changed)),
        )

    def _shallow(self, text: bytes) -> Any:
        """Decode what certainly is not nested too deep, arguments in it included."""
        _need(text.count(b"{") + text.count(b"[") <= _MOST_BRACKETS)
        return self._any(text)

    def _known_tools(self, raw: msgspec.Raw | None) -> Tools:
        if raw is None:
            return NO_TOOLS
        text = bytes(raw)
        tools = self._tools.get(text)
        if tools is None:
            _forget(self._tools)
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
        stored = json_bytes(value)
        _need(bool(value) and not needs_masking(stored))
        functions = [tool["function"] for tool in value]
        signatures = {f["name"]: signature(f.get("parameters")) for f in functions}
        return Tools(value, stored, digest(value), signatures)

    def _known_settings(self, raw: dict[str, msgspec.Raw]) -> Settings:
        key = tuple([(name, bytes(value)) for name, value in raw.items()])
        settings = self._settings.get(key)
        if settings is None:
            _forget(self._settings)
            settings = self._settings[key] = self._look_over(raw)
        return settings

    def _look_over(self, raw: dict[str, msgspec.Raw]) -> Settings:
        _need("functions" not in raw and "function_call" not in raw)
        values = {name: self._shallow(bytes(value)) for name, value in raw.items()}
        rest = settings_of(values)
        names = list(values)
        at = names.index("messages")
        before, after = (
            {name: values[name] for name in part} for part in (names[:at], names[at + 1 :])
        )
        head = json_bytes(before)[:-1] + (b"," if before else b"")
        tail = (b"," if after else b"") + json_bytes(after)[1:]
        text = head + b'"messages":[', b"]" + tail
        return Settings(
            values, *text, digest(rest), links(rest), not needs_masking(json_bytes(rest))
        )

    def _conversation(self, raw: msgspec.Raw, changed: set[Normalisation]) -> list[Message]:
        messages, asked = [], set[str]()
        for said in self._list(raw):
            text = bytes(said)
            message = self._messages.get(text)
            if message is None:
                message = self._message(text, asked, changed)
            messages.append(message)
        _need(bool(messages))
        return messages

    def _message(self, text: bytes, asked: set[str], changed: set[Normalisation]) -> Message:
        value = self._shallow(text)
        _need(type(value) is dict)
        role, content = value.get("role"), value.get("content")
        if role in _SPOKEN:
            _need(len(value) == 2 and type(content) is str)
        elif role == "assistant":
            asked.update(self._check_earlier(value, changed))
        else:
            _need(role == "tool" and value.keys() == _TOOL_RESULT and type(content) is str)
            _need(value["tool_call_id"] in asked)
        message = Message.of(value)
        if role in ("system", "developer"):
            message.clean = not needs_masking(message.text)
            _forget(self._messages)
            self._messages[text] = message
        return message

    def _check_earlier(self, message: Json, changed: set[Normalisation]) -> list[str]:
        """The ids of the calls that an earlier answer made."""
        checked = convert(message, _Earlier)
        if checked.tool_calls is UNSET:
            _need(type(checked.content) is str)
            return []
        self._canonical(message["tool_calls"], changed)
        return [call.id for call in checked.tool_calls]

    def _check_response(self, response: Json, tools: Tools, changed: set[Normalisation]) -> None:
        answer = convert(response, _Response).choices[0].message
        if answer.tool_calls is UNSET:
            _need(type(answer.content) is str and bool(answer.content.strip()))
            return
        calls = response["choices"][0]["message"]["tool_calls"]
        arguments = self._canonical(calls, changed)
        if tools.signatures:
            self._check_signatures(calls, arguments, tools, changed)

    def _canonical(self, calls: list[Json], changed: set[Normalisation]) -> list[Json]:
        """Put the calls' arguments into canonical form, in place, and give them parsed."""
        parsed = []
        for call in calls:
            function = call["function"]
            logged = function["arguments"]
            value = self._any(logged)
            _need(type(value) is dict and bool(function["name"].strip()))
            canonical = canonical_json(value)
            if canonical != logged:
                function["arguments"] = canonical
                changed.add(Normalisation.CANONICAL_ARGUMENTS)
            parsed.append(value)
        return parsed

    def _check_signatures(
        self, calls: list[Json], arguments: list[Json], tools: Tools, changed: set[Normalisation]
    ) -> None:
        for call, value in zip(calls, arguments, strict=True):
            signature = tools.signatures.get(call["function"]["name"])
            if signature is None or signature.contradiction(value, call["function"]["arguments"]):
                _need(self._keep_violations)
                changed.add(Normalisation.VIOLATES_SCHEMA)


_PLACE = msgspec.Raw(b"null")
"""Where the messages stood."""


def _forget(remembered: dict[Any, Any]) -> None:
    if len(remembered) >= _REMEMBERED:
        remembered.clear()


def _need(plain: bool) -> None:
    if not plain:
        raise _NotPlainError
