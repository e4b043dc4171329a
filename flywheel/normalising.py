"""Bring what was logged in other shapes into today's OpenAI chat format, and say what changed.

JSON text becomes values without broken characters, a timestamp becomes seconds, tool arguments
become one canonical text, ``functions`` and ``function_call`` become tools and tool calls, a list
of streamed chunks becomes one response. Each function adds what it changed to ``done``. None of
them judges: a part that has no shape to start from passes as it stands, and `flywheel.records`
rejects it for its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from flywheel.types import Json, Normalisation, canonical_json

MAX_DEPTH = 64
"""Deeper nesting is refused: later steps walk records recursively."""

CHUNK = "chat.completion.chunk"

Done = set[Normalisation]
"""What was changed so far."""

_MILLISECONDS_FROM = 1e11
"""Seconds would reach this in the year 5138; larger timestamps are milliseconds."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class ShapeError(ValueError):
    """A value is not of the kind it must be; the message quotes nothing of it."""


# JSON text


def load_json(text: str, done: Done) -> Any:
    """Parse strict JSON; half a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD.

    Raises:
        ValueError: Not JSON, a number that is not finite, or nesting beyond `MAX_DEPTH`. The
            message quotes nothing of the text.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError("is nested too deep")
    return _whole_characters(value, done) if _SURROGATE_ESCAPE.search(text) else value


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


def _whole_characters(value: Any, done: Done) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        done.add(Normalisation.BROKEN_CHARACTERS)
        raw = text.encode("utf-16-le", "surrogatepass")
        return json.loads(raw.decode("utf-16-le", "replace"))
    return value


# Timestamps and arguments


def seconds(value: Any, done: Done) -> float:
    """A timestamp as seconds since the epoch: logged so, in milliseconds, or as ISO 8601 text.

    Raises:
        ValueError: Neither of these, text without a time zone, or a time before 1970.
    """
    if isinstance(value, str):
        done.add(Normalisation.TIMESTAMP)
        return _moment(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ShapeError(f"is {kind(value)}, not seconds since the epoch")
    if not 0 < value < _MILLISECONDS_FROM * 1000:
        raise ValueError("is out of range")
    if value < _MILLISECONDS_FROM:
        return float(value)
    done.add(Normalisation.TIMESTAMP)
    return value / 1000


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is a text that is no ISO 8601 date") from None
    if moment.tzinfo is None:
        raise ValueError("is a date without a time zone")
    value = moment.timestamp()
    if not 0 < value < _MILLISECONDS_FROM:
        raise ValueError("is out of range")
    return value


def canonical_arguments(value: Any, done: Done) -> str:
    """Tool arguments as the one JSON text that equal arguments share; none at all is ``{}``.

    Raises:
        ValueError: No JSON, or not an object.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        done.add(Normalisation.EMPTY_ARGUMENTS)
        return "{}"
    parsed = load_json(value, done) if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        raise ShapeError(f"is {kind(parsed)}, not an object")
    text = canonical_json(parsed)
    if text != value:
        done.add(Normalisation.CANONICAL_ARGUMENTS)
    return text


# Functions, as they were called before there were tools


def modern_request(request: Json, done: Done) -> Json:
    """The request with tools for its ``functions``, in its history too.

    A call gets an id made from its place; the ``function`` message that answers it becomes a
    ``tool`` message of that id.
    """
    messages = _modern_messages(request["messages"])
    functions, choice = request.get("functions"), request.get("function_call")
    if messages == request["messages"] and functions is None and choice is None:
        return request
    done.add(Normalisation.LEGACY_FUNCTIONS)
    modern = {k: v for k, v in request.items() if k not in ("functions", "function_call")}
    modern["messages"] = messages
    if functions is not None:
        modern["tools"] = _with_functions(request.get("tools"), functions)
    if choice is not None and modern.get("tool_choice") is None:
        modern["tool_choice"] = _typed(choice) if isinstance(choice, dict) else choice
    return modern


def modern_choice(choice: Json, done: Done) -> Json:
    """The response's choice with a tool call for its ``function_call``."""
    message = choice["message"]
    if message.get("function_call") is None:
        return choice
    done.add(Normalisation.LEGACY_FUNCTIONS)
    called = choice.get("finish_reason") == "function_call"
    reason = {"finish_reason": "tool_calls"} if called else {}
    return {**choice, **reason, "message": _modern_call(message, "legacy_answer")}


def _modern_messages(messages: list[Any]) -> list[Any]:
    modern: list[Any] = []
    calls: dict[Any, str] = {}
    for i, message in enumerate(messages):
        legacy = message if isinstance(message, dict) else {}
        if legacy.get("function_call") is not None:
            calls[_name(legacy["function_call"])] = f"legacy_{i}"
            modern.append(_modern_call(legacy, f"legacy_{i}"))
        elif legacy.get("role") == "function":
            modern.append(_modern_result(legacy, calls.get(_name(legacy))))
        else:
            modern.append(message)
    return modern


