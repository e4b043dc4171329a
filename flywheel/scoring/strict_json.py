"""JSON as models write it, read strictly: no NaN, no number beyond a double, bounded nesting."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 100
"""What is nested deeper is not read."""


def parse(text: str) -> Any:
    """The value that a text writes.

    Raises:
        ValueError: It writes none, or one nested deeper than `MAX_DEPTH`.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and not _shallow(value):
        raise ValueError("nested too deep")
    return value


def _shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return True
    return False


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject, parse_float=_finite)
