"""Programmatic metrics: one completion and what is expected in, one score per metric out.

`metrics` holds them all by name (`METRICS`), each a function of a `Case`; `chosen` says which of
them, with which parameters, an experiment asks for; `Scorer` applies those to completions. What is
expected is production's answer, or that of a ground-truth file (`references`). `classes` makes
tables of what the scores say about classes, `free_text` finds what is a judge's to compare.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.scoring import chosen, references
from flywheel.scoring.case import Case, Metric, Verdict
from flywheel.scoring.chosen import Bound
from flywheel.scoring.metrics import LABEL_METRICS, METRICS, TEXT_METRICS, TOOL_METRICS
from flywheel.scoring.references import References
from flywheel.scoring.text import readable, text_of
from flywheel.scoring.tool_calls import NO_TOOL, UnscorableError
from flywheel.types import Completion, Json, Miss, Record, Score, ScoreStatus

__all__ = [
    "CONTEXT_LENGTH",
    "LABEL_METRICS",
    "METRICS",
    "TEXT_METRICS",
    "TOOL_METRICS",
    "Case",
    "Metric",
    "References",
    "Scorer",
    "Verdict",
    "answers_labels",
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
_EMBEDDED = 20_000
"""Characters of a text that are embedded: no embedding model reads as far."""

Embed = Callable[[Sequence[str], str], npt.NDArray[np.float32]]
"""Texts and the name of a model -> a unit vector for each text."""


class Scorer:
    """Scores completions by the metrics that an experiment asks for."""

    def __init__(
        self,
        metrics: Sequence[Bound],
        call_order: str = "free",
        references: References | None = None,
    ) -> None:
        """Score by these metrics, against these references or else production's answers."""
        self._metrics = metrics
        self._rules = {bound.metric.applies for bound in metrics}
        self._call_order = call_order
        self._references = references
        embedding = (bound.parameters["model"] for bound in metrics if bound.metric.embeds)
        self._models = sorted(set(embedding))

    @classmethod
    def of(cls, rule: Json, *, labels: bool, references: References | None = None) -> Scorer:
        """The scorer of a trial.

        Args:
            rule: The trial's setting ``scoring``.
            labels: Whether the workload answers with one of a few classes.
            references: Of a ground-truth file, if there is one.

        Raises:
            FlywheelError: A metric is not here what it was where the run began.
        """
        metrics = chosen.bound(rule.get("metrics"), labels=labels)
        return cls(metrics, rule["call_order"], references)

    def only(self, name: str) -> Scorer:
        """The same for one metric alone."""
        mine = [bound for bound in self._metrics if bound.name == name]
        return Scorer(mine, self._call_order, self._references)

    def score_all(
        self, records: Sequence[Record], completions: Sequence[Completion], embed: Embed
    ) -> list[Score]:
        """Score each record's completion by every metric that applies to the record.

        Args:
            records: What was asked.
            completions: One for each, in the same order.
            embed: Called once for each embedding model that a metric names.
        """
        pairs = list(zip(records, completions, strict=True))
        cosines = self._cosines(pairs, embed)
        return [
            score
            for record, completion in pairs
            for score in self.score(record, completion, cosines.get(record.id))
        ]

    def score(
        self, record: Record, completion: Completion, cosines: Mapping[str, float] | None = None
    ) -> list[Score]:
        """Score one completion; ``cosines`` is what metrics of embeddings look at."""
        expected = self._expected(record)
        due = record if expected is None else expected
        applies = {rule: rule(due) for rule in self._rules}
        applying = [bound for bound in self._metrics if applies[bound.metric.applies]]
        if completion.message is None:
            long = too_long(completion)
            status = ScoreStatus.UNSCORED if long else ScoreStatus.FAILED
            reason = completion.error or "the completion holds no message"
            reason = CONTEXT_LENGTH if long else reason
            return [Score(record.id, bound.name, None, status, reason) for bound in applying]
        if expected is None:
            missing = ScoreStatus.UNSCORED, references.MISSING
            return [Score(record.id, bound.name, None, *missing) for bound in applying]
        case = Case(expected, completion.message, self._call_order, cosines or {})
        return [_score(bound, case) for bound in applying]

    def _expected(self, record: Record) -> Record | None:
        return record if self._references is None else self._references.of(record)

    def _cosines(
        self, pairs: Sequence[tuple[Record, Completion]], embed: Embed
    ) -> dict[str, dict[str, float]]:
        """By record and model: how alike the two texts are, where there are two."""
        texts: dict[str, tuple[str, str]] = {}
        for record, completion in pairs if self._models else ():
            expected = self._expected(record)
            if expected is not None and completion.message is not None:
                sides = text_of(expected.answer), text_of(completion.message)
                if all(side.strip() for side in sides):
                    first, second = (readable(side[:_EMBEDDED]) for side in sides)
                    texts[record.id] = first, second
        found: dict[str, dict[str, float]] = {name: {} for name in texts}
        for model in self._models if texts else ():
            due, sent = zip(*texts.values(), strict=True)
            vectors = embed([*due, *sent], model)
            products = (vectors[: len(due)] * vectors[len(due) :]).sum(axis=1)
            for name, product in zip(texts, products.tolist(), strict=True):
                found[name][model] = product
        return found


_DEFAULT = {order: Scorer(chosen.bound(None, labels=False), order) for order in ("free", "fixed")}


def score(record: Record, completion: Completion, call_order: str = "free") -> list[Score]:
    """Score one completion by the default metrics that apply to its record."""
    return _DEFAULT[call_order].score(record, completion)


def answers_labels(classes: Mapping[str, int], records: Sequence[Record]) -> bool:
    """Whether a workload answers with one of a few classes, as far as its dataset shows.

    Args:
        classes: How many records of the dataset have which class.
        records: Some of the dataset's records.
    """
    if NO_TOOL in classes or 2 * len(classes) > sum(classes.values()):
        return False
    return bool(records) and all(text_of(record.answer).strip() in classes for record in records)


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


def _score(bound: Bound, case: Case) -> Score:
    verdict = _verdict(bound, case)
    status = ScoreStatus.UNSCORED if verdict.value is None else ScoreStatus.SCORED
    said = verdict.misses, verdict.classes
    return Score(case.record.id, bound.name, verdict.value, status, verdict.reason, *said)


def _verdict(bound: Bound, case: Case) -> Verdict:
    """What a metric says, whatever it does: a value that is none, or an error, is no score."""
    try:
        said: Any = bound.metric.judge(case, **bound.parameters)
    except UnscorableError as error:
        return Verdict(None, str(error))
    except Exception as error:
        if bound.own:
            return Verdict(None, f"{type(error).__name__} in the metric: {error}"[:200])
        raise
    verdict = said if isinstance(said, Verdict) else Verdict(said)
    if type(verdict.value) is float and 0 <= verdict.value <= 1:
        return verdict
    if verdict.value is None:
        return verdict._replace(reason=verdict.reason or "the metric gave no value")
    try:
        value = float(verdict.value)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:  # NaN is neither
        shown = f"{verdict.value!r:.40}"
        return Verdict(None, f"the metric gave {shown}, which does not lie in 0..1")
    return verdict._replace(value=value)
