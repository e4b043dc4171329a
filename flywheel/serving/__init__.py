"""Where candidates answer: engines served here, or endpoints served elsewhere.

Both sides meet as an `Endpoint`, so inference and judging never know which one they talk to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit, urlunsplit

from flywheel.config import ClientConfig, ModelConfig, secret

OURS = ClientConfig(cache=False, outage_s=300, attempts=100)
"""How an engine of our own is asked: its address lasts as long as its run, so an answer cannot be
found again by it, and a replica that died takes minutes to come back, in which no request gives
up: what vLLM cannot answer it refuses, and is not asked twice."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server that answers under a model name. Holds no secret."""

    url: str
    """Base URL, ending before ``/chat/completions``; a query comes after."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable with the key, read when a client is made."""
    client: ClientConfig = field(default=OURS, compare=False)
    """How to ask; it decides no answer."""

    @property
    def completions_url(self) -> str:
        """Where chat completions are asked for."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions"))

    def streaming(self, timeout_s: float) -> Endpoint:
        """The same place, asked to stream; a first token may take as long as a whole answer."""
        wait = self.client.first_token_timeout_s or timeout_s
        return replace(self, client=self.client.model_copy(update={"first_token_timeout_s": wait}))

    @property
    def api_key(self) -> str:
        """The key itself.

        Raises:
            ConfigError: The variable is not set.
        """
        return secret(self.api_key_env)


def remote(config: ModelConfig) -> Endpoint:
    """The endpoint of a model that is served elsewhere (a NIM or any OpenAI-compatible URL)."""
    assert config.endpoint is not None  # noqa: S101 -- callers ask `config.remote` first
    url = config.endpoint.rstrip("/")
    return Endpoint(url, config.model, config.api_key_env, config.client)
