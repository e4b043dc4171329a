"""The experiment file: what it may say, how it is read, and how a mistake in it is explained.

An `Experiment` is one complete, validated description of a run. `load` reads YAML, applies
``--set`` overrides and reports the first mistakes as one `ConfigError`; `dump` writes the same
experiment back with every default filled in, which is what a run stores beside its results.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flywheel.errors import ConfigError
from flywheel.mistakes import explained
from flywheel.spaces import Searched, Space, extremes
from flywheel.types import Json

SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks vLLM has kernels for."""

LEARNING = ("lora", "full")
"""Methods that train weights, and so need them here."""


class _Model(BaseModel):
    """Unknown keys are mistakes; a loaded experiment never changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _seconds(moment: float | datetime | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment


class TokenPrice(_Model):
    """Dollars per million tokens, as endpoints bill."""

    input_per_million: Annotated[float, Field(ge=0)]
    output_per_million: Annotated[float, Field(ge=0)]


class ClientConfig(_Model):
    """How an endpoint is asked, and for how long. None of it decides what is answered."""

    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """At most so many, evenly spread. This and ``concurrency`` are ceilings: less while the
    endpoint answers 429, and nothing before its ``Retry-After``."""
    api_key_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "Authorization"
    """What carries the key: ``Authorization`` as bearer token, others (``api-key``) bare."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    first_token_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds until an answer begins; the endpoint is asked to stream it then."""
    attempts: Annotated[int, Field(ge=1)] = 6
    """Attempts at a request whose connection is lost or that is answered with 408, 409, 5xx or
    rubbish. Refusals (429) cost time, not attempts."""
    retry_for_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after a request was first sent in which another attempt may begin."""
    backoff_s: Annotated[float, Field(ge=0)] = 0.5
    """Before the second attempt up to so many seconds pass, before each later one twice as many."""
    outage_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without any answer after which a trial fails, to be resumed; a quarter of that where
    there never was a connection."""
    cache: bool = True
    """Keep answers in the storage's ``responses`` for other runs, where the temperature is 0 or the
    request has a seed."""


_KEEPS_A_SECRET = re.compile(r"key|token|secret|passw|sig|credential", re.IGNORECASE)


class ModelConfig(_Model):
    """A model that answers: weights served here by vLLM, or an endpoint served elsewhere."""

    model: str
    """Hub id (``HuggingFaceTB/SmolLM2-135M-Instruct``), local folder, or the endpoint's name."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server (a NIM too), ending before ``/chat/completions``; it
    may have a query (Azure's ``?api-version=...``)."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the endpoint's key; never the key itself."""
    client: ClientConfig = ClientConfig()
    """How the endpoint is asked."""
    price: TokenPrice | None = None
    """What an endpoint bills."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Dollars per hour of the machine that serves the weights here."""
    engine: Json = Field(default_factory=dict)
    """vLLM engine arguments, passed through (``max_model_len``, ``dtype``, ...)."""
    tool_parser: str = "auto"
    """vLLM's parser for this model family's tool calls; ``auto``: told from the chat template."""
    min_replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the engine that are always there."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Copies that Ray Serve may start while requests wait; default: ``min_replicas``."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """Ray CPUs one engine holds; default: 1 beside a GPU, else a node's cores less one half."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs one engine holds; default: 1 where the cluster has any, else 0."""
    accelerator: str | None = None
    """Ray accelerator type to insist on, e.g. ``L4``."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests in flight."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds one request may take."""

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        if self.endpoint is None and (self.api_key_env or self.price):
            raise ValueError("api_key_env and price belong to an endpoint; name its URL too")
        if self.endpoint is None and self.client != ClientConfig():
            raise ValueError("client belongs to an endpoint; name its URL too")
        if self.endpoint is not None and not re.match(r"https?://", self.endpoint):
            raise ValueError(f"endpoint {self.endpoint!r} must start with http:// or https://")
        if self.endpoint is not None and _holds_secret(self.endpoint):
            raise ValueError("a key does not belong into the endpoint's URL; name api_key_env")
        if self.endpoint is not None and (self.price_per_hour is not None or self.engine):
            raise ValueError("price_per_hour and engine belong to weights served here")
        if self.engine.get("trust_remote_code"):
            raise ValueError("trust_remote_code stays off: model repositories run no code here")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than {self.min_replicas}")
        return self

    @property
    def remote(self) -> bool:
        """True for an endpoint served elsewhere."""
        return self.endpoint is not None


