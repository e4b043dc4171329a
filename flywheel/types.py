"""The frozen data types that flow through the program, and how each is named by its content.

A log line becomes a `Record` or a `Rejection`; records become a dataset (described by its
manifest); a `Trial` answers the dataset's eval records with `Completion`s; metrics turn those into
`Score`s; their means are `Estimate`s inside a `TrialResult`. This module imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import orjson

Json = dict[str, Any]
"""A JSON object as Python sees it."""


def canonical_bytes(value: Any) -> bytes:
    """Serialise to the one JSON text that equal values share: sorted keys, no spaces, UTF-8."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers beyond 64 bits, half a surrogate pair
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")


def json_bytes(value: Any) -> bytes:
    """Serialise in the order its keys have, without spaces, as UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, half a surrogate pair
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")


def json_text(value: Any) -> str:
    """`json_bytes` as text."""
    return json_bytes(value).decode("utf-8", "surrogatepass")


def canonical_json(value: Any) -> str:
    """`canonical_bytes` as text."""
    return canonical_bytes(value).decode("utf-8", "surrogatepass")


def content_hash(value: Any, length: int = 16) -> str:
    """Name a JSON value by its content: the first ``length`` hex digits of its SHA-256."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()[:length]


def digest(value: Any) -> bytes:
    """What stands for a JSON value in other hashes: 16 bytes, computed once where values repeat."""
    return hashlib.blake2b(canonical_bytes(value), digest_size=16).digest()


def settings_of(request: Json) -> Json:
    """A request without its messages and tools."""
    return {name: v for name, v in request.items() if name not in ("messages", "tools")}


def record_id(
    where: tuple[float, str, str],
    settings: bytes,
    messages: Sequence[bytes],
    tools: bytes,
    response: Json,
) -> str:
    """Name a record by its content: 16 hex digits.

    Args:
        where: Its timestamp, workload_id and client_id.
        settings: `digest` of the request's `settings_of`.
        messages: `digest` of each of its messages.
        tools: `digest` of the list of its tools.
        response: The response.
    """
    body = canonical_bytes([*where, response])
    return hashlib.sha256(b"".join([tools, settings, *messages, body])).hexdigest()[:16]


_SHORT = {"learning_rate": "lr", "rank": "r", "examples": "k", "max_train_records": "n"}
"""What people call these parameters."""


