"""Traffic as a page can show it: bounded, and without characters that reorder or hide text."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup

from flywheel.scoring.text import text_of
from flywheel.types import Json, Record

TEXT_LIMIT = 2_000
"""Characters shown of one query or answer."""
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls, bidirectional overrides, zero-width characters (joiners of scripts and emoji apart),
lone surrogates and tags."""


def visible(value: Any) -> Any:
    """Spell out characters that reorder or hide text; markup and numbers pass unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", value)


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """At most so many characters, and how many there were."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … (cut; {len(text):,} characters in all)"


def line(text: str, limit: int = 120) -> str:
    """The beginning of a text, on one line."""
    whole = " ".join(text[: 2 * limit].split())
    return whole if len(whole) <= limit and len(text) <= 2 * limit else whole[:limit] + "…"


def query(record: Record) -> str:
    """What the user asked last."""
    users = [m for m in record.messages if m.get("role") == "user"]
    return text_of(users[-1]) if users else "(no user message)"


def shown(message: Json) -> str:
    """An answer as people read it: its text, then a line per tool call."""
    calls = message.get("tool_calls")
    lines = [text_of(message), *map(_call, calls if isinstance(calls, list) else [])]
    return "\n".join(line for line in lines if line) or "(empty)"


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return f"(unreadable call) {json.dumps(call, default=str)}"
    return f"{function.get('name')} {function.get('arguments')}"