class CandidateConfig(ModelConfig):
    """A model that might replace production."""

    name: str = ""
    """How tables call it; default: the last part of ``model``."""
    methods: list[Literal["base", "icl", "lora", "full"]] | None = None
    """Which of the experiment's methods to try; default: all it can do."""

    @model_validator(mode="after")
    def _no_remote_training(self) -> CandidateConfig:
        for method in LEARNING:
            if self.remote and method in (self.methods or []):
                raise ValueError(
                    f"{method} needs weights; an endpoint can be tried with base and icl"
                )
        return self

    @property
    def title(self) -> str:
        """Name shown to people."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]

    def can_try(self, method: str) -> bool:
        """Whether this method is wanted and possible: an endpoint cannot be fine-tuned."""
        wanted = self.methods is None or method in self.methods
        return wanted and not (method in LEARNING and self.remote)


class DatasetConfig(_Model):
    """How records become eval, train and val. Names are those of NVIDIA's blueprint."""

    eval_size: Annotated[int, Field(ge=1)] = 100
    val_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of what may be trained on that becomes val."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the requests that may ever be eval, decided by hash alone: what ``eval_size`` leaves
    over there is never trained on, so more logs never move a request from eval into train."""
    min_total_records: Annotated[int, Field(ge=1)] = 50
    """Fewer curated records than this is an error."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many records (chosen by keyed hash, not by position)."""
    random_seed: int = 0
    since: float | AwareDatetime | None = None
    """Only records from this moment on: seconds since the epoch, or a date with its zone."""
    until: float | AwareDatetime | None = None
    """Only records before this moment."""
    masking: bool | Literal["presidio"] = True
    """Mask personal data before anything is written or sent; ``presidio`` also masks names, places
    and organisations (extra ``presidio``)."""
    schema_violations: Literal["reject", "keep"] = "reject"
    """What to do with answers whose tool arguments contradict the tool's own JSON Schema."""
    contradictions: Literal["newest", "majority", "reject"] = "newest"
    """Which answer stays where the same request was answered in several ways."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.85
    """Jaccard similarity from which two user texts are near-duplicates; ``null``: look for none."""
    group_by: list[Literal["conversation_id", "session_id", "user"]] = [
        "conversation_id",
        "session_id",
        "user",
    ]
    """What of the request's metadata keeps records on one side of the split."""
    mode: Literal["stratified", "time", "frozen"] = "stratified"
    """How eval is chosen: by class and hash; the newest records; or those of ``frozen_dataset``
    that still exist, and fresh ones by class and hash."""
    frozen_dataset: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Fingerprint of an earlier dataset in the same storage, for ``mode: frozen``."""
    label_limit: Annotated[int, Field(ge=0)] = 100
    """Text answers count as classes when a workload has at most this many distinct ones."""

    @model_validator(mode="after")
    def _one_mode(self) -> DatasetConfig:
        if (self.mode == "frozen") != (self.frozen_dataset is not None):
            raise ValueError("mode: frozen and frozen_dataset belong together")
        since, until = self.window
        if since is not None and until is not None and since >= until:
            raise ValueError("since must lie before until")
        return self

    @property
    def window(self) -> tuple[float | None, float | None]:
        """``since`` and ``until`` in seconds since the epoch."""
        return _seconds(self.since), _seconds(self.until)


Count = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
SystemPrompt = Space[str | None]
"""A text file whose content replaces the system message; ``null`` leaves production's."""