def _shown(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if number else str(value)


class Reason(StrEnum):
    """Why a log line did not become a `Record`. The list is fixed: reports count by it."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_WORKLOAD_ID = "missing_workload_id"
    MISSING_CLIENT_ID = "missing_client_id"
    BAD_TIMESTAMP = "bad_timestamp"
    MISSING_REQUEST = "missing_request"
    EMPTY_MESSAGES = "empty_messages"
    BAD_MESSAGE = "bad_message"
    UNKNOWN_ROLE = "unknown_role"
    BAD_TOOLS = "bad_tools"
    MISSING_RESPONSE = "missing_response"
    EMPTY_CHOICES = "empty_choices"
    NO_ANSWER = "no_answer"
    BAD_TOOL_CALL = "bad_tool_call"
    TOOL_ARGUMENTS_NOT_JSON = "tool_arguments_not_json"
    BAD_TOOL_RESULT = "bad_tool_result"
    UNFINISHED_ANSWER = "unfinished_answer"
    REFUSAL = "refusal"
    REFERENCE_VIOLATES_SCHEMA = "reference_violates_schema"


class Normalisation(StrEnum):
    """What was changed in a line so that it became a `Record`; counted, never silent."""

    CANONICAL_ARGUMENTS = "canonical_arguments"
    """Tool arguments are no longer the text that was logged, but mean the same."""
    EMPTY_ARGUMENTS = "empty_arguments"
    """A call without arguments got ``{}``."""
    LEGACY_FUNCTIONS = "legacy_functions"
    """``functions`` and ``function_call`` became tools and tool calls."""
    STREAM_CHUNKS = "stream_chunks"
    """A list of streamed chunks was put together into one response."""
    BROKEN_CHARACTERS = "broken_characters"
    """Half a surrogate pair became U+FFFD."""
    TIMESTAMP = "timestamp"
    """Milliseconds or an ISO 8601 date became seconds."""
    VIOLATES_SCHEMA = "reference_violates_schema"
    """Nothing was changed: arguments contradict the tool's schema, and the file says to keep it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One logged production call, validated and masked.

    ``request`` and ``response`` are OpenAI chat objects. Tool-call arguments stay JSON strings, as
    logged, in canonical form.
    """

    timestamp: float
    """Seconds since the epoch."""
    workload_id: str
    client_id: str
    request: Json
    response: Json
    id: str = ""
    normalisations: tuple[Normalisation, ...] = field(default=(), compare=False)
    """What was changed on the way here, each at most once."""

    def __post_init__(self) -> None:
        if not self.id:
            where = (self.timestamp, self.workload_id, self.client_id)
            spoken = [digest(message) for message in self.request.get("messages", [])]
            settings, tools = digest(settings_of(self.request)), digest(self.tools)
            name = record_id(where, settings, spoken, tools, self.response)
            object.__setattr__(self, "id", name)

    @property
    def messages(self) -> list[Json]:
        """The conversation that production's model saw."""
        messages: list[Json] = self.request["messages"]
        return messages

    @property
    def tools(self) -> list[Json]:
        """The tools production's model could call; empty when there were none."""
        return self.request.get("tools") or []

    @property
    def answer(self) -> Json:
        """Production's answer: the message of the first choice."""
        message: Json = self.response["choices"][0]["message"]
        return message

    @property
    def usage(self) -> Json:
        """Production's logged token usage; empty where it was not logged."""
        return self.response.get("usage") or {}

    def to_row(self) -> Json:
        """Flatten to a Parquet row; nested objects travel as JSON text (Arrow needs one shape).

        Tools stand apart from the rest of the request, as they repeat from record to record. Keys
        keep the logged order: a model sees tools and arguments as production's did.
        """
        request = {k: v for k, v in self.request.items() if k != "tools"}
        return {
            "id": self.id,
            "timestamp": self.timestamp,
            "workload_id": self.workload_id,
            "client_id": self.client_id,
            "request": json_text(request),
            "tools": json_text(self.request["tools"]) if "tools" in self.request else None,
            "response": json_text(self.response),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """Inverse of `to_row`; further columns are ignored."""
        tools = {} if row["tools"] is None else {"tools": json.loads(row["tools"])}
        return cls(
            timestamp=row["timestamp"],
            workload_id=row["workload_id"],
            client_id=row["client_id"],
            request={**json.loads(row["request"]), **tools},
            response=json.loads(row["response"]),
            id=row["id"],
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A log line that did not become a `Record`: where it stood and why."""

    source: str
    """File it was read from, or index and document id."""
    offset: int
    """Where it begins in that file: byte of the decompressed text, or row of a Parquet file."""
    reason: Reason
    detail: str
    """One sentence about this line, masked and at most 200 characters."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a trial's model answered for one eval record, or the error that stands for it."""

    record_id: str
    message: Json | None = None
    """The assistant message in OpenAI form; ``None`` exactly when ``error`` is set."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    """Seconds from sending the request to its last byte, retries included: what a caller waits."""
    error: str = ""
    """Why there is no answer, in one sentence."""
    logprobs: list[Json] = field(default_factory=list)
    """The answer's tokens where the request asked for log-probabilities and got them: ``token``,
    ``logprob``, and ``top``, the likeliest tokens at that place with theirs."""
    cached_tokens: int = 0
    """How many of ``prompt_tokens`` the server found in its cache."""
    mean_logprob: float | None = None
    """Mean log-probability of the answer's tokens, in nats; ``None`` where it was not told."""


class ScoreStatus(StrEnum):
    """A score is a value, or says why there is none. None of these is ever counted as zero."""

    SCORED = "scored"
    UNSCORED = "unscored"
    """The model answered, but the metric could not judge it."""
    FAILED = "failed"
    """The model gave no answer to judge."""


class Miss(StrEnum):
    """How an answer's tool calls are not production's. The list is fixed: reports count by it."""

    NO_CALL = "no_call"
    UNPARSABLE_CALL = "unparsable_call"
    CALL_NOT_DUE = "call_not_due"
    WRONG_TOOL = "wrong_tool"
    MISSING_ARGUMENT = "missing_argument"
    EXTRA_ARGUMENT = "extra_argument"
    WRONG_VALUE = "wrong_value"
    WRONG_TYPE = "wrong_type"
    WRONG_NUMBER_OF_CALLS = "wrong_number_of_calls"


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one completion."""

    record_id: str
    metric: str
    value: float | None
    """In 0..1; ``None`` unless ``status`` is ``scored``."""
    status: ScoreStatus = ScoreStatus.SCORED
    reason: str = ""
    """Why there is no value, or what the value rests on, in one sentence."""
    misses: tuple[Miss, ...] = ()
    """What keeps the value from being 1, where it counts tool calls; each kind at most once."""
    classes: tuple[str, str] | None = None
    """The class that was expected and the one that was answered, where a metric is about them."""
    judge: str = ""
    """Identity of the judge, or the judges, whose verdict it is; empty for a program's."""

    @classmethod
    def from_row(cls, row: Json) -> Score:
        """A score as it lies on disk; files written before scores had all fields are read too."""
        misses, classes = tuple(map(Miss, row.get("misses", ()))), row.get("classes")
        kept = {**row, "misses": misses, "classes": tuple(classes) if classes else None}
        return cls(**{**kept, "status": ScoreStatus(row["status"])})


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval and what it was computed from."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """All records asked: scored + unscored + failed."""
    unscored: int = 0
    failed: int = 0

    @property
    def scored(self) -> int:
        """How many records the mean rests on."""
        return self.n - self.unscored - self.failed


@dataclass(frozen=True, slots=True)
class Latency:
    """How fast a trial answered while its quality was measured, at that concurrency."""

    p50_s: float
    p95_s: float
    output_tokens_per_second: float
    """Over all requests together: output tokens divided by wall-clock seconds."""
    requests_per_second: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a time, in seconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """What came of sending the sample at one load. Failed requests have no times."""

    load: str
    """``concurrency-8`` or ``replay-2``."""
    requests: int
    """Sent, warm-up aside."""
    failed: int
    seconds: float
    """From the first request to the end of the last answer."""
    requests_per_second: float
    """Answered."""
    output_tokens_per_second: float
    """Over all requests together."""
    within_slo: float
    """Share of the requests sent that were answered within every limit of the SLO."""
    first_token_s: Percentiles | None
    """From sending a request (in a replay: from when it was due) to its answer's first token."""
    inter_token_s: Percentiles | None
    """Between two pieces of an answer as they came, over all of them; most servers send tokens."""
    per_output_token_s: Percentiles | None
    """From an answer's first token to its last by its number of further tokens, over answers."""
    total_s: Percentiles | None
    """From sending a request (or when it was due) to the end of its answer."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """How a trial's model answers under load, measured apart from its quality."""

    slo: Json
    """``first_token_s``, ``per_output_token_s``, ``total_s`` (seconds or null) and ``share``."""
    levels: list[LoadLevel]
    at_slo: str | None
    """The load of the highest throughput that is borne; ``None`` where none is."""

    @property
    def borne(self) -> LoadLevel | None:
        """The level named by ``at_slo``."""
        return next((level for level in self.levels if level.load == self.at_slo), None)

    @classmethod
    def from_json(cls, data: Json) -> LoadTest:
        """Inverse of `dataclasses.asdict`."""
        return cls(data["slo"], [_level(level) for level in data["levels"]], data["at_slo"])


def _level(data: Json) -> LoadLevel:
    times = {n: Percentiles(**v) if v else None for n, v in data.items() if n.endswith("_s")}
    return LoadLevel(**{**data, **times})


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars per 1,000 requests, and how the figure came about. Formulae: ``docs/cost.md``."""

    per_1k_requests: float | None
    """``None`` where something it takes is not known."""
    basis: str
    """``tokens``, ``machine``, ``machine at SLO``, ``cascade``, or why there is no figure: ``no
    price``, ``no usage``, ``SLO not met``."""
    saved_percent: float | None = None
    """Of production's cost per request; negative where production is cheaper."""
    training_dollars: float | None = None
    """What the fine-tuning took, not part of ``per_1k_requests``; ``None`` where nothing was
    trained or no price is known."""
    break_even_requests: int | None = None
    """Requests after which the saving has paid for the training; ``None`` where it never does."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Candidate x method x parameters x dataset x seed: what is compared. Frozen and picklable."""

    candidate: str
    """The candidate's name in the experiment."""
    model: str
    """Model id: weights served here, or the name the remote endpoint knows."""
    method: str
    """``base``, ``icl``, ``lora`` or ``full``; on a board also ``cascade``, which is no trial."""
    parameters: Json
    dataset: str
    """Fingerprint of the dataset."""
    seed: int
    settings: Json = field(default_factory=dict)
    """What else decides the answers: engine options, sampling, endpoint URL."""

    @property
    def key(self) -> str:
        """The hash of everything that decides this trial's outcome."""
        return content_hash(asdict(self))

    @property
    def label(self) -> str:
        """A short name for people: candidate, method, and the parameters that were chosen."""
        chosen = (f"{_SHORT.get(k, k)}={_shown(v)}" for k, v in self.parameters.items())
        return " ".join([self.candidate, self.method, *chosen])


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended. A failed trial is a result with a reason."""

    trial: Trial
    status: str
    """``succeeded``, ``failed``, or ``stopped`` where a scheduler ended its training."""
    error: str = ""
    metrics: dict[str, Estimate] = field(default_factory=dict)
    latency: Latency | None = None
    cost: Cost | None = None
    training: Json = field(default_factory=dict)
    """Loss per step, rows, tokens and seconds; empty for methods that do not train."""
    parity: Json = field(default_factory=dict)
    """How the served adapter compares with the trained one; empty for methods that do not train."""
    provenance: Json = field(default_factory=dict)
    misses: Json = field(default_factory=dict)
    """By kind of `Miss`: how many records show it (one may show several), and the first ids."""
    classes: Json = field(default_factory=dict)
    """By metric that is about classes: precision, recall and F1 of each, and the confusion; see
    `flywheel.scoring.classes.table`."""
    load: LoadTest | None = None
    """``None`` unless the experiment has a section ``latency``."""
    cascade: Json = field(default_factory=dict)
    """How a cascade hands over, see `flywheel.cascades.Rule`; empty for a trial."""

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.trial.key

    @property
    def p95_s(self) -> float | None:
        """95th percentile of the seconds an answer took, at the load that is borne if known."""
        borne = self.load.borne if self.load else None
        if borne and borne.total_s:
            return borne.total_s.p95
        return self.latency.p95_s if self.latency else None

    def to_json(self) -> Json:
        """The content of ``result.json``."""
        return {"key": self.key, "label": self.trial.label, **asdict(self)}

    @classmethod
    def from_json(cls, data: Json) -> TrialResult:
        """Inverse of `to_json`."""
        return cls(
            trial=Trial(**data["trial"]),
            status=data["status"],
            error=data["error"],
            metrics={name: Estimate(**m) for name, m in data["metrics"].items()},
            latency=Latency(**data["latency"]) if data["latency"] else None,
            cost=Cost(**data["cost"]) if data["cost"] else None,
            training=data["training"],
            parity=data.get("parity") or {},
            provenance=data["provenance"],
            misses=data.get("misses", {}),
            classes=data.get("classes", {}),
            load=LoadTest.from_json(data["load"]) if data.get("load") else None,
            cascade=data.get("cascade", {}),
        )
