"""What a judge said, read: a value in 0..1, or the reason why there is none. Never a guess.

Verdicts come under a JSON schema. Where the server gives log-probabilities, a rating is the
expected score over the tokens that could have stood in its place, which tells apart what whole
numbers do not (G-Eval: Liu et al. 2023, EMNLP, arXiv:2303.16634); the plain score stands beside it,
and counts instead where the judge is read as it wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.types import Completion, Json

LOWEST, HIGHEST = 1, 10
UNCLEAR = 0.05
"""Share of probability on a leading 1, of which nobody knows whether a 0 would have followed, from
which no expected score is taken: tokenizers that split numbers leave it open."""
RATING: Json = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}},
    "required": ["score"],
    "additionalProperties": False,
}
PREFERENCE: Json = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}
_SCORE = re.compile(r'"score"\s*:\s*(\d)')


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judge makes of one pair."""

    value: float | None
    """0..1; for a preference 1 is the candidate, 0 production, 0.5 a tie. ``None``: no verdict."""
    reason: str = ""
    """Why there is none, or that a preference changed with the order."""
    plain: float | None = None
    """The value of the score as it was written."""
    spread: float | None = None
    """Standard deviation of the score, in values, where log-probabilities tell it."""
    flipped: bool = False
    """Whether another order of the answers led to another preference; then it counts as a tie."""


def rating(completion: Completion) -> Verdict:
    """The verdict in a judge's reply to a rating prompt: score s of 1..10 is (s - 1) / 9."""
    try:
        score = _field(completion, "score")
    except _NoVerdictError as error:
        return Verdict(None, str(error))
    if isinstance(score, bool) or not isinstance(score, int) or not LOWEST <= score <= HIGHEST:
        return Verdict(None, f"judge: verdict {str(score)[:80]!r} is not an integer from 1 to 10")
    plain = _scaled(score)
    chances = score_chances(completion.logprobs)
    if not chances:
        return Verdict(plain, plain=plain)
    expected = math.fsum(s * p for s, p in chances.items())
    variance = math.fsum(p * (s - expected) ** 2 for s, p in chances.items())
    spread = math.sqrt(max(0.0, variance)) / (HIGHEST - LOWEST)
    return Verdict(min(1.0, max(0.0, _scaled(expected))), plain=plain, spread=spread)


def preference(as_asked: Completion, swapped: Completion) -> Verdict:
    """The verdict in the replies to both orders; production's answer was A at first, then B.

    A preference that does not survive the change of order is one of places, not of answers: a tie
    (Wang et al. 2023, arXiv:2305.17926).
    """
    values = []
    for completion, first in ((as_asked, 0.0), (swapped, 1.0)):
        try:
            better = _field(completion, "better")
        except _NoVerdictError as error:
            return Verdict(None, str(error))
        if better not in ("A", "B", "tie"):
            return Verdict(None, f"judge: verdict {str(better)[:80]!r} is not A, B or tie")
        values.append({"A": first, "B": 1 - first, "tie": 0.5}[better])
    if values[0] == values[1]:
        return Verdict(values[0], plain=values[0])
    return Verdict(0.5, "the preference changed with the order", plain=0.5, flipped=True)


def score_chances(tokens: Sequence[Json]) -> dict[int, float]:
    """How likely each score is, by the tokens at its place; empty where that cannot be told."""
    text = "".join(token["token"] for token in tokens)
    if not (found := _SCORE.search(text)):
        return {}
    place, start = _token_at(tokens, found.start(1))
    before = tokens[place]["token"][: found.start(1) - start]
    likely: dict[int, float] = {}
    for said, logprob in _alternatives(tokens[place]).items():
        number = re.match(r"\s*(\d+)", said.removeprefix(before))
        if number and len(number[1]) <= 2:
            score = int(number[1])
            likely[score] = likely.get(score, 0.0) + math.exp(min(0.0, logprob))
    return _normalised(_told_apart(likely, text[found.start(1) :], tokens[place + 1 :]))


def _told_apart(likely: dict[int, float], written: str, after: Sequence[Json]) -> dict[int, float]:
    """Part what stands on a leading 1 between 1 and 10.

    Only where tokens are digits it is in doubt: where 10 is a token, 1 means 1. What a 1 would have
    gone on with is known if it was written.
    """
    split = likely.get(1, 0.0)
    if not split or HIGHEST in likely:
        return likely
    if written.startswith("1") and after:
        zero = math.fsum(
            math.exp(min(0.0, p)) for t, p in _alternatives(after[0]).items() if t.startswith("0")
        )
        zero = min(1.0, zero)
        return {**likely, 1: split * (1 - zero), HIGHEST: split * zero}
    whole = math.fsum(likely.values())
    return {} if split > UNCLEAR * whole else {s: p for s, p in likely.items() if s != 1}


def _normalised(likely: dict[int, float]) -> dict[int, float]:
    allowed = {s: p for s, p in likely.items() if LOWEST <= s <= HIGHEST}
    whole = math.fsum(allowed.values())
    return {s: p / whole for s, p in allowed.items()} if whole > 0 else {}


def _token_at(tokens: Sequence[Json], place: int) -> tuple[int, int]:
    """The token that holds a character of the text, and where that token begins."""
    start = 0
    for number, token in enumerate(tokens):
        if place < start + len(token["token"]):
            return number, start
        start += len(token["token"])
    raise AssertionError("a place outside the text")


def _alternatives(token: Json) -> dict[str, float]:
    """The likeliest tokens at a place, the one that was taken among them."""
    return {**token["top"], token["token"]: token["logprob"]}


class _NoVerdictError(Exception):
    """A reply that holds no verdict; says why."""


def _field(completion: Completion, name: str) -> Any:
    if completion.message is None:
        raise _NoVerdictError(f"judge: {completion.error}")
    if refusal := completion.message.get("refusal"):
        raise _NoVerdictError(f"judge: refused: {refusal[:80]!r}")
    text = completion.message.get("content") or ""
    try:
        return json.loads(text)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NoVerdictError(f"judge: unparsable verdict {text[:80]!r}") from None


def _scaled(score: float) -> float:
    return (score - LOWEST) / (HIGHEST - LOWEST)
