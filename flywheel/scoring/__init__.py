"""Programmatic metrics: one completion and production's answer in, one score per metric out.

`METRICS` names them all. To add one, write a function of a `Case` and add its line there. What
several metrics look at (the comparison of tool calls) is worked out once per case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from flywheel.scoring import text, tool_calls
from flywheel.types import Completion, Json, Miss, Record, Score, ScoreStatus

__all__ = [
    "CONTEXT_LENGTH",
    "METRICS",
    "Case",
    "Metric",
    "Verdict",
    "misses_by_kind",
    "score",
    "too_long",
]

CONTEXT_LENGTH = "context_length"
"""Why a record that is longer than the model's context is not scored."""
_TOO_LONG = re.compile(
    r"context_length|maximum (context|model) length|max_model_len|context window", re.IGNORECASE
)

EXAMPLES = 3
"""Records named for each kind of miss."""


@dataclass(frozen=True)
class Case:
    """What a metric looks at: a record, and the message a candidate answered it with."""

    record: Record
    message: Json
    call_order: str = "free"
    """``fixed`` where the order of a message's calls matters."""

    @cached_property
    def calls(self) -> tool_calls.Comparison:
        """The message's calls beside production's.

        Raises:
            UnscorableError: Production's cannot be read.
        """
        record = self.record
        return tool_calls.compare(record.answer, self.message, record.tools, self.call_order)


class Verdict(NamedTuple):
    """What a metric says of one case."""

    value: float | None
    """0..1; ``None`` if it cannot be judged."""
    reason: str = ""
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric judges a case, and for which records it has a meaning."""

    applies: Callable[[Record], bool]
    judge: Callable[[Case], Verdict]
    """May raise `UnscorableError`, which says why the case cannot be judged."""


def offers_tools(record: Record) -> bool:
    """Whether production could have called a tool, or did."""
    return bool(record.tools or record.answer.get("tool_calls"))


def answers_text(record: Record) -> bool:
    """Whether production answered without calling a tool."""
    return not record.answer.get("tool_calls")


def function_name(case: Case) -> Verdict:
    """1 if the same tools were called, arguments aside; also if neither side called any."""
    misses = tuple(miss for miss in case.calls.misses if miss in tool_calls.OF_TOOLS)
    return Verdict(float(not misses), case.calls.detail(misses), misses)


def name_and_arguments(case: Case) -> Verdict:
    """1 if the same tools were called with arguments that mean the same; also if none were."""
    misses = case.calls.misses
    return Verdict(float(not misses), case.calls.detail(misses), misses)


def argument_precision(case: Case) -> Verdict:
    """Of the arguments that were sent, the share that is right."""
    calls = case.calls
    if Miss.UNPARSABLE_CALL in calls.found:
        return Verdict(0.0, "a call cannot be parsed")
    if not calls.sent:
        return Verdict(None, "no argument was sent")
    return Verdict(calls.right / calls.sent)


def argument_recall(case: Case) -> Verdict:
    """Of the arguments that production sent, the share that was sent, and right."""
    calls = case.calls
    if not calls.due:
        return Verdict(None, "no argument was due")
    return Verdict(calls.right / calls.due)


def exact_calls(case: Case) -> Verdict:
    """1 if the calls are the same JSON in the same order, whatever their schemas say."""
    return Verdict(float(case.calls.same_text))


def exact_match(case: Case) -> Verdict:
    """1 if both messages say the same and neither calls a tool."""
    return Verdict(text.exact_match(case.record.answer, case.message))


METRICS = {
    "function_name": Metric(offers_tools, function_name),
    "function_name_and_args_accuracy": Metric(offers_tools, name_and_arguments),
    "argument_precision": Metric(offers_tools, argument_precision),
    "argument_recall": Metric(offers_tools, argument_recall),
    "tool_calls_exact_match": Metric(offers_tools, exact_calls),
    "exact_match": Metric(answers_text, exact_match),
}
"""Every programmatic metric by name."""
_RULES = {metric.applies for metric in METRICS.values()}


def score(record: Record, completion: Completion, call_order: str = "free") -> list[Score]:
    """Score one completion by every metric that applies to its record."""
    applies = {rule: rule(record) for rule in _RULES}
    names = [name for name, metric in METRICS.items() if applies[metric.applies]]
    if completion.message is None:
        status = ScoreStatus.UNSCORED if too_long(completion) else ScoreStatus.FAILED
        reason = completion.error or "the completion holds no message"
        reason = CONTEXT_LENGTH if status is ScoreStatus.UNSCORED else reason
        return [Score(record.id, name, None, status, reason) for name in names]
    case = Case(record, completion.message, call_order)
    return [_score(name, case) for name in names]


def too_long(completion: Completion) -> bool:
    """Whether the model was refused the record because it does not fit its context.

    Servers say so with status 400 and words or a code of their own: vLLM, NIM and OpenAI agree on
    "maximum context length".
    """
    error = completion.error
    return "400" in error and _TOO_LONG.search(error) is not None


def misses_by_kind(scores: Iterable[Score]) -> Json:
    """How many records show each kind of miss, and the first of them.

    A record may show several kinds, so that the counts may add up to more than the records.
    """
    records: dict[Miss, list[str]] = {}
    for one in scores:
        if one.metric == "function_name_and_args_accuracy":
            for miss in one.misses:
                records.setdefault(miss, []).append(one.record_id)
    return {
        miss.value: {"records": len(records[miss]), "examples": records[miss][:EXAMPLES]}
        for miss in Miss
        if miss in records
    }


def _score(name: str, case: Case) -> Score:
    try:
        verdict = METRICS[name].judge(case)
    except tool_calls.UnscorableError as error:
        verdict = Verdict(None, str(error))
    status = ScoreStatus.UNSCORED if verdict.value is None else ScoreStatus.SCORED
    return Score(case.record.id, name, verdict.value, status, verdict.reason, verdict.misses)
