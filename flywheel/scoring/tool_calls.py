"""Tool calls, compared after parsing: which functions were called, and with which arguments.

Calls are multisets: their order is free, their number is not. A call that cannot be parsed is a
wrong answer, never a correct abstention; an argument that production did not send is wrong too.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from flywheel.scoring.text import one_space, text_of
from flywheel.types import Json, canonical_json

CALL_MARK = "<tool_call>"
"""In a message's text this is a call that the server's parser could not read."""

Call = tuple[str, str]
"""Function name, arguments as canonical JSON."""


def parse(message: Json) -> list[Call] | None:
    """The calls of an assistant message; ``None`` if one of them cannot be parsed."""
    if CALL_MARK in text_of(message):
        return None
    calls = message.get("tool_calls") or []
    try:
        return [_parse(call) for call in calls]
    except (TypeError, KeyError, ValueError, RecursionError):
        return None


def function_name(expected: Json, answer: Json) -> float | None:
    """1 if the same functions were called, arguments aside; also if neither called any."""
    return _compare(expected, answer, _names)


def name_and_arguments(expected: Json, answer: Json) -> float | None:
    """1 if the same functions were called with equal arguments; also if neither called any."""
    return _compare(expected, answer, list)


def _compare(expected: Json, answer: Json, view: Any) -> float | None:
    wanted, got = parse(expected), parse(answer)
    if wanted is None:
        return None
    return float(got is not None and Counter(view(wanted)) == Counter(view(got)))


def _names(calls: list[Call]) -> list[str]:
    return [name for name, _ in calls]


def _parse(call: Any) -> Call:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if not isinstance(name, str):
        raise TypeError("a function's name must be text")
    parsed = json.loads(arguments, parse_constant=_reject)
    if not isinstance(parsed, dict):
        raise TypeError("a function's arguments must be a JSON object")
    return name, canonical_json(_plain(parsed))


def _plain(value: Any) -> Any:
    """Give equal values one spelling: 5.0 is 5, text is NFC with single spaces."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return one_space(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
