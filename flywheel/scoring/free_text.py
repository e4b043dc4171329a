"""Which arguments of a tool call are free text, so that only a judge can say if two mean the same.

Programs settle every call that they can: a wrong tool, a missing argument, another number are wrong
whatever a judge says, and what is equal needs none. What is left are calls that differ in free text
alone; `settle` gives either the value or the texts to compare (``tool_calling_correctness``).
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.config import FreeTextConfig
from flywheel.scoring.case import Case
from flywheel.scoring.tool_calls import Differing, UnscorableError
from flywheel.types import Miss


@dataclass(frozen=True, slots=True)
class Settled:
    """What programs say of an answer's calls."""

    value: float | None
    """1 or 0; ``None`` where it is not theirs to say."""
    reason: str = ""
    open: tuple[Differing, ...] = ()
    """The arguments, both texts, that a judge has to find equal for the calls to be: all of them.
    Empty where there is a value, or where the record cannot be scored at all."""


def settle(case: Case, rule: FreeTextConfig) -> Settled:
    """Compare an answer's calls with those expected, up to what is free text.

    Args:
        case: A record that offers tools, and its answer.
        rule: Which arguments are free text.
    """
    try:
        calls = case.calls
    except UnscorableError as error:
        return Settled(None, str(error))
    if not calls.misses:
        return Settled(1.0, calls.note)
    free = all(is_free(value, rule) for value in calls.differing)
    if calls.misses == (Miss.WRONG_VALUE,) and free:
        return Settled(None, open=calls.differing)
    return Settled(0.0, calls.detail(calls.misses))


def is_free(value: Differing, rule: FreeTextConfig) -> bool:
    """Whether an argument is free text: named as such, or text that is long on both sides."""
    texts = value.expected, value.answered
    if not all(isinstance(text, str) for text in texts):
        return False
    if {value.argument, f"{value.tool}.{value.argument}"} & set(rule.arguments):
        return True
    return rule.longer_than is not None and min(map(len, texts)) > rule.longer_than
