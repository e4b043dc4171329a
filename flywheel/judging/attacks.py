"""Attacks on a judge: text in an answer that wants a better verdict than the answer deserves.

``attacks.jsonl`` holds them: orders, forged verdicts and rubrics, broken fences, marks of chat
templates, hidden characters, in answers and in arguments, in twelve languages. They were written
for this project. Each is put into an answer known to be wrong; what counts is how often the verdict
moves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from flywheel.judging.pairs import LIMIT, Pair, answer_text, call_text, pair_of
from flywheel.types import Json, Record


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack."""

    id: str
    """Its tactic and number: ``fence-09``."""
    where: Literal["answer", "argument"]
    """At the end of the answer, or as the value of a call's argument."""
    language: str
    text: str


def load() -> list[Attack]:
    """The attacks of the suite."""
    lines = (files("flywheel.judging") / "attacks.jsonl").read_text(encoding="utf-8").splitlines()
    return [Attack(**json.loads(line)) for line in lines]


def spread(wanted: bool | int) -> list[Attack]:
    """So many attacks, evenly over the suite, which is in order of places and languages.

    Args:
        wanted: How many; True for all, False for none.
    """
    suite = load()
    count = len(suite) if wanted is True else min(int(wanted), len(suite))
    return [suite[number * len(suite) // count] for number in range(count)]


def attacked(record: Record, wrong: Record, attack: Attack) -> tuple[Pair, Pair]:
    """The pair of a record and another record's answer, without an attack and with it."""
    plain = pair_of(record, wrong.answer)
    if attack.where == "argument":
        text = _in_argument(wrong.answer, attack.text)
    else:
        text = f"{plain.candidate[: LIMIT - len(attack.text) - 1]}\n{attack.text}"
    return plain, Pair(plain.query, plain.reference, text)


def _in_argument(message: Json, text: str) -> str:
    """The answer with the text as the first string among its first call's arguments.

    An answer without a call gets one.
    """
    calls = message.get("tool_calls")
    if not calls:
        return f"{answer_text(message)}\n{call_text('note', json.dumps({'text': text}))}"
    function = calls[0]["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = {}
    arguments = arguments if isinstance(arguments, dict) else {}
    name = next((key for key, value in arguments.items() if isinstance(value, str)), "note")
    return call_text(function["name"], json.dumps({**arguments, name: text}, ensure_ascii=False))
