"""Whole runs on two hosts, each with a network and a disk of its own: network namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from raylets import Cluster, Node, Place, cluster, hosts

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.testing import tiny_model
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EVAL_SIZE = 12


@dataclass(frozen=True)
class Pair:
    """Two hosts with a cluster on them, and the folder that both see."""

    places: list[Place]
    cluster: Cluster
    shared: Path

    def command(self, *arguments: str) -> list[str]:
        file = str(self.shared / "hosts.yaml")
        return ["-m", "flywheel", "run", file, f"--address={self.cluster.address}", *arguments]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    shared = tmp_path_factory.mktemp("hosts") / "shared"
    write_sample_logs(shared / "logs", 300)
    experiment: Json = {
        "name": "hosts",
        "logs": str(shared / "logs"),
        "workload": ROUTER,
        "storage": str(shared / "storage"),
        "dataset": {"eval_size": EVAL_SIZE, "val_ratio": 0.05},
        "candidates": [
            {
                "model": str(tiny_model(shared / "tiny")),
                "engine": {"max_model_len": 4096},
                "cpus": 1.5,  # of a host's two: so each has one replica
                "min_replicas": 2,
            }
        ],
        "methods": {
            "base": {},
            "lora": {"rank": 8, "learning_rate": [1e-3, 1e-2], "steps": 2, "cpus": 1.5},
        },
        "sampling": {"max_tokens": 16},
        "judge": None,
    }
    (shared / "hosts.yaml").write_text(yaml.safe_dump(experiment))
    with (
        hosts(2) as places,
        cluster(*(Node(2, place=place) for place in places)) as running,
    ):
        yield Pair(places, running, shared)


def everything_is_there(board: str) -> None:
    """Every trial ended well and has a score of every record, or why it has none."""
    results = [row["result"] for row in json.loads(board)["rows"]]
    assert [result["status"] for result in results] == ["succeeded"] * 3
    assert {m["n"] for result in results for m in result["metrics"].values()} == {EVAL_SIZE}


def test_a_folder_that_only_one_host_sees_is_refused_before_anything_starts(pair: Pair) -> None:
    mine = f"{pair.places[0].disk}/mine"
    done = pair.cluster.python(*pair.command(f"--set=storage={mine}"))
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert f"storage: {mine}: not all nodes share it" in said
    assert "not seen on 10.77.0.2:" in said
    assert "10.77.0.1:" not in said


def test_a_whole_run_spreads_over_two_hosts(pair: Pair) -> None:
    done = pair.cluster.python(*pair.command("--json"), timeout=400)
    assert done.returncode == 0, done.stderr
    everything_is_there(done.stdout)
