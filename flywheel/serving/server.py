"""The replica's side of an engine: `ray.serve.llm`'s server, taught three things.

It finds weights through `flywheel.models` on its own node, it takes adapters from the run's
storage, and it starts nothing on the way that an engine can do without. All lean on private names
of ``ray.serve.llm``; see `flywheel.serving.engine`.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from vllm.config import StructuredOutputsConfig

from flywheel import models, nodes
from flywheel.rendering import Renderer
from flywheel.serving import failures, leftovers
from flywheel.serving.tool_parsers import parser_of
from flywheel.storage import Storage


class AdapterLoader(LoraModelLoader):  # type: ignore[misc]
    """Loads adapter ``<model>:<trial key>`` from ``<trials folder>/<trial key>/adapter``."""

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> Any:
        """Fetch the adapter to this node's disk (in place when the storage is a local folder)."""
        key = lora_model_id.rsplit(":", 1)[-1]
        trials = Storage(os.environ["FLYWHEEL_ADAPTERS_URL"])
        target = Path(tempfile.gettempdir()) / "flywheel-adapters" / key
        folder = await asyncio.to_thread(trials.download, f"{key}/adapter", target)
        if not (folder / "adapter_config.json").is_file():
            raise FileNotFoundError(f"no adapter at {trials.url}/{key}/adapter")
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(folder),
            lora_assigned_int_id=global_id_manager.next(),
        )


class WeightsAreHere(CallbackBase):  # type: ignore[misc]
    """Starts no process that would import vLLM and then find nothing to download."""

    async def on_before_node_init(self) -> None:
        """Leave out what comes next."""
        self.ctx.run_init_node = False


class AdapterServer(LLMServer):  # type: ignore[misc]
    """An LLM server whose weights and adapters come the way this project finds them."""

    async def __init__(self, llm_config: Any, **options: Any) -> None:  # type: ignore[misc]
        """Resolve the weights on this node, give the engine the shared template, then start.

        Raises:
            ClusterError: The node joined late, and has other versions than the driver.
        """
        nodes.require_here(json.loads(os.environ["FLYWHEEL_VERSIONS"]))
        folder = await asyncio.to_thread(models.fetch, llm_config.model_loading_config.model_source)
        llm_config.model_loading_config.model_source = str(folder)
        renderer = await asyncio.to_thread(Renderer.load, folder)
        if llm_config.engine_kwargs["tool_call_parser"] == "auto":
            llm_config.update_engine_kwargs(tool_call_parser=parser_of(renderer.template))
        llm_config.update_engine_kwargs(
            chat_template=renderer.template,
            chat_template_content_format="string",
            # A small model left to choose white space can print nothing else until its limit.
            structured_outputs_config=StructuredOutputsConfig(
                backend="xgrammar", disable_any_whitespace=True
            ),
        )
        llm_config._engine_config = None  # built from the id before the weights were found
        with leftovers.removed_with_this_process(), failures.explained():
            await super().__init__(llm_config, **options)

    async def _start_engine(self) -> None:
        """Start it, and no actor that counts for Ray's usage statistics which models are served.

        The replica would wait for that actor, which imports vLLM, before it answers.
        """
        await self.engine.start()

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        """One request at a time: a second that finds an adapter half loaded would answer 500."""
        async with self._loading:
            await super()._maybe_resolve_lora_from_multiplex()

    def _init_multiplex_loader(self, model_downloader_cls: Any = None) -> None:
        self._loading = asyncio.Lock()
        super()._init_multiplex_loader(model_downloader_cls or AdapterLoader)
