"""Turn one raw log line into a `Record`, or into a `Rejection` that says why not.

Log lines are hostile input: whatever stands there (broken JSON, numbers no float can hold, nesting
that would exhaust the stack, half a surrogate pair), the answer is one of the two, never an
exception. Checks run from the outside in, so a line with several faults is counted by the
outermost. Details name places and types, and quote nothing but a masked role. What older clients
and streams log is brought into today's shape first; a Record says which changes that took.
"""

from __future__ import annotations

from typing import Any

from flywheel.normalising import (
    Done,
    assembled,
    canonical_arguments,
    kind,
    load_json,
    modern_choice,
    modern_request,
    seconds,
)
from flywheel.redaction import mask_text
from flywheel.schemas import violation
from flywheel.types import Json, Normalisation, Reason, Record, Rejection

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of OpenAI's chat format; the legacy ``function`` becomes ``tool`` before it is checked."""

_UNFINISHED = ("length", "content_filter")
_PARTS: dict[str, list[tuple[str, ...]]] = {
    "text": [("text",)],
    "refusal": [("refusal",)],
    "image_url": [("image_url", "url")],
    "input_audio": [("input_audio", "data"), ("input_audio", "format")],
}
"""Where parts of the known types hold their text. Parts of other types are kept as they are."""


