"""Who answers: a model served here or elsewhere, how it is asked, and what it bills."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from flywheel.config.section import Section
from flywheel.types import Json

LEARNING = ("lora", "full")
"""Methods that train weights, and so need them here."""


class TokenPrice(Section):
    """Dollars per million tokens, as endpoints bill."""

    input_per_million: Annotated[float, Field(ge=0)]
    cached_input_per_million: Annotated[float, Field(ge=0)] | None = None
    """For input tokens that the server found in its cache; default: as other input."""
    output_per_million: Annotated[float, Field(ge=0)]


class ClientConfig(Section):
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


class ModelConfig(Section):
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
    """Dollars per hour of the machine that serves the weights here; what trains them costs as
    much."""
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


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or any(map(_KEEPS_A_SECRET.search, parse_qs(parts.query)))
