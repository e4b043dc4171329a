"""Steps that only sleep, sent over a cluster by a driver of their own.

    python sleepers.py ADDRESS STORAGE '{"trials": 4, "seconds": 0.5, "gpus": 1, "kind": "L4"}' ...

prints, as JSON, for each plan: on which node each trial ran and by how much the driver grew; with
``"items"`` in place of ``"trials"``, on which nodes a step of curation ran; with ``"engines"``, a
type of GPU each, where these would start; with ``"adapters"``, which replicas answered with each.
Where a node is refused, why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from flywheel import fanout, spread
from flywheel.budget import Budget
from flywheel.cluster import Needs, connect
from flywheel.config import BudgetConfig, ModelConfig
from flywheel.errors import ClusterError
from flywheel.folders import Desk
from flywheel.serving import engine
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.sweep import Listed
from flywheel.testing import tiny_model
from flywheel.trials import Progress
from flywheel.types import Json, Trial


def here() -> Json:
    """The node that runs this, and its GPUs."""
    import ray

    context = ray.get_runtime_context()
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    return {
        "node": context.get_node_id(),
        "gpus": ray.get_gpu_ids(),
        "node_gpus": resources.get("GPU", 0),
        "kinds": [name for name in resources if name.startswith("accelerator_type:")],
    }


def sleep(trial: Trial, progress: Progress, desk: Desk, seconds: float) -> None:
    """Step by step, so that progress is told."""
    folder = desk.folder(trial)
    began = time.time()
    tries = folder.read_json("tries.json") if folder.exists("tries.json") else []
    folder.write_json("tries.json", [*tries, {"began": began, **here()}])
    for done in range(10):
        time.sleep(seconds / 10)
        progress(done + 1, 10, None)
    facts = {**here(), "began": began, "ended": time.time()}
    folder.write_json("training.json", facts)


def look(item: Json, seconds: float) -> Iterator[Json]:
    """One shard's worth of nothing."""
    time.sleep(seconds)
    yield {"item": item["item"], **{k: v for k, v in here().items() if k == "node"}}


def sweep(storage: str, plan: Json) -> list[Any]:
    """Run so many trials and give what each left."""
    desk = Desk(Storage(storage), "sleepers")
    planned = [Trial("c", "m", "lora", {"n": n}, "f", 0) for n in range(plan["trials"])]
    feed = Listed(planned, desk, Budget(BudgetConfig()), lambda trial: None)
    needs = Needs(plan.get("cpus", 0.1), plan.get("gpus", 0), plan.get("kind"))
    step = partial(sleep, desk=desk, seconds=plan["seconds"])
    together = plan.get("together", len(planned))
    fanout.map_over(step, feed, desk, together, lambda done, total: None, needs)
    folders = [desk.folder(trial) for trial in planned]
    return [
        folder.read_json("training.json")
        if folder.exists("training.json")
        else {"failed": folders.failure(folder)}
        for folder in folders
    ]


def place(kinds: list[str], model: str) -> Json:
    """Ask for an engine with a GPU of each type; the nodes' own types, once places are reserved.

    The engines themselves find no model and are not waited for.
    """
    import ray
    from ray import serve
    from ray.util import placement_group_table

    targets = {}
    for kind in kinds:
        config = ModelConfig(model=model, gpus=1, accelerator=kind)
        spec = EngineSpec.of(config, Needs(1.0, 1, kind), "sleepers")
        app = engine.application(spec)
        targets[kind] = serve.RunTarget(app, name=spec.name, route_prefix=f"/{spec.name}")
    serve.start(proxy_location="Disabled")
    serve.run_many(
        list(targets.values()),
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    found: Json = {}
    while len(found) < len(kinds):
        time.sleep(0.1)
        for group in placement_group_table().values():
            for kind, target in targets.items():
                if target.name in group["name"] and group["state"] == "CREATED":
                    (node,) = group["bundles_to_node_id"].values()
                    found[kind] = [name for name in nodes[node] if name.startswith("accelerator")]
    serve.shutdown()
    return found


def reach(keys: list[str], folder: Path) -> Json:
    """Ask an engine of two replicas for each adapter, before and after one of them is killed."""
    from ray import serve

    for key in keys:
        adapter = folder / "trials" / key / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text(json.dumps({"says": key}))
    config = ModelConfig(model=str(tiny_model(folder / "tiny")), min_replicas=2)
    spec = EngineSpec.of(config, Needs(0.5, 0), "sleepers", str(folder / "trials"), 8)
    serve.start(proxy_location="Disabled")
    serve.run(engine.application(spec), name=spec.name, route_prefix=f"/{spec.name}")
    (server,) = [
        name
        for name in serve.status().applications[spec.name].deployments
        if name.startswith("AdapterServer")
    ]
    handle = serve.get_deployment_handle(server, spec.name).options(stream=True)

    def ask(key: str) -> Json:
        (answer,) = handle.options(multiplexed_model_id=f"{spec.name}:{key}").chat.remote({})
        return dict(answer)

    before = {key: ask(key) for key in keys}
    os.kill(before[keys[0]]["pid"], signal.SIGKILL)
    after = {key: ask(key) for key in keys}
    serve.shutdown()
    return {"before": before, "after": after}


def main() -> None:
    """Do as the command line says."""
    address, storage, *plans = sys.argv[1:]
    found: list[Any] = []
    with connect(address):
        for number, plan in enumerate(map(json.loads, plans)):
            try:
                found.append(done(plan, f"{storage}/{number}"))
            except ClusterError as error:
                found.append({"refused": str(error)})
    sys.stdout.write(json.dumps(found))


def done(plan: Json, storage: str) -> Any:
    """What a plan came to."""
    if "items" in plan:
        items = [{"item": n} for n in range(plan["items"])]
        return list(spread.over(items, look, plan["seconds"]))
    if "engines" in plan:
        return place(plan["engines"], f"{storage}/none")
    if "adapters" in plan:
        return reach(plan["adapters"], Path(storage))
    before = psutil.Process().memory_info().rss
    trials = sweep(storage, plan)
    return {"trials": trials, "grown_bytes": psutil.Process().memory_info().rss - before}


if __name__ == "__main__":
    import sleepers  # so that workers import the steps by their module's name

    sleepers.main()
