"""A cluster that scales from zero: a run waits for the nodes it takes, and leaves no request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from raylets import Cluster, Node, cluster, free_port

from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DRIVER = """
import json, sys
from flywheel.arrivals import await_nodes
from flywheel.cluster import connect
from flywheel.config import Experiment

told = []
experiment = Experiment.model_validate(json.loads(sys.argv[2]))
with connect(sys.argv[1]) as found:
    def show(*what):
        told.append(what)
        if experiment.name == "killed":
            print(json.dumps(what), file=sys.__stdout__, flush=True)
    arrived = await_nodes(experiment, found, show)
    from ray.util import placement_group_table
    groups = [group["state"] for group in placement_group_table().values()]
print(json.dumps({"gpus": [node.get("GPU", 0) for node in arrived.nodes], "told": told,
                  "groups": sorted(set(groups))}))
"""


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head without GPU, whose autoscaler starts up to two nodes with one L4 each."""
    port = free_port()
    kinds = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "accelerator_type:L4": 1,
                          "object_store_memory": 100_000_000},
            "node_config": {}, "min_workers": 0, "max_workers": 2,
        },
    }  # fmt: skip
    autoscaler = {
        "cluster_name": "scaled",
        "max_workers": 2,
        "idle_timeout_minutes": 30,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}",
                     "launch_multiple": True},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "upscaling_speed": 1,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("autoscaler") / "cluster.json"
    path.write_text(json.dumps(autoscaler))
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = Node(1, environment=environment, options=[f"--autoscaling-config={path}"])
    with cluster(head, port=port) as found:
        yield found


def asking(name: str, minutes: float, **candidate: Any) -> str:
    model = {"model": "org/m", "engine": {}, "cpus": 1, "gpus": 1, **candidate}
    asked: Json = {
        "name": name, "logs": "logs", "workload": "w", "candidates": [model],
        "methods": {"base": {}}, "judge": None, "cluster": {"wait_minutes": minutes},
    }  # fmt: skip
    return json.dumps(asked)


def outcome(cluster: Cluster, *asked: Any, **candidate: Any) -> Json:
    done = cluster.python("-c", DRIVER, cluster.address, asking(*asked, **candidate))
    assert done.returncode == 0, done.stderr
    told: Json = json.loads(done.stdout)
    return told


def test_a_run_waits_for_nodes_and_leaves_no_request(scaled: Cluster) -> None:
    at_once = outcome(scaled, "at-once", 0)
    assert (at_once["gpus"], at_once["told"]) == ([0], [])

    in_vain = outcome(scaled, "in-vain", 0.1, accelerator="H100")
    assert in_vain["gpus"] == [0]
    assert {tuple(told) for told in in_vain["told"]} == {
        ("waiting for 1 × 1 CPU and 1 GPU of type H100", 0, 1)
    }
    with scaled.running("-c", DRIVER, scaled.address, asking("killed", 5, gpus=2)) as killed:
        assert killed.stdout
        killed.stdout.readline()  # its request is out now

    came = outcome(scaled, "came", 3, min_replicas=2, max_replicas=2, accelerator="L4")
    assert came["gpus"] == [0, 1, 1]
    assert came["told"][0] == ["waiting for 2 × 1 CPU and 1 GPU of type L4", 0, 2]
    assert came["groups"] == ["REMOVED"]
