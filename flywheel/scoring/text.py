"""Text answers: what a message says, and whether two say the same."""

from __future__ import annotations

import unicodedata
from typing import Any

from flywheel.types import Json


def text_of(message: Json) -> str:
    """The text of a chat message; parts are joined, anything but text is left out."""
    content: Any = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def one_space(text: str) -> str:
    """Unicode NFC with every run of whitespace as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalise(text: str) -> str:
    """What `exact_match` compares: no case, single spaces, no closing punctuation."""
    return one_space(text).casefold().rstrip(".!?… ")


def exact_match(expected: Json, answer: Json) -> float:
    """1 if both messages say the same and neither calls a tool."""
    if answer.get("tool_calls"):
        return 0.0
    return float(normalise(text_of(expected)) == normalise(text_of(answer)))
