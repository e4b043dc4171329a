"""The Ray cluster: joining or starting one, and whether what is asked for fits on it.

A run on one machine starts Ray itself and ends it; a run on a cluster joins it (``--address``,
``RAY_ADDRESS``, or inside ``ray job submit``) and leaves it as it was.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from flywheel import logs, sizing
from flywheel.config import FullConfig, LoraConfig, ModelConfig
from flywheel.errors import ClusterError, FlywheelError, boundary
from flywheel.scoring import chosen
from flywheel.types import Json

_INGRESS = 0.5
"""Ray CPUs of a node left to HTTP ingress, Tune trials and the like."""
_MOST_CPUS = 8.0
"""An engine or trainer without GPU takes no more of a node than this unless told to."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an engine or a trainer holds while it works."""

    cpus: float
    gpus: int
    accelerator: str | None = None

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        kind = f" of type {self.accelerator}" if self.accelerator else ""
        return f"{_count(self.cpus, 'CPU')}{gpus}{kind}"


@dataclass(frozen=True, slots=True)
class Want:
    """An engine that is to be started, and how many replicas of it make sense."""

    needs: Needs
    """Of one replica."""
    least: int
    most: int
    work: float
    """What all its trials take on one replica, in a unit that all engines share."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The alive nodes' resources, head first, and whether we started it."""

    nodes: list[dict[str, float]]
    ours: bool

    def engine_needs(self, config: ModelConfig) -> Needs:
        """What one engine of this model holds."""
        return self._needs(config.cpus, config.gpus, config.accelerator)

    def trainer_needs(self, config: LoraConfig | FullConfig) -> Needs:
        """What one trainer holds."""
        return self._needs(config.cpus, config.gpus, config.accelerator)

    def require(self, needs: Needs, what: str, copies: int = 1) -> None:
        """Check that one node can hold this, and all nodes together that many of it.

        Raises:
            ClusterError: They cannot; says what is needed and what is there.
        """
        hint = "" if self.ours else " (cluster.wait_minutes waits for an autoscaler to bring more)"
        if not any(_fits(needs, node) for node in self.nodes):
            raise ClusterError(f"{what} needs {needs} on one node; the cluster has {self}{hint}")
        if not self.holds([needs] * copies):
            raise ClusterError(f"{what} needs {needs} {copies} times; the cluster has {self}{hint}")

    def holds(self, needs: Sequence[Needs]) -> bool:
        """Whether all of these fit side by side, each on one node."""
        free = [dict(node) for node in self.nodes]
        for need in sorted(needs, key=lambda need: (need.gpus, need.cpus), reverse=True):
            node = next((node for node in free if _fits(need, node)), None)
            if node is None:
                return False
            node["CPU"] = node.get("CPU", 0) - need.cpus
            node["GPU"] = node.get("GPU", 0) - need.gpus
        return True

    def require_memory(self, needs: Needs, parts: Mapping[str, float], what: str) -> None:
        """Check that what this holds is large enough, as far as that is known.

        Args:
            needs: What is held; its GPUs' memory counts, or the node's where there are none.
            parts: GiB that are needed at least, by what for.
            what: As in ``the engine of org/m``.

        Raises:
            ClusterError: No node that could hold it has the memory; says how much of what.
        """
        rooms = [_memory_gib(needs, node) for node in self.nodes if _fits(needs, node)]
        known = [room for room in rooms if room is not None]
        if len(known) == len(rooms) and known and max(known) < sizing.needed(parts):
            where = f"on {_count(needs.gpus, 'GPU')}" if needs.gpus else "on one node"
            raise ClusterError(
                f"{what} needs {sizing.needed(parts):.1f} GiB {where} at least "
                f"({sizing.told(parts)}; a tenth for the rest), but there are {max(known):.1f}; "
                "give it more GPUs, a shorter engine.max_model_len, or a smaller model"
            )

    def room(self, needs: Needs) -> int:
        """How many of these the cluster holds at the same time."""
        return sum(_times(needs, node) for node in self.nodes)

    def share(self, wants: Sequence[Want]) -> list[int]:
        """How many replicas each engine gets, so that all have about the same to do.

        Each gets the least it wants. What is left goes, one by one, to the engine with the most
        work for each of its replicas, as long as all that fit side by side still do.
        """
        counts, held = [want.least for want in wants], list[Needs]()
        beside = []
        for number, want in enumerate(wants):  # those left out wait until others have ended
            if self.holds([*held, *[want.needs] * want.least]):
                held += [want.needs] * want.least
                beside.append(number)
        while True:
            beside.sort(key=lambda number: wants[number].work / counts[number], reverse=True)
            for number in beside:
                want = wants[number]
                if counts[number] < want.most and self.holds([*held, want.needs]):
                    counts[number] += 1
                    held.append(want.needs)
                    break
            else:
                return counts

    def require_key(self, name: str | None) -> None:
        """Check that workers find a key in their environment, which need not be the driver's.

        Raises:
            ClusterError: They do not.
        """
        if name and not self.ours and not _on_a_worker(_has_key, name):
            raise ClusterError(
                f"api_key_env: the environment variable {name} is not set on the cluster's workers"
            )

    def require_metrics(self, entries: Sequence[Json]) -> None:
        """Check that workers find a user's own metrics, and the same ones.

        Args:
            entries: From `flywheel.scoring.chosen.own`.

        Raises:
            ClusterError: They do not.
        """
        if entries and (problem := _on_a_worker(_missing_metric, entries)):
            raise ClusterError(f"on the cluster's workers {problem}")

    def __str__(self) -> str:
        return "; ".join(_describe(node) for node in self.nodes) or "no nodes"

    def _needs(self, cpus: float | None, gpus: int | None, accelerator: str | None) -> Needs:
        some_gpu = any(node.get("GPU", 0) >= 1 for node in self.nodes)
        if gpus is None:
            gpus = 1 if some_gpu else 0
        if cpus is None:
            largest = max((node.get("CPU", 0) for node in self.nodes), default=0)
            cpus = float(gpus) if gpus else min(_MOST_CPUS, max(0.5, largest - _INGRESS))
        return Needs(cpus, gpus, accelerator)


