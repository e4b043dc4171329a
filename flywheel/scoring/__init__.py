"""Programmatic metrics: one completion and production's answer in, one score per metric out.

`METRICS` names them all. To add one, write a function of two messages and add its line there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from flywheel.scoring import text, tool_calls
from flywheel.types import Completion, Json, Record, Score, ScoreStatus

__all__ = ["CONTEXT_LENGTH", "METRICS", "Metric", "score", "too_long"]

CONTEXT_LENGTH = "context_length"
"""Why a record that is longer than the model's context is not scored."""
_TOO_LONG = re.compile(
    r"context_length|maximum (context|model) length|max_model_len|context window", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric compares two messages, and for which records it has a meaning."""

    applies: Callable[[Record], bool]
    compare: Callable[[Json, Json], float | None]
    """Production's message, the candidate's message -> 0..1; ``None`` if it cannot be judged."""


def offers_tools(record: Record) -> bool:
    """Whether production could have called a tool, or did."""
    return bool(record.tools or record.answer.get("tool_calls"))


def answers_text(record: Record) -> bool:
    """Whether production answered without calling a tool."""
    return not record.answer.get("tool_calls")


METRICS = {
    "function_name": Metric(offers_tools, tool_calls.function_name),
    "function_name_and_args_accuracy": Metric(offers_tools, tool_calls.name_and_arguments),
    "exact_match": Metric(answers_text, text.exact_match),
}
"""Every programmatic metric by name."""


def score(record: Record, completion: Completion) -> list[Score]:
    """Score one completion by every metric that applies to its record."""
    return [
        _score(name, metric, record, completion)
        for name, metric in METRICS.items()
        if metric.applies(record)
    ]


def too_long(completion: Completion) -> bool:
    """Whether the model was refused the record because it does not fit its context.

    Servers say so with status 400 and words or a code of their own: vLLM, NIM and OpenAI agree on
    "maximum context length".
    """
    error = completion.error
    return "400" in error and _TOO_LONG.search(error) is not None


def _score(name: str, metric: Metric, record: Record, completion: Completion) -> Score:
    if completion.message is None:
        if too_long(completion):
            return Score(record.id, name, None, ScoreStatus.UNSCORED, CONTEXT_LENGTH)
        reason = completion.error or "the completion holds no message"
        return Score(record.id, name, None, ScoreStatus.FAILED, reason)
    value = metric.compare(record.answer, completion.message)
    if value is None:
        reason = "production's answer cannot be compared"
        return Score(record.id, name, None, ScoreStatus.UNSCORED, reason)
    return Score(record.id, name, value)
