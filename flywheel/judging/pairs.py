"""What a judge is shown: a question and two answers, as data that cannot pass for instructions.

Traffic and candidates are hostile. Their text is bounded, stands between ``<<<`` and ``>>>``, and
holds neither of these, nor anything a chat template or tokenizer takes for a mark of its own
(``<|im_end|>``, ``</s>``, ``[INST]``), nor characters that no reader sees.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import astuple, dataclass

from flywheel.rendering import query_of
from flywheel.scoring.text import text_of
from flywheel.types import Json, Record, content_hash

LIMIT = 2000
"""Characters of each text shown to the judge."""
_ANGLES = str.maketrans("<>", "‹›")
_MARK = re.compile(r"\[(?=/?[A-Z_]{3,}\])")
"""What Mistral's and Llama 2's templates begin a mark with: ``[INST]``, ``[/TOOL_CALLS]``."""
_SEEN = "\n\t\u200c\u200d"
"""Of the characters that print nothing, those that texts need; scripts and emoji need joiners."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What the judge sees: a question, production's answer, and the answer to rate."""

    query: str
    reference: str
    candidate: str

    @property
    def key(self) -> str:
        """The pair's name by content: a person's label of it holds wherever it appears again."""
        return content_hash(list(astuple(self)))

    @property
    def swapped(self) -> Pair:
        """The two answers in each other's place."""
        return Pair(self.query, self.candidate, self.reference)


def pair_of(record: Record, answer: Json) -> Pair:
    """The pair that rates ``answer`` against what production said to this record."""
    return Pair(bounded(query_of(record)), answer_text(record.answer), answer_text(answer))


def answer_text(message: Json) -> str:
    """An answer as the judge reads it: its text, then one line per tool call, names and ids out."""
    lines = [text_of(message)] if text_of(message) else []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        lines.append(call_text(function["name"], function.get("arguments") or "{}"))
    return bounded("\n".join(lines))


def call_text(name: str, arguments: str) -> str:
    """One tool call as the judge reads it."""
    return f"call {name} {arguments}"


def fenced(title: str, text: str) -> str:
    """Data under its title, in a fence that it cannot close."""
    return f"{title} <<<{_inert(text)}>>>"


def bounded(text: str) -> str:
    """At most `LIMIT` characters; an ellipsis says that there was more."""
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


def printable(text: str) -> str:
    """The text without characters that no reader sees, or that command a terminal."""
    return "".join(c for c in text if c in _SEEN or not unicodedata.category(c).startswith("C"))


def _inert(text: str) -> str:
    return _MARK.sub("［", printable(text).translate(_ANGLES))
