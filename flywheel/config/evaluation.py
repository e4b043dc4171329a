"""How answers are sampled, scored, judged and ranked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flywheel.config.endpoints import ModelConfig, TokenPrice
from flywheel.config.section import Section

Positive = Annotated[float, Field(gt=0)]


def _attacks(value: object) -> object:
    if isinstance(value, int) and value >= 0:  # a bool is an int
        return value
    raise ValueError("must be a number of attacks, true for all, or false for none")


class JudgeConfig(ModelConfig):
    """The LLM judge. It is never a model under test."""

    model: str = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Area under the ROC curve its calibration must reach before its scores count."""
    show_question: bool = False
    """Show the judge the user's question beside the two answers. Large judges use it; small ones
    let it distract them, as their calibration shows."""
    calibration_pairs: Annotated[int, Field(ge=5)] = 24
    """Records that its calibration rests on: the reference answer of each is judged against itself
    and against another record's, that of one in four also reworded, corrupted, and corrupted in
    the reference's place."""
    prompt: str = "similarity"
    """``similarity`` (1 to 10), ``tool_calls`` (are the calls correct, 1 to 10), ``preference``
    (which of the two is better, asked in both orders), or a YAML file of your own."""
    reading: Literal["expected", "written"] = "expected"
    """What a rating counts for where the server tells log-probabilities: the ``expected`` score, or
    the score as it was ``written``, which can serve a small judge better: its calibration has the
    area of both."""
    injection_suite: Annotated[bool | Annotated[int, Field(ge=0)], BeforeValidator(_attacks)] = True
    """Attacks in an answer that the calibration tries, for a verdict each: so many, spread over the
    suite; ``true`` for all 52, ``false`` for none."""


class JudgingConfig(Section):
    """What judges of one metric come to together, and what counts as good."""

    combine: Literal["mean", "majority"] = "mean"
    """``majority``: 1 where more than half of the judges are at or above ``threshold``."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Value (0 to 1; score 1 is 0, score 10 is 1) from which a judge calls an answer as good as
    production's; people's labels are compared with that."""


class SamplingConfig(Section):
    """What replaces the logged sampling parameters, so that trials compare."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Cap on answer tokens; default: what the record's request logged."""


class MetricConfig(Section):
    """A metric, where its name alone does not say all."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$")]
    """A name of ``docs/metrics.md``, or ``module:function`` for a function of one's own, which then
    runs wherever trials do."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")] | None = None
    """What its scores are called; default: the metric's or function's own name."""
    parameters: dict[str, Any] = {}  # noqa: RUF012 -- pydantic copies defaults
    """Its parameters by name."""


class FreeTextConfig(Section):
    """Which arguments of tool calls are free text, for a judge to compare."""

    arguments: tuple[str, ...] = ()
    """Names of arguments, ``body``, or of those of one tool, ``send_mail.body``."""
    longer_than: Annotated[int, Field(ge=0)] | None = None
    """Text of more characters than this, on both sides, is free whatever its name."""


class ScoringConfig(Section):
    """How answers are compared with production's."""

    call_order: Literal["free", "fixed"] = "free"
    """``fixed`` where the order of a message's tool calls matters; else they are a set."""
    metrics: Annotated[list[str | MetricConfig], Field(min_length=1)] | None = None
    """In place of the default ones, which follow the workload (``docs/metrics.md``) and which
    ``default`` stands for in the list."""
    references: str | None = None
    """A ground-truth file (JSON Lines: ``id`` of a record, ``expected`` answer) that says what is
    right in place of production's answers; records that it does not name stay unscored."""
    free_text: FreeTextConfig | None = None
    """Arguments of tool calls that the judge compares where all else is right
    (``tool_calling_correctness``); default: none."""


class ParityConfig(Section):
    """How closely a served adapter must answer as it did where it was trained."""

    records: Annotated[int, Field(ge=1, le=256)] = 8
    """Validation records to compare (training records where there is no validation split)."""
    tokens: Annotated[int, Field(ge=1)] = 32
    """Answer tokens to compare for each."""
    mean_difference: Positive = 0.05
    """Nats that log-probabilities of answer tokens may differ by, on average. The default is some
    five times what rounding to 16 bits alone makes of SmolLM2-135M with an adapter (0.009); another
    adapter than the trained one is off by about the ``effect`` that ``parity.json`` tells."""
    largest_difference: Positive = 1.0
    """Nats that any one of them may differ by: three times what rounding alone did to one of 235
    tokens (0.34)."""


class RankingConfig(Section):
    """What a leaderboard ranks by."""

    metric: str | None = None
    """Default: ``function_name_and_args_accuracy`` for tool workloads, ``label_accuracy`` for those
    that answer with one of a few labels, ``similarity`` for text (``exact_match`` where the judge
    is not trusted or there is none)."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """By how much a trial may be worse than production: it is promising when the whole 95 %
    interval of its difference to production lies above minus this."""
    baseline: str | None = None
    """Name of the candidate that is production's own model asked again (its ``base`` trial): the
    agreement with its own logged answers is the ceiling that others are compared with. Default:
    the logged answers themselves, which are right by definition."""
    max_p95_s: Annotated[float, Field(gt=0)] | None = None
    """A trial whose 95th percentile of latency lies above this is not recommended."""
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Nor is one with a larger share of failed or unscored records."""
    expected_disagreement: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of records on which a good candidate and production are expected to differ; says, with
    the margin, how many eval records are needed."""
    underpowered: Literal["warn", "refuse", "ignore"] = "warn"
    """What to do where there are fewer."""
    adaptive: bool = False
    """Stop asking a candidate that is surely worse than the margin allows, as soon as that shows;
    by ``metric``, or that of tool workloads. A judge's metric stops nobody."""


class ProductionConfig(Section):
    """What production costs today."""

    price: TokenPrice | None = None
