"""Where candidates answer: engines served here, or endpoints served elsewhere.

Both sides meet as an `Endpoint`, so inference and judging never know which one they talk to.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.config import ModelConfig, secret


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server that answers under a model name. Holds no secret."""

    url: str
    """Base URL, ending before ``/chat/completions``."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable with the key, read when a client is made."""

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
    return Endpoint(config.endpoint.rstrip("/"), config.model, config.api_key_env)
