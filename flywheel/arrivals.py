"""Nodes that are not there yet: an autoscaler brings them where something waits for them.

A run plans by the nodes it sees, and a cluster that scales from zero shows none with a GPU. So what
engines and trainers are going to hold is asked for by placement groups, which the autoscaler counts
as demand, until nodes for it have come. Ray drops the groups with the run, even a killed one, so no
request outlives it and no node is kept for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flywheel.cluster import Cluster, Needs, describe
from flywheel.config import Experiment, FullConfig, LoraConfig, ModelConfig

Worker = ModelConfig | LoraConfig | FullConfig
Show = Callable[[str, int, int], None]
_LOOK_S = 2.0
_SLIVER = 0.001
"""Of a node's ``accelerator_type``, a mark of which it has one."""


def await_nodes(experiment: Experiment, cluster: Cluster, show: Show) -> Cluster:
    """Wait until the cluster has the nodes that the experiment takes, or time is up.

    Args:
        experiment: Says for how long, ``cluster.wait_minutes``; not at all by default.
        cluster: As it is now.
        show: Told the stage, how much of what is waited for fits by now, and of how much.

    Returns:
        The cluster as it is then, perhaps still too small: what is refused is not decided here.
    """
    deadline = time.monotonic() + 60 * experiment.cluster.wait_minutes
    if cluster.ours or not experiment.cluster.wait_minutes:
        return cluster
    for stage in _stages(experiment):
        wanted = [need for one, copies in stage for need in [_needs(cluster, one)] * copies]
        if cluster.holds(wanted):
            continue
        with _asked_for(wanted):
            while time.monotonic() < deadline and not cluster.holds(wanted):
                show(f"waiting for {_told(wanted)}", _fitting(cluster, wanted), len(wanted))
                time.sleep(_LOOK_S)
                cluster = describe(ours=False)
    return cluster


def _stages(experiment: Experiment) -> Iterator[list[tuple[Worker, int]]]:
    """Who works at the same time, and how many of each."""
    for models in (experiment.candidates, experiment.judges):
        yield [(model, model.min_replicas) for model in models if not model.remote]
    together = experiment.search.max_concurrent or 1
    for method in (experiment.methods.lora, experiment.methods.full):
        if method:
            yield [(method, together)]


def _needs(cluster: Cluster, worker: Worker) -> Needs:
    if isinstance(worker, ModelConfig):
        return cluster.engine_needs(worker)
    return cluster.trainer_needs(worker)


@contextmanager
def _asked_for(wanted: Sequence[Needs]) -> Iterator[None]:
    from ray.util.placement_group import placement_group, remove_placement_group

    groups = [placement_group([_bundle(need)]) for need in wanted]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def _bundle(need: Needs) -> dict[str, float]:
    amounts = {"CPU": need.cpus, "GPU": float(need.gpus)}
    if need.accelerator:
        amounts[f"accelerator_type:{need.accelerator}"] = _SLIVER
    return {name: amount for name, amount in amounts.items() if amount}


def _fitting(cluster: Cluster, wanted: Sequence[Needs]) -> int:
    return next(n for n in range(len(wanted), -1, -1) if cluster.holds(wanted[:n]))


def _told(wanted: Sequence[Needs]) -> str:
    """As in ``2 × 1 CPU and 1 GPU``."""
    return ", ".join(f"{wanted.count(need)} × {need}" for need in dict.fromkeys(wanted))