@contextmanager
def connect(address: str | None = None) -> Iterator[Cluster]:
    """Join the cluster at ``address`` or ``RAY_ADDRESS``, else start Ray on this machine.

    Raises:
        ClusterError: There is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _knock(address)
    import ray

    options: Json = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = max(2, os.cpu_count() or 2)
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    else:
        options |= {"address": address}
        if chosen := logs.environment():  # processes of a Ray of our own have it from this one
            options["runtime_env"] = {"env_vars": chosen}
    # What nodes have to say, and at the end what it kept back, Ray prints to the standard output,
    # which belongs to results.
    with redirect_stdout(sys.stderr):
        with boundary(ClusterError, f"joining the Ray cluster at {address or 'this machine'}"):
            ray.init(**options)
        for name in ("ray", "ray.serve", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is data of ours
        try:
            yield describe(ours=address is None)
        finally:
            ray.shutdown()


@contextmanager
def own_errors() -> Iterator[None]:
    """An error of ours in a worker is the user's, without the traceback that Ray puts before it.

    Raises:
        FlywheelError: What a worker raised. Foreign errors pass as Ray has them.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, FlywheelError):
            raise
        # Ray Data appends advice on retries to the message.
        raise type(cause)(str(cause).splitlines()[0]) from None


def describe(*, ours: bool) -> Cluster:
    """The cluster this process is connected to."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: "node:__internal_head__" not in node["Resources"])
    return Cluster([node["Resources"] for node in nodes], ours)


def _on_a_worker(function: Callable[[Any], Any], argument: Any) -> Any:
    import ray

    return ray.get(ray.remote(num_cpus=0)(function).remote(argument))


def _missing_metric(entries: Sequence[Json]) -> str:
    try:
        chosen.bound(entries, labels=False)
    except FlywheelError as error:
        return str(error)
    return ""


def _has_key(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def _knock(address: str) -> None:
    """See that somebody listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or "://" in host:
        return  # "auto", or a URL that Ray may know
    with boundary(ClusterError, f"joining the Ray cluster at {address}"):
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _memory_gib(needs: Needs, node: dict[str, float]) -> float | None:
    """GiB of what these needs hold on a node; none where nobody says."""
    if not needs.gpus:
        return node["memory"] / sizing.GIB if "memory" in node else None
    sizes = [sizing.GPU_GIB.get(kind) for kind in _kinds(node)]
    largest = [size for size in sizes if size is not None]
    return float(needs.gpus * max(largest)) if largest and len(largest) == len(sizes) else None


def _kinds(node: dict[str, float]) -> list[str]:
    return [name.split(":", 1)[1] for name in node if name.startswith("accelerator_type:")]


def _times(needs: Needs, node: dict[str, float]) -> int:
    if not _fits(needs, node):
        return 0
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus}
    return min(int(node[name] // amount) for name, amount in wanted.items() if amount)


def _fits(needs: Needs, node: dict[str, float]) -> bool:
    kind = f"accelerator_type:{needs.accelerator}"
    return (
        node.get("CPU", 0) >= needs.cpus
        and node.get("GPU", 0) >= needs.gpus
        and (needs.accelerator is None or kind in node)
    )


def _describe(node: dict[str, float]) -> str:
    kind = f" ({', '.join(_kinds(node))})" if _kinds(node) else ""
    cpus, gpus = (_count(node.get(name, 0), name) for name in ("CPU", "GPU"))
    return f"a node with {cpus} and {gpus}{kind}"


def _count(n: float, name: str) -> str:
    return f"{n:g} {name}" if n == 1 else f"{n:g} {name}s"
