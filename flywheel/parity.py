"""Whether a model answers in serving as it did where it was trained.

Both sides render the same records and answer them greedily; what they did travels as
`Generation`s, and `compare` decides. Prompts must agree token by token. Answers agree while both
sides choose the same token with nearly the same log-probability. Where they choose differently
for the first time, each must have held the other's choice nearly as likely as the other did: in 16
bits two likely tokens can change places, and what follows then says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

from flywheel.config import ParityConfig
from flywheel.types import Json

LIKELIEST = 10
"""For how many tokens log-probabilities are kept at each place of an answer."""
_SHOWN = 3
"""Tokens shown on either side of a difference between prompts."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one side saw and said for one record."""

    record_id: str
    prompt: list[int]
    """Token ids after rendering."""
    answer: list[int]
    """Token ids of the greedy answer, the end-of-turn token included where it came."""
    likeliest: list[dict[int, float]]
    """For each token of the answer, log-probabilities (nats) of the likeliest tokens there."""
    moved: list[float] = field(default_factory=list)
    """For each token of the answer, how far the adapter moved its log-probability (nats); of a
    model without one, and of the served side, which is not asked for it, nothing."""

    def to_json(self) -> Json:
        """JSON knows no integer keys: pairs instead."""
        return {**asdict(self), "likeliest": [list(place.items()) for place in self.likeliest]}

    @classmethod
    def from_json(cls, data: Json) -> Generation:
        """Inverse of `to_json`."""
        places = [{int(token): value for token, value in place} for place in data["likeliest"]]
        return cls(data["record_id"], data["prompt"], data["answer"], places, data["moved"])


@dataclass(frozen=True, slots=True)
class Parity:
    """What a comparison found: the content of ``parity.json``."""

    passed: bool
    records: int
    prompt_tokens: int
    same_answers: int
    """Records whose greedy answers are the same to the last token."""
    answer_tokens: int
    """Places of answers that were compared."""
    mean_difference: float | None
    """Of log-probabilities, in nats, over those places; ``None`` where prompts differ."""
    largest_difference: float | None
    effect: float | None
    """Nats by which the adapter moves the log-probabilities of its own answers, on average: where
    that is less than what may differ, a wrong adapter would pass too. ``None`` without adapter."""
    first_difference: str = ""
    """What failed, in one sentence."""

    @classmethod
    def broken(cls, why: str) -> Parity:
        """Of a model that one side could not ask."""
        return cls(False, 0, 0, 0, 0, None, None, None, why)

    def to_json(self) -> Json:
        """The content of ``parity.json``."""
        return asdict(self)


def compare(
    trained: Sequence[Generation],
    served: Sequence[Generation],
    limits: ParityConfig,
    decode: Callable[[list[int]], str],
) -> Parity:
    """Compare two sides' generations, record by record.

    Args:
        trained: By the model as it was trained.
        served: By the served one, of the same records in the same order; at least one.
        limits: How far log-probabilities may differ.
        decode: Gives token ids' text, for the sentence about the first difference.
    """
    places: list[_Place] = []
    same = 0
    for ours, theirs in zip(trained, served, strict=True):
        if ours.prompt != theirs.prompt:
            said = f"record {ours.record_id}: {_prompts(ours.prompt, theirs.prompt, decode)}"
            return _verdict(trained, same, [], said)
        same += ours.answer == theirs.answer
        found = enumerate(_differences(ours, theirs))
        places += [_Place(ours, theirs, token, difference) for token, difference in found]
    differences = [place.difference for place in places]
    return _verdict(trained, same, differences, _beyond(places, limits, decode))


@dataclass(frozen=True, slots=True)
class _Place:
    """A token of two sides' answers to a record, and how far they are apart there."""

    ours: Generation
    theirs: Generation
    token: int
    difference: float


def _beyond(
    places: Sequence[_Place], limits: ParityConfig, decode: Callable[[list[int]], str]
) -> str:
    """Where answers first differ by too much or, if they do on average only, by most."""
    for place in places:
        if place.difference > limits.largest_difference:
            return f"{_answers(place, decode)}; the limit is {limits.largest_difference:g}"
    mean = sum(place.difference for place in places) / len(places)
    if mean <= limits.mean_difference:
        return ""
    farthest = max(places, key=lambda place: place.difference)
    return (
        f"{_answers(farthest, decode)}; on average over {len(places)} answer tokens it is "
        f"{mean:.3f}, where the limit is {limits.mean_difference:g}"
    )


def _differences(ours: Generation, theirs: Generation) -> Iterator[float]:
    """How far the sides are apart at each place, up to the first where they choose differently."""
    for place, (mine, other) in enumerate(zip_longest(ours.answer, theirs.answer)):
        if mine is None or other is None:  # one stopped though both had said the same
            yield float("inf")
            return
        sides = ours.likeliest[place], theirs.likeliest[place]
        yield max(_apart(token, *sides) for token in (mine, other))
        if mine != other:
            return


def _apart(token: int, ours: dict[int, float], theirs: dict[int, float]) -> float:
    """Difference of a token's log-probabilities; a lower bound where a list leaves it out."""
    return abs(_at_most(token, ours) - _at_most(token, theirs))


def _at_most(token: int, side: dict[int, float]) -> float:
    return side.get(token, min(side.values()))


def _verdict(
    trained: Sequence[Generation], same: int, differences: Sequence[float], first: str
) -> Parity:
    finite = [d for d in differences if d < float("inf")]
    moved = [nats for one in trained for nats in one.moved]
    return Parity(
        passed=not first,
        records=len(trained),
        prompt_tokens=sum(len(one.prompt) for one in trained),
        same_answers=same,
        answer_tokens=len(differences),
        mean_difference=round(sum(finite) / len(finite), 5) if finite else None,
        largest_difference=round(max(finite), 5) if finite else None,
        effect=round(sum(moved) / len(moved), 5) if moved else None,
        first_difference=first,
    )


def _prompts(ours: Sequence[int], theirs: Sequence[int], decode: Callable[[list[int]], str]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    near = slice(max(0, at - _SHOWN), at + _SHOWN)
    return (
        f"prompts differ from token {at + 1} on: training renders {decode(list(ours[near]))!r}, "
        f"serving {decode(list(theirs[near]))!r} ({len(ours)} and {len(theirs)} tokens)"
    )


def _answers(place: _Place, decode: Callable[[list[int]], str]) -> str:
    said = " and ".join(
        f"{who} {_choice(side, place.token, decode)}"
        for who, side in (("the trained model", place.ours), ("the served one", place.theirs))
    )
    apart = "" if place.difference == float("inf") else f", {place.difference:.3f} apart"
    return f"record {place.ours.record_id}: answer token {place.token + 1}: {said}{apart}"


def _choice(side: Generation, place: int, decode: Callable[[list[int]], str]) -> str:
    if place >= len(side.answer):
        return "has ended"
    token = side.answer[place]
    return f"says {decode([token])!r} ({_at_most(token, side.likeliest[place]):.3f})"
