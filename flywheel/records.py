"""Turn one raw log line into a `Record`, or into a `Rejection` that says why not.

Log lines are hostile input: whatever stands there (broken JSON, numbers no float can hold, nesting
that would exhaust the stack, half a surrogate pair), the answer is one of the two, never an
exception. Checks run from the outside in, so a line with several faults is counted by the
outermost. Details name places and types, and quote nothing but a masked role.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from flywheel.redaction import mask_text
from flywheel.types import Json, Reason, Record, Rejection, canonical_json

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles of OpenAI's chat format, the legacy ``function`` included."""

MAX_DEPTH = 64
"""Deeper nesting is refused: later steps walk records recursively."""

_UNFINISHED = ("length", "content_filter")
_MILLISECONDS_FROM = 1e11
"""Seconds would reach this in the year 5138; larger timestamps are milliseconds."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _UnfitError(Exception):
    """The line is no Record; carries what the Rejection will say."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_line(line: bytes | str, source: str, position: int) -> Record | Rejection:
    """Validate one log line.

    Args:
        line: The line as logged, with or without its line break.
        source: The file or index it stands in.
        position: Its line number there, from 1.

    Returns:
        The Record, unmasked and with tool-call arguments in canonical form; or the Rejection.
    """
    try:
        return _record(_log_object(line))
    except _UnfitError as unfit:
        return Rejection(source, position, unfit.reason, unfit.detail[:200])


def workload_of(line: bytes | str) -> str:
    """The workload a line names, rejected or not; empty where it names none."""
    try:
        return _name(_log_object(line), "workload_id", Reason.MISSING_WORKLOAD_ID)
    except _UnfitError:
        return ""


def _log_object(line: bytes | str) -> Json:
    raw = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    try:
        value = _load(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _UnfitError(Reason.NOT_JSON, f"is not UTF-8 text at byte {error.start}") from None
    except ValueError as error:
        raise _UnfitError(Reason.NOT_JSON, _json_fault(error)) from None
    if not isinstance(value, dict):
        raise _UnfitError(Reason.NOT_AN_OBJECT, f"is a JSON {_kind(value)}, not an object")
    return value


def _record(log: Json) -> Record:
    return Record(
        workload_id=_name(log, "workload_id", Reason.MISSING_WORKLOAD_ID),
        client_id=_name(log, "client_id", Reason.MISSING_CLIENT_ID),
        timestamp=_timestamp(log.get("timestamp")),
        request=_request(log.get("request")),
        response=_response(log.get("response")),
    )


def _name(log: Json, key: str, reason: Reason) -> str:
    value = log.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _UnfitError(reason, f"{key} is {_kind(value)}, not a text")
    return value


def _timestamp(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnfitError(
            Reason.BAD_TIMESTAMP, f"timestamp is {_kind(value)}, not seconds since the epoch"
        )
    if not 0 < value < _MILLISECONDS_FROM * 1000:
        raise _UnfitError(Reason.BAD_TIMESTAMP, "timestamp is out of range")
    return float(value) if value < _MILLISECONDS_FROM else value / 1000


def _request(value: Any) -> Json:
    if not isinstance(value, dict):
        raise _UnfitError(Reason.MISSING_REQUEST, f"request is {_kind(value)}, not an object")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _UnfitError(Reason.EMPTY_MESSAGES, "request.messages holds no message")
    checked = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    _check_tools(value.get("tools"))
    return {**value, "messages": checked}


def _message(message: Any, where: str) -> Json:
    if not isinstance(message, dict):
        raise _UnfitError(Reason.BAD_MESSAGE, f"{where} is {_kind(message)}, not an object")
    if message.get("role") not in ROLES:
        shown = mask_text(str(message.get("role"))[:200])[:40]
        raise _UnfitError(Reason.UNKNOWN_ROLE, f"{where}.role is {shown!r}")
    calls = _tool_calls(message.get("tool_calls"), where)
    _check_content(message, where, may_be_empty=bool(calls) and message["role"] == "assistant")
    return {**message, "tool_calls": calls} if calls else message


def _check_content(message: Json, where: str, may_be_empty: bool) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and may_be_empty):
        return
    if not isinstance(content, list):
        raise _UnfitError(Reason.BAD_MESSAGE, f"{where}.content is {_kind(content)}, not a text")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _UnfitError(Reason.BAD_MESSAGE, f"{where}.content[{i}] has no type")


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _UnfitError(Reason.BAD_TOOLS, f"request.tools is {_kind(tools)}, not a list")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not _filled(function.get("name")):
            raise _UnfitError(Reason.BAD_TOOLS, f"request.tools[{i}] is no named function")
        if not isinstance(function.get("parameters"), dict | None):
            raise _UnfitError(Reason.BAD_TOOLS, f"request.tools[{i}] has no parameter schema")


def _response(value: Any) -> Json:
    if not isinstance(value, dict):
        raise _UnfitError(Reason.MISSING_RESPONSE, f"response is {_kind(value)}, not an object")
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _UnfitError(Reason.EMPTY_CHOICES, "response.choices holds no answer")
    return {**value, "choices": [_choice(choices[0]), *choices[1:]]}


def _choice(choice: Any) -> Json:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise _UnfitError(Reason.NO_ANSWER, "response.choices[0] holds no message")
    if choice.get("finish_reason") in _UNFINISHED:
        raise _UnfitError(
            Reason.UNFINISHED_ANSWER, f"the answer was cut off ({choice['finish_reason']})"
        )
    calls = _tool_calls(message.get("tool_calls"), "response.choices[0].message")
    content = message.get("content")
    if not (calls and content is None) and not isinstance(content, str):
        raise _UnfitError(Reason.NO_ANSWER, f"the answer's content is {_kind(content)}, not a text")
    if not calls and not _filled(content):
        raise _UnfitError(Reason.NO_ANSWER, "the answer has neither text nor tool calls")
    return {**choice, "message": {**message, "tool_calls": calls} if calls else message}


def _tool_calls(calls: Any, where: str) -> list[Json]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where}.tool_calls is {_kind(calls)}, not a list")
    return [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _filled(function.get("name")):
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where} is no named function")
    if call.get("type", "function") != "function":
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where}.type is not function")
    arguments = _arguments(function.get("arguments"), where)
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(value: Any, where: str) -> str:
    """Arguments as the one JSON text that equal arguments share; none at all is ``{}``."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    if isinstance(value, str):
        try:
            value = _load(value)
        except ValueError as error:
            detail = f"{where}.arguments: {_json_fault(error)}"
            raise _UnfitError(Reason.TOOL_ARGUMENTS_NOT_JSON, detail) from None
    if not isinstance(value, dict):
        detail = f"{where}.arguments is {_kind(value)}, not an object"
        raise _UnfitError(Reason.TOOL_ARGUMENTS_NOT_JSON, detail)
    return canonical_json(value)


def _load(text: str) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: Not JSON, a number that is not finite, or nesting beyond `MAX_DEPTH`.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError("is nested too deep")
    return _whole_characters(value) if _SURROGATE_ESCAPE.search(text) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("holds a number too large for a float")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [v for v in level if isinstance(v, dict | list)]
        if not level:
            return False
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return True


def _whole_characters(value: Any) -> Any:
    """Put U+FFFD where half a surrogate pair stands, as UTF-8 cannot carry it."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
    return json.loads(text.decode("utf-16-le", "replace"))


def _json_fault(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    # The interpreter's own message quotes nothing: ours, or its limit on digits of an integer.
    return str(error)


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return "missing" if value is None else names.get(type(value), "a number")