class BaseConfig(_Model, Searched):
    """Replay production's prompt, unchanged but for what is said here."""

    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message; ``null`` leaves production's."""


class IclConfig(_Model, Searched):
    """Few-shot prompting with training records. A list is a grid: one trial per combination."""

    examples: Space[Count] = 3
    """How many stand in a prompt; fewer where that many do not fit the context window."""
    min_examples: Annotated[int, Field(ge=0, le=64)] = 1
    """Results count the records whose prompts have room for fewer than this."""
    selection: Space[Literal["semantic_similarity", "lexical", "uniform_distribution"]] = (
        "semantic_similarity"
    )
    """Examples are the training records whose queries lie nearest by an embedding model's cosine,
    or by BM25, which needs none; or each class gets equally many, whatever the query."""
    embedding_model: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    """For ``semantic_similarity``; with ``null`` that is ``lexical``."""
    relevance_ratio: Space[Share] = 1.0
    """Share of the examples that are simply the nearest. The rest show classes not shown yet, each
    by its own nearest record: 0.7 of 3 are the 2 nearest and 1 of another class. Not for
    ``uniform_distribution``, which knows no nearest."""
    order: Space[Literal["nearest_last", "nearest_first"]] = "nearest_last"
    """Which example stands beside the query."""
    max_context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that prompt and answer may have together. Default: what the engine takes, for weights
    served here; no limit for endpoints, whose prompts are counted by a cautious estimate."""
    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message; ``null`` leaves production's."""

    @model_validator(mode="after")
    def _consistent(self) -> IclConfig:
        fewest = min(extremes(self.examples))
        if self.min_examples > fewest:
            raise ValueError(f"min_examples {self.min_examples} is more than examples ({fewest})")
        only_uniform = set(extremes(self.selection)) == {"uniform_distribution"}
        if only_uniform and extremes(self.relevance_ratio) != [1.0]:
            raise ValueError("uniform_distribution knows no nearest; relevance_ratio is not for it")
        return self

    @property
    def semantic(self) -> bool:
        """Whether any trial needs the embedding model."""
        wanted = "semantic_similarity" in extremes(self.selection)
        return wanted and self.embedding_model is not None


Rank = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class TrainerConfig(_Model, Searched):
    """What methods with weights to learn have in common."""

    epochs: Space[Positive] = 2.0
    steps: Space[Annotated[int, Field(ge=1)] | None] = None
    """Optimiser steps, in place of ``epochs``."""
    schedule: Space[Literal["linear", "cosine", "constant"]] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_ratio: Space[Annotated[float, Field(ge=0, lt=1)]] = 0.1
    weight_decay: Space[Annotated[float, Field(ge=0)]] = 0.0
    max_train_records: Space[Annotated[int, Field(ge=1)] | None] = None
    """Train on at most this many records."""
    class_balance: Space[Literal["natural", "equal"]] = "natural"
    """``equal``: as many rows of each class, those of rare classes repeated; the number of rows
    stays."""
    curriculum: Space[Literal["none", "short_first"]] = "none"
    """``short_first``: the first epoch sees short examples before long ones."""
    system_prompt: SystemPrompt = None
    """A text file whose content replaces the system message, in training and in eval; ``null``
    leaves production's."""
    batch_records: Space[Annotated[int, Field(ge=1)]] = 16
    """Training examples per optimiser step."""
    batch_tokens: Space[Annotated[int, Field(ge=16)] | None] = None
    """Tokens of the rows of one optimiser step, in place of ``batch_records``."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longer training examples are left out and counted."""
    pack_tokens: Annotated[int, Field(ge=16)] = 1024
    """Tokens computed at a time; a step's gradient accumulates over as many packs as it takes."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """``auto`` computes in bf16 where the device can."""
    validations: Annotated[int, Field(ge=1)] = 4
    """How often the validation loss is measured, evenly over the training, at its end too. Where a
    scheduler goes by it and this says nothing else, 9 times."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without a lower loss, and keep the weights of the lowest;
    ``null``: train to the end and keep the last."""
    checkpoint_every_s: Annotated[float, Field(ge=0)] | None = 60.0
    """Seconds between checkpoints, from which a killed training goes on; ``null`` writes none."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None