class _UnfitError(Exception):
    """The line is no Record; carries what the Rejection will say."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_line(
    line: bytes | str, source: str, offset: int, *, keep_violations: bool = False
) -> Record | Rejection:
    """Validate one log line.

    Args:
        line: The line as logged, with or without its line break.
        source: The file or index it stands in.
        offset: Where it begins there; see `flywheel.types.Rejection`.
        keep_violations: An answer whose tool calls contradict the tools' own schemas becomes a
            Record that says so in its ``normalisations``, not a Rejection.

    Returns:
        The Record, unmasked and with tool-call arguments in canonical form; or the Rejection.
    """
    done: Done = set()
    try:
        return _record(_log_object(line, done), done, keep_violations)
    except _UnfitError as unfit:
        return Rejection(source, offset, unfit.reason, unfit.detail[:200])


def workload_of(line: bytes | str) -> str:
    """The workload a line names, rejected or not; empty where it names none."""
    try:
        return _name(_log_object(line, set()), "workload_id", Reason.MISSING_WORKLOAD_ID)
    except _UnfitError:
        return ""


def _log_object(line: bytes | str, done: Done) -> Json:
    raw = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    try:
        value = load_json(raw.decode("utf-8-sig"), done)
    except UnicodeDecodeError as error:
        raise _UnfitError(Reason.NOT_JSON, f"is not UTF-8 text at byte {error.start}") from None
    except ValueError as error:
        raise _UnfitError(Reason.NOT_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise _UnfitError(Reason.NOT_AN_OBJECT, f"is {kind(value)}, not an object")
    return value


def _record(log: Json, done: Done, keep_violations: bool) -> Record:
    workload_id = _name(log, "workload_id", Reason.MISSING_WORKLOAD_ID)
    client_id = _name(log, "client_id", Reason.MISSING_CLIENT_ID)
    timestamp = _timestamp(log.get("timestamp"), done)
    request = _request(log.get("request"), done)
    response = _response(log.get("response"), done)
    if fault := _violation(request, response):
        if not keep_violations:
            raise _UnfitError(Reason.REFERENCE_VIOLATES_SCHEMA, fault)
        done.add(Normalisation.VIOLATES_SCHEMA)
    changes = tuple(sorted(done))
    return Record(timestamp, workload_id, client_id, request, response, normalisations=changes)


def _name(log: Json, key: str, reason: Reason) -> str:
    value = log.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _UnfitError(reason, f"{key} is {kind(value)}, not a name")
    return value


def _timestamp(value: Any, done: Done) -> float:
    try:
        return seconds(value, done)
    except ValueError as error:
        raise _UnfitError(Reason.BAD_TIMESTAMP, f"timestamp {error}") from None


def _violation(request: Json, response: Json) -> str:
    calls = response["choices"][0]["message"].get("tool_calls") or []
    return violation(calls, request.get("tools") or [])


# The request


def _request(value: Any, done: Done) -> Json:
    if not isinstance(value, dict):
        raise _UnfitError(Reason.MISSING_REQUEST, f"request is {kind(value)}, not an object")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _UnfitError(Reason.EMPTY_MESSAGES, "request.messages holds no message")
    request = modern_request(value, done)
    checked = [_message(m, f"messages[{i}]", done) for i, m in enumerate(request["messages"])]
    _check_results(checked)
    _check_tools(request.get("tools"))
    return {**request, "messages": checked}


def _message(message: Any, where: str, done: Done) -> Json:
    if not isinstance(message, dict):
        raise _UnfitError(Reason.BAD_MESSAGE, f"{where} is {kind(message)}, not an object")
    role = message.get("role")
    if role not in ROLES:
        raise _unknown_role(role, where)
    calls = _tool_calls(message.get("tool_calls"), where, done)
    if calls and role != "assistant":
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where} calls tools, but is no assistant's")
    silent = calls or message.get("refusal") or message.get("audio")
    _check_content(message, where, may_be_empty=role == "assistant" and bool(silent))
    return {**message, "tool_calls": calls} if calls else message


def _unknown_role(role: Any, where: str) -> _UnfitError:
    shown = mask_text(str(role)[:200])[:40]
    return _UnfitError(Reason.UNKNOWN_ROLE, f"{where}.role is {shown!r}")


def _check_content(message: Json, where: str, may_be_empty: bool) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and may_be_empty):
        return
    if not isinstance(content, list) or not content:
        what = "empty" if content == [] else kind(content)
        raise _UnfitError(Reason.BAD_MESSAGE, f"{where}.content is {what}, not a text")
    for i, part in enumerate(content):
        _check_part(part, f"{where}.content[{i}]")


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _UnfitError(Reason.BAD_MESSAGE, f"{where} has no type")
    for path in _PARTS.get(part["type"], []):
        value: Any = part
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            raise _UnfitError(Reason.BAD_MESSAGE, f"{where} has no {'.'.join(path)}")


def _check_results(messages: list[Json]) -> None:
    """Each tool result answers a call of an earlier message.

    Some loggers leave the ids of calls out; a result may answer any of those.
    """
    asked: set[str | None] = set()
    for i, message in enumerate(messages):
        asked |= {call.get("id") or None for call in message.get("tool_calls") or []}
        if message["role"] != "tool" or None in asked:
            continue
        answered = message.get("tool_call_id")
        if not isinstance(answered, str) or answered not in asked:
            raise _UnfitError(Reason.BAD_TOOL_RESULT, f"messages[{i}] answers no earlier tool call")


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _UnfitError(Reason.BAD_TOOLS, f"request.tools is {kind(tools)}, not a list")
    for i, tool in enumerate(tools):
        if not _is_function(tool):
            raise _UnfitError(Reason.BAD_TOOLS, f"request.tools[{i}] is no named function")
        if not isinstance(tool["function"].get("parameters"), dict | None):
            raise _UnfitError(Reason.BAD_TOOLS, f"request.tools[{i}] has no parameter schema")


# The response


def _response(value: Any, done: Done) -> Json:
    try:
        value = assembled(value, done)
    except ValueError as error:
        raise _UnfitError(Reason.MISSING_RESPONSE, f"response {error}") from None
    if not isinstance(value, dict):
        raise _UnfitError(Reason.MISSING_RESPONSE, f"response is {kind(value)}, not an object")
    if not isinstance(value.get("usage"), dict | None):
        detail = f"response.usage is {kind(value['usage'])}, not an object"
        raise _UnfitError(Reason.MISSING_RESPONSE, detail)
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _UnfitError(Reason.EMPTY_CHOICES, "response.choices holds no answer")
    return {**value, "choices": [_choice(choices[0], done), *choices[1:]]}


def _choice(choice: Any, done: Done) -> Json:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise _UnfitError(Reason.NO_ANSWER, "response.choices[0] holds no message")
    choice = modern_choice(choice, done)
    _check_finished(choice.get("finish_reason"), streamed=Normalisation.STREAM_CHUNKS in done)
    return {**choice, "message": _answer(choice["message"], done)}


def _check_finished(reason: Any, streamed: bool) -> None:
    if reason in _UNFINISHED:
        raise _UnfitError(Reason.UNFINISHED_ANSWER, f"the answer was cut off ({reason})")
    if streamed and reason is None:
        raise _UnfitError(Reason.UNFINISHED_ANSWER, "the stream ends before the answer does")


def _answer(message: Json, done: Done) -> Json:
    where = "response.choices[0].message"
    if message.get("role") not in ("assistant", None):
        raise _unknown_role(message["role"], where)
    calls, content = _tool_calls(message.get("tool_calls"), where, done), message.get("content")
    if not calls and not _filled(content) and _filled(message.get("refusal")):
        raise _UnfitError(Reason.REFUSAL, "the model refused to answer")
    if not isinstance(content, str) and not (calls and content is None):
        raise _UnfitError(Reason.NO_ANSWER, f"the answer's content is {kind(content)}, not a text")
    if not calls and not _filled(content):
        raise _UnfitError(Reason.NO_ANSWER, "the answer has neither text nor tool calls")
    return {**message, "tool_calls": calls} if calls else message


# Tool calls, of the answer and of the history


def _tool_calls(calls: Any, where: str, done: Done) -> list[Json]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where}.tool_calls is {kind(calls)}, not a list")
    return [_tool_call(call, f"{where}.tool_calls[{i}]", done) for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str, done: Done) -> Json:
    if not _is_function(call):
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where} is no call of a named function")
    if not isinstance(call.get("id"), str | None):
        raise _UnfitError(Reason.BAD_TOOL_CALL, f"{where}.id is {kind(call['id'])}, not a text")
    try:
        arguments = canonical_arguments(call["function"].get("arguments"), done)
    except ValueError as error:
        detail = f"{where}.arguments {error}"
        raise _UnfitError(Reason.TOOL_ARGUMENTS_NOT_JSON, detail) from None
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _is_function(value: Any) -> bool:
    """Whether a tool, or a call of one, is a function with a name."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not _filled(function.get("name")):
        return False
    return bool(value.get("type", "function") == "function")


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
