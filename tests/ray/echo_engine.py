"""An engine that answers with the adapter it was given, in place of vLLM.

Ray Serve's LLM servers take it from ``RAYLLM_VLLM_ENGINE_CLS``; all else of a replica is the
product's: `flywheel.serving.server` finds model and adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from ray.llm._internal.serve.core.engine.protocol import LLMEngine


class Echo(LLMEngine):  # type: ignore[misc]
    """Keeps what adapters say of themselves."""

    def __init__(self, llm_config: Any) -> None:
        self.adapters: dict[str, str] = {}

    async def start(self) -> None:
        """There is nothing to load."""

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def resolve_lora(self, lora_model: Any) -> None:
        told = json.loads((Path(lora_model.local_path) / "adapter_config.json").read_text())
        self.adapters[lora_model.model_id] = told["says"]

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """Which process answers, and what the adapter says that was asked for."""
        yield {"pid": os.getpid(), "says": self.adapters[serve.get_multiplexed_model_id()]}

    completions = embeddings = transcriptions = chat

    async def check_health(self) -> None:
        """It is well."""

    async def reset_prefix_cache(self) -> None:
        """It has none."""
