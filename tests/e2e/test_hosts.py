"""Whole runs on two hosts, each with a network and a disk of its own: network namespaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from raylets import Cluster, Node, Place, cluster, hosts, wait_until

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

    def logs(self, place: Place) -> str:
        """What replicas said on one of the hosts, which is on its own disk."""
        find = f"cat {place.disk}/session_2*/logs/serve/replica_*.log"
        done = subprocess.run(
            [*place.prefix, "sh", "-c", find], capture_output=True, text=True, check=False
        )
        return done.stdout


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


def results(board: str) -> dict[str, Json]:
    found = [row["result"] for row in json.loads(board)["rows"]]
    return {result["key"]: result for result in found}


def scored(found: dict[str, Json]) -> dict[str, dict[str, int]]:
    """How many records each trial has by metric; models that talk nonsense score nothing."""
    return {k: {name: m["n"] for name, m in r["metrics"].items()} for k, r in found.items()}


def test_a_folder_that_only_one_host_sees_is_refused_before_anything_starts(pair: Pair) -> None:
    mine = f"{pair.places[0].disk}/mine"
    done = pair.cluster.python(*pair.command(f"--set=storage={mine}"))
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert f"storage: {mine}: not all nodes share it" in said
    assert "not seen on 10.77.0.2:" in said
    assert "10.77.0.1:" not in said


@pytest.fixture(scope="module")
def undisturbed(pair: Pair) -> dict[str, Json]:
    done = pair.cluster.python(*pair.command("--json"), timeout=400)
    assert done.returncode == 0, done.stderr
    return results(done.stdout)


def test_a_whole_run_over_two_hosts_has_every_trials_result(undisturbed: dict[str, Json]) -> None:
    assert len(undisturbed) == 3
    assert {result["status"] for result in undisturbed.values()} == {"succeeded"}
    assert all(set(n.values()) == {EVAL_SIZE} for n in scored(undisturbed).values())


def test_each_host_serves_adapters_out_of_the_storage(
    pair: Pair, undisturbed: dict[str, Json]
) -> None:
    loaded = [pair.logs(place).count("comes from") for place in pair.places]
    assert min(loaded) >= 1, loaded


def test_a_host_lost_in_the_middle_changes_no_result(
    pair: Pair, undisturbed: dict[str, Json]
) -> None:
    runs = pair.shared / "storage" / "runs"
    before = set(runs.iterdir())
    driver = pair.cluster.start(*pair.command("--json", "--fresh"))

    def answering() -> bool:
        return any(r.glob("trials/*/completions/*") for r in set(runs.iterdir()) - before)

    wait_until(lambda: driver.poll() is not None or answering(), 300)
    pair.cluster.nodes[1].lose()
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    again = results(out)
    assert scored(again) == scored(undisturbed)
    assert {result["status"] for result in again.values()} == {"succeeded"}