def _modern_call(message: Json, call_id: str) -> Json:
    modern = {k: v for k, v in message.items() if k != "function_call"}
    # Some proxies log both forms of one call.
    if not modern.get("tool_calls"):
        modern["tool_calls"] = [{"id": call_id, **_typed(message["function_call"])}]
    return modern


def _modern_result(message: Json, call_id: str | None) -> Json:
    empty = {"content": ""} if message.get("content") is None else {}
    return {**message, **empty, "role": "tool", "tool_call_id": call_id}


def _with_functions(tools: Any, functions: Any) -> Any:
    if not isinstance(tools, list | None):
        return tools
    if not isinstance(functions, list):
        return functions
    return [*(tools or []), *map(_typed, functions)]


def _typed(function: Any) -> Json:
    return {"type": "function", "function": function}


def _name(function: Any) -> str | None:
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


# Streams


def assembled(response: Any, done: Done) -> Any:
    """One response out of streamed chunks: a list of them, ``{"chunks": [...]}``, or a single one.

    Anything else passes as it is. Texts are joined in order, tool calls by their index; ``usage``
    is that of the last chunk that has one.

    Raises:
        ShapeError: A chunk is malformed.
    """
    chunks = _chunks(response)
    if not any(isinstance(chunk, dict) and chunk.get("object") == CHUNK for chunk in chunks):
        return response
    done.add(Normalisation.STREAM_CHUNKS)
    whole = _latest(_objects(chunks, "a chunk"))
    pieces = [piece for chunk in chunks for piece in _pieces(chunk)]
    whole["choices"] = [_choice(i, group) for i, group in sorted(_by_index(pieces).items())]
    return {**whole, "object": "chat.completion"}


def _chunks(response: Any) -> list[Any]:
    if isinstance(response, dict) and "choices" not in response:
        response = response.get("chunks")
    return response if isinstance(response, list) else [response]


def _pieces(chunk: Json) -> list[Json]:
    choices = chunk.get("choices") or []
    if not isinstance(choices, list):
        raise ShapeError(f"holds {kind(choices)} for a chunk's choices")
    return _objects(choices, "a chunk's choice")


def _objects(values: Iterable[Any], what: str) -> list[Json]:
    objects = list(values)
    for value in objects:
        if not isinstance(value, dict):
            raise ShapeError(f"holds {kind(value)} for {what}")
    return objects


def _choice(index: int, pieces: list[Json]) -> Json:
    deltas = _objects((p.get("delta") or {} for p in pieces), "a delta")
    message = {"role": "assistant", "content": None, **_joined(deltas)}
    return {
        "index": index,
        "message": message,
        "finish_reason": _latest(pieces).get("finish_reason"),
    }


def _latest(objects: list[Json]) -> Json:
    """Of each field the last value that is not null."""
    return {k: v for each in objects for k, v in each.items() if v is not None}


def _joined(deltas: list[Json]) -> Json:
    fields: dict[str, list[Any]] = {}
    for delta in deltas:
        for key, value in delta.items():
            if value is not None:
                fields.setdefault(key, []).append(value)
    return {key: _value(key, values) for key, values in fields.items()}


def _value(key: str, values: list[Any]) -> Any:
    if key in ("role", "id", "type", "name"):  # said once; some servers repeat them
        return next(filter(None, values), values[0])
    if all(isinstance(v, str) for v in values):
        return "".join(values)
    if all(isinstance(v, dict) for v in values):
        return _joined(values)
    if key == "tool_calls" and all(isinstance(v, list) for v in values):
        pieces = _objects((call for calls in values for call in calls), "a piece of a tool call")
        return [_call(group) for _, group in sorted(_by_index(pieces).items())]
    return values[-1]


def _call(pieces: list[Json]) -> Json:
    call = {"type": "function", **_joined(pieces)}
    call.pop("index", None)
    return call


def _by_index(pieces: list[Json]) -> dict[int, list[Json]]:
    """Pieces that belong together; where a server leaves the index out, an id begins a new one."""
    groups: dict[int, list[Json]] = {}
    last, last_id = 0, None
    for piece in pieces:
        index, piece_id = piece.get("index"), piece.get("id") or last_id
        if not isinstance(index, int):
            index = last + (piece_id != last_id and bool(groups))
        groups.setdefault(index, []).append(piece)
        last, last_id = index, piece_id
    return groups


def kind(value: Any) -> str:
    """What a JSON value is, for a sentence about it."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return "missing" if value is None else names.get(type(value), "a number")