_UNSERVABLE = {
    "use_dora": "vLLM cannot serve DoRA; use plain LoRA, or rslora",
    "modules_to_save": "vLLM serves adapters only, no copies of whole modules; the method `full` "
    "trains everything",
    "lora_bias": "vLLM serves no adapters with biases",
    "layer_replication": "vLLM serves no replicated layers",
    "init_lora_weights": "say init",
}
"""PEFT options that would train well and then not be served, each with why."""


class LoraConfig(TrainerConfig):
    """LoRA fine-tuning (Hu et al., 2021, arXiv:2106.09685). A list is a grid."""

    rank: Space[Rank] = 16
    alpha_ratio: Space[Positive] = 2.0
    """alpha = alpha_ratio x rank, whatever rank a trial has."""
    dropout: Space[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    learning_rate: Space[Positive] = 1e-3
    target_modules: tuple[str, ...] | None = None
    """Names of the linear layers to adapt (``q_proj``, ...); default: all but the head."""
    rslora: Space[bool] = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski, 2023,
    arXiv:2312.03732)."""
    init: Space[str] = "default"
    """``default``, ``gaussian`` or ``orthogonal``."""
    quantization: Literal["4bit"] | None = None
    """QLoRA: hold the base's weights in 4 bits while training; needs a CUDA GPU, bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _no_unservable_option(cls, data: Any) -> Any:
        for name, reason in _UNSERVABLE.items():
            if isinstance(data, dict) and data.get(name):
                raise ValueError(f"{name}: {reason}")
        return data

    @model_validator(mode="after")
    def _can_be_trained(self) -> LoraConfig:
        for init in extremes(self.init):
            if init not in ("default", "gaussian", "orthogonal"):
                raise ValueError(
                    f"init {init!r}: allowed are default, gaussian, orthogonal; vLLM serves no "
                    "initialisation that changes the base's weights (PiSSA, OLoRA, CorDA, LoftQ)"
                )
        if self.quantization and self.gpus == 0:
            raise ValueError("quantization: 4bit needs a GPU, and gpus is 0")
        return self

    @model_validator(mode="after")
    def _servable(self) -> LoraConfig:
        for rank in extremes(self.rank):
            if rank not in SERVABLE_RANKS:
                allowed = ", ".join(map(str, SERVABLE_RANKS))
                raise ValueError(f"rank {rank} cannot be served by vLLM; allowed: {allowed}")
        return self


class FullConfig(TrainerConfig):
    """Fine-tuning of all weights of a small model. A list is a grid."""

    learning_rate: Space[Positive] = 5e-5


class MethodsConfig(_Model):
    """Which methods to try; leave one out to skip it."""

    base: BaseConfig | None = None
    icl: IclConfig | None = None
    lora: LoraConfig | None = None
    full: FullConfig | None = None

    @model_validator(mode="after")
    def _any(self) -> MethodsConfig:
        if not self.chosen:
            raise ValueError("name at least one method: base, icl, lora or full")
        return self

    @property
    def chosen(self) -> list[str]:
        """Names of the methods to try."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class SchedulerConfig(_Model):
    """Which trainings are stopped early, by validation loss against the other trials'."""

    kind: Literal["none", "asha", "median"] = "none"
    """ASHA (Li et al., 2020, arXiv:1810.05934) keeps the best ``1 / reduction`` of those that came
    as far; ``median`` stops what is worse than the median of the others so far."""
    grace: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of its training before which no trial is stopped."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """For ``asha``."""


class SearchConfig(_Model):
    """How trials are found where methods have lists or distributions."""

    algorithm: Literal["grid", "random", "optuna"] = "grid"
    """``grid``: every combination of lists. ``random``: for each of those, ``samples`` draws from
    the distributions. ``optuna``: ``samples`` trainings of ``lora`` per candidate, suggested by TPE
    from those before, lists being choices; other methods are drawn at random."""
    samples: Annotated[int, Field(ge=1, le=100_000)] = 10
    objectives: Annotated[list[Literal["val_loss", "cost"]], Field(min_length=1, max_length=2)] = [
        "val_loss"
    ]
    """What Optuna minimises: nats per answer token on val, and the seconds that training takes;
    with both it looks along their Pareto front."""
    scheduler: SchedulerConfig = SchedulerConfig()
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trainings at the same time; default: what fits on the cluster."""


