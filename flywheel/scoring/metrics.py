"""Every programmatic metric: one function each, and its line in `METRICS`.

What several metrics look at (the comparison of tool calls, the texts) is worked out once per case.
Metrics of text are functions of two strings, the expected one first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from pydantic import Field

from flywheel.scoring import patterns, structure, text, tool_calls
from flywheel.scoring.case import Case, Metric, Verdict, answers_text, offers_tools
from flywheel.types import Json, Miss

MAX_TEXT = 1_000_000
"""Characters; a text longer than this is not compared."""
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def function_name(case: Case) -> Verdict:
    """1 if the same tools were called, arguments aside; also if neither side called any.

    Source: NVIDIA's Data Flywheel Blueprint, whose metric of this name compares the strings.
    """
    misses = tuple(miss for miss in case.calls.misses if miss in tool_calls.OF_TOOLS)
    return Verdict(float(not misses), case.calls.detail(misses), misses, case.calls.tools)


def name_and_arguments(case: Case) -> Verdict:
    """1 if the same tools were called with arguments that mean the same; also if none were.

    Source: NVIDIA's Data Flywheel Blueprint; what means the same is `flywheel.scoring.meaning`'s.
    """
    misses = case.calls.misses
    return Verdict(float(not misses), case.calls.detail(misses), misses)


def argument_precision(case: Case) -> Verdict:
    """Of the arguments that were sent, the share that is right (slot precision)."""
    calls = case.calls
    if Miss.UNPARSABLE_CALL in calls.found:
        return Verdict(0.0, "a call cannot be parsed")
    if not calls.sent:
        return Verdict(None, "no argument was sent")
    return Verdict(calls.right / calls.sent)


def argument_recall(case: Case) -> Verdict:
    """Of the arguments that production sent, the share that was sent, and right (slot recall)."""
    calls = case.calls
    if not calls.due:
        return Verdict(None, "no argument was due")
    return Verdict(calls.right / calls.due)


def exact_calls(case: Case) -> Verdict:
    """1 if the calls are the same JSON in the same order, whatever their schemas say."""
    return Verdict(float(case.calls.same_text))


def of_texts(compare: Callable[..., Verdict | float]) -> Callable[..., Verdict | float]:
    """A metric of two texts; a tool called where text is expected is 0."""

    @wraps(compare)
    def judge(case: Case, **parameters: Any) -> Verdict | float:
        if case.message.get("tool_calls"):
            return Verdict(0.0, "a tool was called where text is expected")
        if max(len(case.expected), len(case.answer)) > MAX_TEXT:
            return Verdict(None, f"longer than {MAX_TEXT:,} characters")
        return compare(case.expected, case.answer, **parameters)

    return judge


@of_texts
def exact_text(expected: str, answer: str) -> float:
    """1 if both texts are the same, character for character."""
    return float(expected == answer)


@of_texts
def exact_match(expected: str, answer: str) -> float:
    """1 if both say the same but for case, spaces, closing punctuation and Unicode composition.

    Source: normalised ("quasi") exact match as in HELM (Liang et al., 2022, arXiv:2211.09110), less
    its rule for English articles.
    """
    return float(text.normalise(expected) == text.normalise(answer))


def label_accuracy(case: Case) -> Verdict:
    """1 if the answer is the expected class and nothing else, written as `exact_match` allows."""
    due, called = text.label(case.expected), case.message.get("tool_calls")
    if called:
        reason = "a tool was called where text is expected"
        return Verdict(0.0, reason, classes=(due, text.label(called[0]["function"]["name"])))
    same = text.normalise(case.expected) == text.normalise(case.answer)
    return Verdict(float(same), classes=(due, text.label(case.answer)))


@of_texts
def token_f1(expected: str, answer: str) -> float:
    """Share of words in common; see `flywheel.scoring.text.token_f1` (SQuAD)."""
    return text.token_f1(expected, answer)


@of_texts
def rouge_l(expected: str, answer: str) -> float:
    """Longest common subsequence of words; see `flywheel.scoring.text.rouge_l` (Lin, 2004)."""
    return text.rouge_l(expected, answer)


@of_texts
def chrf(
    expected: str,
    answer: str,
    *,
    char_order: Annotated[int, Field(ge=1, le=10)] = 6,
    word_order: Annotated[int, Field(ge=0, le=4)] = 0,
    beta: Annotated[float, Field(gt=0, le=10)] = 2.0,
) -> float:
    """Character n-grams in common; see `flywheel.scoring.text.chrf` (sacrebleu; Popović, 2015).

    ``word_order: 2`` makes it chrF++.
    """
    return text.chrf(expected, answer, char_order, word_order, beta)


@of_texts
def json_match(expected: str, answer: str, *, schema: Json | str | None = None) -> Verdict:
    """1 if both texts are JSON that means the same; see `flywheel.scoring.structure`."""
    found = structure.compare(expected, answer, schema)
    return Verdict(float(found.same), found.reason)


@of_texts
def json_f1(expected: str, answer: str, *, schema: Json | str | None = None) -> Verdict:
    """Share of a JSON text's values in common, each at its place; see `json_match`."""
    found = structure.compare(expected, answer, schema)
    return Verdict(found.leaf_f1, found.reason)


