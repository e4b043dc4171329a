"""One vLLM engine per base model behind Ray Serve, all adapters of that model in it.

`serve` starts the engine, yields its `Endpoint`, and stops it. Adapters need no announcement: a
request for model ``<name>:<trial key>`` makes the replica fetch that trial's adapter from the run's
storage and load it.

This module alone touches ``ray.serve.llm``, private names included (its own loader takes cloud
URLs only); the contract test ``tests/e2e/test_engine.py`` notices when they move.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from flywheel import versions
from flywheel.cluster import Needs
from flywheel.config import ModelConfig
from flywheel.errors import EngineError, boundary
from flywheel.serving import Endpoint, failures, keeper
from flywheel.types import Json, content_hash

INGRESS_CPUS = 0.1
"""Ray CPUs of the HTTP ingress; the engine's share leaves room for it."""
BUSY = 32
"""Requests in flight per replica from which Ray Serve starts another, as far as it may."""
MAX_ADAPTERS = 8
"""Adapters one engine holds at a time; the least recently used makes room."""
_LOOK_S = 0.2
_LINGERS_S = 0.1
"""A run's engine stops when nobody has anything left to ask."""
_STARTS = 2
"""Tries to start; a machine may be taken away once, all else would fail again."""
_DECIDES = {
    "model", "engine", "tool_parser", "cpus", "gpus", "accelerator", "min_replicas", "max_replicas"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to serve and what it may hold. Picklable."""

    name: str
    """Model name in requests; no colon."""
    config: ModelConfig
    cpus: float
    gpus: int
    adapters_url: str = ""
    """Folder of trials (``<key>/adapter``) that adapters come from; empty for none."""
    max_rank: int = 16
    port: int = 8000
    host: str = "127.0.0.1"

    @classmethod
    def of(
        cls, model: ModelConfig, needs: Needs, owner: str, adapters_url: str = "", max_rank: int = 0
    ) -> EngineSpec:
        """Name an engine by its owner (a run) and what decides how it is served.

        Candidates that agree in this share it.
        """
        decides = content_hash([owner, model.model_dump(include=_DECIDES)], 8)
        name = f"{_slug(model.model)}-{decides}"
        return cls(name, model, needs.cpus, needs.gpus, adapters_url, max_rank)

    @property
    def needs(self) -> list[Needs]:
        """What it holds, one by one: a replica stands on one node."""
        one = Needs(self.cpus, self.gpus, self.config.accelerator)
        return [one] * self.config.min_replicas

    def times(self, replicas: int) -> EngineSpec:
        """The same engine with so many replicas from the start."""
        return replace(self, config=self.config.model_copy(update={"min_replicas": replicas}))

    def endpoint(self, adapter: str = "") -> Endpoint:
        """Where to send requests for the base model, or for one adapter of it."""
        model = f"{self.name}:{adapter}" if adapter else self.name
        return Endpoint(f"http://{self.host}:{self.port}/{self.name}/v1", model)


@contextmanager
def serve(spec: EngineSpec, *, local: bool) -> Iterator[EngineSpec]:
    """Start the engine, wait until it answers, and stop it on the way out.

    Args:
        spec: What to serve; its address is filled in.
        local: True where this process started Ray for itself: then only this machine is served,
            on a free port. On a cluster, Serve's own address is used.

    Raises:
        EngineError: The engine did not start; says why.
        ClusterError: A node that joined late has other versions than this process.
    """
    from ray import serve as ray_serve

    with ExitStack() as held:
        with boundary(EngineError, f"starting the engine of {spec.config.model}"):
            spec = located(spec, local=local)
            if not local:  # a Ray of our own goes with this process, engines and all
                held.enter_context(keeper.kept(spec.name))
            held.callback(ray_serve.delete, spec.name)
            _deploy(spec)
        yield spec


def located(spec: EngineSpec, *, local: bool) -> EngineSpec:
    """Fill in where the engine answers, or will: Serve's HTTP is started, the engine is not.

    Raises:
        EngineError: Serve does not start.
    """
    with boundary(EngineError, "starting Ray Serve"):
        host, port = _start_http(local=local)
    return replace(spec, host=host, port=port)


def _deploy(spec: EngineSpec) -> None:
    """Start the application, and wait until it answers.

    `ray.serve.run` would wait for ever for one that is given up meanwhile.
    """
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ApplicationStatus

    app, model = application(spec, lingers_s=_LINGERS_S), spec.config.model
    target = ray_serve.RunTarget(app, name=spec.name, route_prefix=f"/{spec.name}")
    ray_serve.run_many([target], wait_for_applications_running=False)
    while True:
        there = ray_serve.status().applications.get(spec.name)
        if there is None or there.status == ApplicationStatus.DELETING:
            raise EngineError(f"the engine of {model} was given up while it started")
        if there.status == ApplicationStatus.DEPLOY_FAILED:
            raise failures.raised([one.message for one in there.deployments.values()], model)
        if there.status == ApplicationStatus.RUNNING:
            break
        time.sleep(_LOOK_S)
    _get_global_client().wait_for_proxies_serving()


def give_up(spec: EngineSpec) -> None:
    """End an engine that another thread is starting, whose `serve` then fails."""
    import ray
    from ray import serve as ray_serve

    ray_serve.delete(spec.name, _blocking=False)
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{spec.name}#"):
            # While it starts it hears nothing, and Ray Serve would wait for it for 20 s.
            with suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(**actor))


def stop_if_idle() -> None:
    """Shut Ray Serve down unless somebody's applications are still on it."""
    from ray import serve as ray_serve

    if not ray_serve.status().applications:
        ray_serve.shutdown()


def _start_http(*, local: bool) -> tuple[str, int]:
    """Start Serve's HTTP proxy if there is none, and say where it listens."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client

    wanted = {"host": "127.0.0.1", "port": _free_port()} if local else {"host": "0.0.0.0"}  # noqa: S104
    ray_serve.start(proxy_location="HeadOnly", http_options=wanted)
    port = int(_get_global_client().http_config.port)
    if local:
        return "127.0.0.1", port
    heads = [n for n in ray.nodes() if "node:__internal_head__" in n["Resources"]]
    return str(heads[0]["NodeManagerAddress"]), port


def _slug(model: str) -> str:
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return "".join(c if c.isalnum() else "-" for c in last)[:40].strip("-")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def application(spec: EngineSpec, lingers_s: float = 2.0) -> Any:
    """The Ray Serve application of an engine, not yet running; its paths begin with ``/v1``.

    Args:
        spec: What to serve.
        lingers_s: How long it is there at least when it is to stop, for whoever asks it still.
    """
    from ray.serve.llm import build_openai_app

    return build_openai_app(
        {
            "llm_configs": [_llm_config(spec, lingers_s)],
            "ingress_deployment_config": {
                "ray_actor_options": {"num_cpus": INGRESS_CPUS},
                "graceful_shutdown_wait_loop_s": lingers_s,
                "autoscaling_config": {"min_replicas": 1, "max_replicas": 1},
            },
        }
    )


def _llm_config(spec: EngineSpec, lingers_s: float) -> Any:
    from ray.serve.llm import LLMConfig

    bundle: dict[str, float] = {"CPU": spec.cpus}
    if spec.gpus:
        bundle = {"GPU": 1, "CPU": spec.cpus / spec.gpus}
    options: Json = {
        "model_loading_config": {"model_id": spec.name, "model_source": spec.config.model},
        "engine_kwargs": _engine_arguments(spec),
        "accelerator_type": spec.config.accelerator,
        "placement_group_config": {"bundles": [bundle] * max(1, spec.gpus)},
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": spec.config.min_replicas,
                "max_replicas": spec.config.max_replicas or spec.config.min_replicas,
                "target_ongoing_requests": BUSY,
            },
            "max_ongoing_requests": 1024,
            "health_check_timeout_s": 120,
            "max_constructor_retry_count": _STARTS,
            "graceful_shutdown_wait_loop_s": lingers_s,
            "ray_actor_options": {"num_cpus": 0},  # the bundle above already counts it
        },
        "runtime_env": {"env_vars": _environment(spec)},
        # Batching streamed tokens by 50 ms would spoil every latency measured here.
        "experimental_configs": {"stream_batching_interval_ms": 0, "num_ingress_replicas": 1},
        "log_engine_metrics": False,
        "server_cls": "flywheel.serving.server:AdapterServer",
        "callback_config": {"callback_class": "flywheel.serving.server:WeightsAreHere"},
    }
    if spec.adapters_url:
        options["lora_config"] = {
            "dynamic_lora_loading_path": None,
            "max_num_adapters_per_replica": MAX_ADAPTERS,
        }
    return LLMConfig(**options)


def _engine_arguments(spec: EngineSpec) -> Json:
    arguments: Json = {
        "trust_remote_code": False,
        "enable_auto_tool_choice": True,
        "tool_call_parser": spec.config.tool_parser,  # the replica, with the template, tells auto
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # A repository's own sampling defaults would make copies of one model answer differently.
        "generation_config": "vllm",
    }
    if not spec.gpus:
        arguments |= {"enforce_eager": True, "dtype": "bfloat16", "max_num_seqs": 64}
    if spec.adapters_url:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1 if not spec.gpus else MAX_ADAPTERS,
            "max_cpu_loras": MAX_ADAPTERS,
            "max_lora_rank": spec.max_rank,
        }
    return {**arguments, **spec.config.engine}


def _environment(spec: EngineSpec) -> dict[str, str]:
    environment = {
        "FLYWHEEL_ADAPTERS_URL": spec.adapters_url,
        "FLYWHEEL_VERSIONS": json.dumps(versions.installed()),
    }
    if not spec.gpus:
        environment["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
        environment["TORCHDYNAMO_DISABLE"] = "1"  # some requests would compile, with g++
    return environment