class BudgetConfig(_Model):
    """What a run may take. Once reached, no trial is started; those that run are finished."""

    trials: Annotated[int, Field(ge=1)] | None = None
    """All methods together; ``base`` and ``icl`` come first."""
    gpu_hours: Positive | None = None
    """Of training and answering together."""
    dollars: Positive | None = None
    """By each candidate's ``price_per_hour`` or ``price``."""
    hours: Positive | None = None
    """Of this command's wall clock."""


class JudgeConfig(ModelConfig):
    """The LLM judge. It is never a model under test."""

    model: str = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Area under the ROC curve its calibration must reach before its scores count."""
    show_question: bool = False
    """Show the judge the user's question beside the two answers. Large judges use it; small ones
    let it distract them, as their calibration shows."""
    calibration_pairs: Annotated[int, Field(ge=5)] = 40
    """Reference answers judged against themselves, and as many against shuffled ones."""


class SamplingConfig(_Model):
    """What replaces the logged sampling parameters, so that trials compare."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Cap on answer tokens; default: what the record's request logged."""


class ScoringConfig(_Model):
    """How answers are compared with production's."""

    call_order: Literal["free", "fixed"] = "free"
    """``fixed`` where the order of a message's tool calls matters; else they are a set."""


class ParityConfig(_Model):
    """How closely a served adapter must answer as it did where it was trained."""

    records: Annotated[int, Field(ge=1, le=256)] = 8
    """Validation records to compare (training records where there is no validation split)."""
    tokens: Annotated[int, Field(ge=1)] = 32
    """Answer tokens to compare for each."""
    mean_difference: Positive = 0.1
    """Nats that log-probabilities of answer tokens may differ by, on average."""
    largest_difference: Positive = 0.5
    """Nats that any one of them may differ by."""


class RankingConfig(_Model):
    """What a leaderboard ranks by."""

    metric: str | None = None
    """Default: ``function_name_and_args_accuracy`` for tool workloads, ``similarity`` for text
    (``exact_match`` where the judge is not trusted or there is none)."""
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


class ProductionConfig(_Model):
    """What production costs today."""

    price: TokenPrice | None = None


class TrackingConfig(_Model):
    """Where MLflow records the run."""

    uri: str | None = None
    """Default: an SQLite file ``mlflow.db`` in the storage folder."""
    experiment: str = "flywheel"