@of_texts
def regex_match(expected: str, answer: str, *, pattern: str, full: bool = False) -> Verdict:
    """1 if RE2 finds the pattern in the answer, and its groups catch what they do in the reference.

    With ``full`` the whole answer must match. Groups that are to catch nothing: ``(?:...)``.
    """
    return Verdict(*patterns.agreement(expected, answer, pattern, full=full))


def embedding_similarity(case: Case, *, model: str = EMBEDDING_MODEL) -> Verdict:
    """Cosine similarity of the two texts' embeddings, 0 where it is negative.

    Source: Reimers and Gurevych (2019), Sentence-BERT, arXiv:1908.10084. A model looks at the
    beginning of a text only, all-MiniLM-L6-v2 at 256 word pieces.
    """
    if case.message.get("tool_calls"):
        return Verdict(0.0, "a tool was called where text is expected")
    empty = not case.expected.strip(), not case.answer.strip()
    if any(empty):
        return Verdict(float(all(empty)))
    if model not in case.cosines:
        return Verdict(None, "no embeddings are at hand")
    return Verdict(min(1.0, max(0.0, case.cosines[model])))


def _with_schema(*, schema: Json | str | None = None) -> Json:
    return {"schema": structure.read_schema(schema)}


METRICS = {
    "function_name": Metric(offers_tools, function_name),
    "function_name_and_args_accuracy": Metric(offers_tools, name_and_arguments),
    "argument_precision": Metric(offers_tools, argument_precision),
    "argument_recall": Metric(offers_tools, argument_recall),
    "tool_calls_exact_match": Metric(offers_tools, exact_calls),
    "exact_match": Metric(answers_text, exact_match),
    "exact_text": Metric(answers_text, exact_text),
    "label_accuracy": Metric(answers_text, label_accuracy),
    "token_f1": Metric(answers_text, token_f1),
    "rouge_l": Metric(answers_text, rouge_l),
    "chrf": Metric(answers_text, chrf),
    "json_match": Metric(answers_text, json_match, _with_schema),
    "json_f1": Metric(answers_text, json_f1, _with_schema),
    "regex_match": Metric(answers_text, regex_match, patterns.prepare),
    "embedding_similarity": Metric(answers_text, embedding_similarity, embeds=True),
}
"""Every programmatic metric by name."""

TOOL_METRICS = tuple(name for name, metric in METRICS.items() if metric.applies is offers_tools)
LABEL_METRICS = ("exact_match", "label_accuracy")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "chrf")
"""What is scored where an experiment names no metrics: those of tools for records with tools, and
those of labels or of text, by workload, for records that are answered in text."""
