"""An engine that answers with the adapter it was given, in place of vLLM.

Without an adapter it answers after ``ECHO_SECONDS``, and ``asked.jsonl`` in its model's folder says
which process was asked what. Ray Serve's LLM servers take it from ``RAYLLM_VLLM_ENGINE_CLS``; all
else of a replica is the product's: `flywheel.serving.server` finds model and adapters.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionResponse
from ray.llm._internal.serve.core.engine.protocol import LLMEngine


class Echo(LLMEngine):  # type: ignore[misc]
    """Keeps what adapters say of themselves."""

    def __init__(self, llm_config: Any) -> None:
        self.adapters: dict[str, str] = {}
        self.folder = Path(llm_config.model_loading_config.model_source)

    async def start(self) -> None:
        """There is nothing to load."""

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def resolve_lora(self, lora_model: Any) -> None:
        told = json.loads((Path(lora_model.local_path) / "adapter_config.json").read_text())
        self.adapters[lora_model.model_id] = told["says"]

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """Which process answers, and what the adapter says that was asked for."""
        if adapter := serve.get_multiplexed_model_id():
            yield {"pid": os.getpid(), "says": self.adapters[adapter]}
            return
        self._note(request.messages)
        await asyncio.sleep(float(os.environ["ECHO_SECONDS"]))
        said = {"role": "assistant", "content": "so it is"}
        yield ChatCompletionResponse(
            model=request.model,
            choices=[{"index": 0, "message": said, "finish_reason": "stop"}],
            usage={"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        )

    def _note(self, messages: Any) -> None:
        line = json.dumps({"messages": messages, "pid": os.getpid(), "at": time.time()})
        with (self.folder / "asked.jsonl").open("a") as out:
            out.write(line + "\n")

    completions = embeddings = transcriptions = chat

    async def check_health(self) -> None:
        """It is well."""

    async def reset_prefix_cache(self) -> None:
        """It has none."""