class Experiment(_Model):
    """One complete run: logs, dataset rule, trials, judge, ranking."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    logs: str
    """Log store: a file, folder, glob or fsspec URL of JSON Lines."""
    workload: str
    """The ``workload_id`` to evaluate."""
    client: str | None = None
    """Only this ``client_id``; default: all."""
    storage: str = "flywheel-data"
    """Folder or fsspec URL that every node of the cluster reaches."""
    seed: int = 0
    """Seeds training; the split has its own ``dataset.random_seed``."""
    dataset: DatasetConfig = DatasetConfig()
    candidates: Annotated[list[CandidateConfig], Field(min_length=1)]
    methods: MethodsConfig
    search: SearchConfig = SearchConfig()
    budget: BudgetConfig = BudgetConfig()
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig | None = JudgeConfig()
    """``null`` for none."""
    scoring: ScoringConfig = ScoringConfig()
    parity: ParityConfig = ParityConfig()
    """Trials beyond these limits fail: they would answer differently in production."""
    ranking: RankingConfig = RankingConfig()
    production: ProductionConfig = ProductionConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        titles = [candidate.title for candidate in self.candidates]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two candidates are called {title!r}; give each a name")
        for candidate in self.candidates:
            if not any(map(candidate.can_try, self.methods.chosen)):
                chosen = ", ".join(self.methods.chosen)
                raise ValueError(f"candidate {candidate.title!r} can do no method of: {chosen}")
            if self.judge is not None and _place(candidate) == _place(self.judge):
                raise ValueError(f"judge.model {candidate.model!r} is a candidate itself")
        self._check_baseline()
        return self

    def _check_baseline(self) -> None:
        name = self.ranking.baseline
        if name is None:
            return
        if self.ranking.adaptive:
            raise ValueError("ranking.adaptive compares with logged answers; leave baseline out")
        named = [candidate for candidate in self.candidates if candidate.title == name]
        if not named or "base" not in self.methods.chosen or not named[0].can_try("base"):
            titles = ", ".join(candidate.title for candidate in self.candidates)
            raise ValueError(
                f"ranking.baseline {name!r} must be a candidate ({titles}) asked by method base"
            )

    @model_validator(mode="after")
    def _searchable(self) -> Experiment:
        drawn = [
            f"methods.{method}.{name}"
            for method in self.methods.chosen
            for name in getattr(self.methods, method).distributions()
        ]
        if drawn and self.search.algorithm == "grid":
            raise ValueError(
                f"{drawn[0]} is a distribution; search.algorithm grid knows only lists"
            )
        guided = self.methods.lora and self.search.algorithm == "optuna"
        learning = any(method in LEARNING for method in self.methods.chosen)
        stopped = learning and self.search.scheduler.kind != "none"
        if (guided or stopped) and self.dataset.val_ratio == 0:
            raise ValueError("optuna and schedulers go by validation loss; raise dataset.val_ratio")
        return self


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or any(map(_KEEPS_A_SECRET.search, parse_qs(parts.query)))


def _place(model: ModelConfig) -> tuple[str, str]:
    return model.model, (model.endpoint or "").rstrip("/")


def engines(experiment: Experiment) -> dict[str, Json]:
    """The engine arguments in an experiment, by the field that holds them."""
    found = {f"candidates.{i}.engine": c.engine for i, c in enumerate(experiment.candidates)}
    return {**found, **({"judge.engine": experiment.judge.engine} if experiment.judge else {})}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: A YAML file.
        overrides: ``key=value`` with a dotted key and a YAML value: ``methods.lora.rank=[8,16]``.

    Raises:
        ConfigError: The file cannot be read or a field is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of fields, not {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return validate(data, str(path))


def validate(data: Json, source: str) -> Experiment:
    """Check a parsed experiment; ``source`` names it in errors.

    Raises:
        ConfigError: A field is wrong, missing or unknown.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        found = explained(source, error.errors(), Experiment.model_json_schema())
        raise ConfigError("\n".join(found)) from None


def schema() -> Json:
    """JSON Schema of an experiment file, from which editors complete it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | (
        Experiment.model_json_schema()
    )


def dump(experiment: Experiment) -> str:
    """The complete experiment as YAML, defaults filled in."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def secret(name: str | None) -> str:
    """Read a key from the environment by name.

    Raises:
        ConfigError: The variable is not set.
    """
    if name is None:
        return "none"
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"api_key_env: the environment variable {name} is not set")
    return value


def _apply(data: Json, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must look like key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {_one_line(error)}") from None
    *parents, last = key.split(".")
    place: Any = data
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_index(place, part, override)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--set {override}: {where} is {place!r}, which has no fields")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "nothing: the list is empty"
        raise ConfigError(f"--set {override}: {part!r} is no position; allowed: {allowed}")
    return int(part)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
