"""What a metric looks at and what it says: the types that every metric is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from flywheel.scoring import tool_calls
from flywheel.scoring.text import text_of
from flywheel.types import Json, Miss, Record


@dataclass(frozen=True)
class Case:
    """A record, and the message a candidate answered it with."""

    record: Record
    """Its answer is what is expected: production's, or that of a ground-truth file."""
    message: Json
    call_order: str = "free"
    """``fixed`` where the order of a message's calls matters."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """By embedding model: the cosine similarity of the expected text and the answer's."""

    @cached_property
    def calls(self) -> tool_calls.Comparison:
        """The message's calls beside those expected.

        Raises:
            UnscorableError: Those expected cannot be read.
        """
        record = self.record
        return tool_calls.compare(record.answer, self.message, record.tools, self.call_order)

    @cached_property
    def expected(self) -> str:
        """The text that is expected."""
        return text_of(self.record.answer)

    @cached_property
    def answer(self) -> str:
        """The text of the answer."""
        return text_of(self.message)


class Verdict(NamedTuple):
    """What a metric says of one case."""

    value: float | None
    """0..1; ``None`` if it cannot be judged."""
    reason: str = ""
    misses: tuple[Miss, ...] = ()
    classes: tuple[str, str] | None = None
    """The class that was expected and the one that was answered, for a metric about classes."""


def _as_they_are(**parameters: Any) -> Json:
    return parameters


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric judges a case, and for which records it has a meaning."""

    applies: Callable[[Record], bool]
    judge: Callable[..., Verdict | float | None]
    """Takes a `Case`; its keyword-only arguments are the metric's parameters. May raise
    `UnscorableError`, which says why the case cannot be judged."""
    prepare: Callable[..., Json] = _as_they_are
    """Takes the parameters as they were asked for and gives those that trials carry, before any
    work; may raise ``ValueError``."""
    embeds: bool = False
    """Whether it looks at `Case.cosines` of the model that its parameter ``model`` names."""


def offers_tools(record: Record) -> bool:
    """Whether a tool could have been called, or was."""
    return bool(record.tools or record.answer.get("tool_calls"))


def answers_text(record: Record) -> bool:
    """Whether what is expected calls no tool."""
    return not record.answer.get("tool_calls")
