"""Answers of which it is known how good they are: what a judge is calibrated on.

Production's own answer, the same in other words, another record's answer, its own with one thing
made wrong. None of it needs a model, and the same records always give the same probes.

All checks share their records, and verdicts where they can: attacks are put into answers of other
records that are judged anyway.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel.judging.attacks import Attack, attacked
from flywheel.judging.pairs import Pair, answer_text, pair_of
from flywheel.scoring.text import text_of
from flywheel.types import Json, Record

PART = 4
"""One in so many records is also judged reworded, corrupted, and corrupted in the other place."""
Change = Callable[[Json], Json]

BASES = 8
"""Wrong answers that attacks are put into, by turns."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Pairs to calibrate on, by what they are."""

    same: list[Pair]
    """Production's answer beside itself."""
    paraphrased: list[Pair]
    """The same in other words or another notation."""
    shuffled: list[Pair]
    """Another record's answer."""
    corrupted: list[Pair]
    """Production's answer with an argument, or a part of its text, from elsewhere."""
    swapped: list[Pair]
    """The same, production's answer and the corrupted one in each other's place."""
    attacks: list[Attack]
    attacked: list[tuple[Pair, Pair]]
    """For each attack a wrong answer as it is, and with the attack in it."""

    @property
    def pairs(self) -> list[Pair]:
        """Everything that has to be judged."""
        bases = [pair for both in self.attacked for pair in both]
        kinds = (self.same, self.paraphrased, self.shuffled, self.corrupted, self.swapped, bases)
        return [pair for kind in kinds for pair in kind]


def probes(
    records: Sequence[Record],
    count: int,
    attacks: Sequence[Attack] = (),
    paraphrases: Sequence[Pair] = (),
) -> Probes:
    """Make the probes of up to ``count`` records.

    Args:
        records: Masked records with production's answers.
        count: Of production's own and of others' answers; of the other kinds one `PART` of it.
        attacks: What to put into wrong answers.
        paraphrases: Pairs that people called equally good, used before those made here.
    """
    order = random.Random(0)
    chosen = list(records)[:count]
    wrong = [(record, other) for record in chosen if (other := _other(record, records, order))]
    some = chosen[::PART]
    twisted = [(r, bad) for r in some if (bad := _corrupted(r, records, order))]
    corrupted = [pair_of(record, bad) for record, bad in twisted]
    reworded = [pair for r in some if (pair := _reworded(r)).candidate != pair.reference]
    bases = wrong[:BASES] if attacks else []
    return Probes(
        same=[pair_of(record, record.answer) for record in chosen],
        paraphrased=[*paraphrases, *reworded][: len(some)],
        shuffled=[pair_of(record, other.answer) for record, other in wrong],
        corrupted=corrupted,
        swapped=[pair.swapped for pair in corrupted],
        attacks=list(attacks) if bases else [],
        attacked=[
            attacked(*bases[i % len(bases)], attack) for i, attack in enumerate(attacks) if bases
        ],
    )


def _other(record: Record, records: Sequence[Record], order: random.Random) -> Record | None:
    """A record whose answer differs in text and, where the workload allows, in tool or label."""
    own = answer_text(record.answer)
    others = [r for r in records if _kind(r) != _kind(record)] or [
        r for r in records if answer_text(r.answer) != own
    ]
    return order.choice(others) if others else None


def _kind(record: Record) -> str:
    calls = record.answer.get("tool_calls")
    return str(calls[0]["function"]["name"]) if calls else answer_text(record.answer)


def _reworded(record: Record) -> Pair:
    """The same calls, arguments in reverse and spaced out; texts are left as they are."""
    return pair_of(record, _with_arguments(record.answer, lambda a: dict(reversed(a.items()))))


def _corrupted(record: Record, records: Sequence[Record], order: random.Random) -> Json | None:
    """Production's answer with one thing wrong; ``None`` where there is nothing to change."""
    own, message = answer_text(record.answer), record.answer
    if message.get("tool_calls"):
        bad = _with_arguments(message, lambda arguments: _one_wrong(arguments, order))
        return bad if answer_text(bad) != own else None
    words = text_of(message).split()
    texts = [text for r in records if (text := text_of(r.answer)) and text != text_of(message)]
    if len(words) < 3 or not texts:
        return None  # a label made wrong is another label
    third = len(words) // 3
    theirs = order.choice(texts).split()[: third + 1]
    bad = {**message, "content": " ".join([*words[:third], *theirs, *words[-third:]])}
    return bad if answer_text(bad) != own else None


def _one_wrong(arguments: Json, order: random.Random) -> Json:
    if not arguments:
        return {"force": True}
    name = order.choice(sorted(arguments))
    return {**arguments, name: _wrong(arguments[name])}


def _wrong(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 7
    if isinstance(value, str):
        return "".join(_next(c) for c in value) if value else "none"
    return None


def _next(character: str) -> str:
    """Another digit for a digit, another letter for a letter: the shape stays, the meaning goes."""
    if character.isascii() and character.isdigit():
        return str((int(character) + 3) % 10)
    if character.isascii() and character.isalpha():
        first = "a" if character.islower() else "A"
        return chr((ord(character) - ord(first) + 5) % 26 + ord(first))
    return character


def _with_arguments(message: Json, change: Change) -> Json:
    calls = []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = None
        if isinstance(arguments, dict):
            text = json.dumps(change(arguments), ensure_ascii=False)
            function = {**function, "arguments": text}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls} if calls else message
