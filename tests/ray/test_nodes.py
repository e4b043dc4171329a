"""Clusters of several nodes: what runs where, what is refused, and what a lost node costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from raylets import Cluster, Node, Raylet, cluster, wait_until
from recovery import told

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

SLEEPERS = str(Path(__file__).with_name("sleepers.py"))


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A head without GPU, a node with two L4, a node with one H100."""
    nodes = Node(2), Node(2, 2, "L4"), Node(2, 1, "H100")
    with cluster(*(replace(node, environment=ECHO) for node in nodes)) as found:
        yield found


PLANS: list[Json] = [
    {"trials": 6, "seconds": 2, "gpus": 1, "together": 3},
    {"trials": 3, "seconds": 0.5, "gpus": 1, "kind": "H100", "together": 3},
    {"items": 12, "seconds": 0.5},
    {"engines": ["L4", "H100"]},
    {"adapters": ["a", "b"]},
]
ECHO = {"RAYLLM_VLLM_ENGINE_CLS": "echo_engine.Echo"}
"""Replicas of engines answer with their adapters."""


@pytest.fixture(scope="module")
def found(three: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Where sleeping trainings ran, those that ask for a type of GPU, curation, and engines."""
    storage = str(tmp_path_factory.mktemp("sleepers"))
    plans = map(json.dumps, PLANS)
    done = three.python(SLEEPERS, three.address, storage, *plans, timeout=400)
    assert done.returncode == 0, done.stderr
    each: list[Any] = json.loads(done.stdout)
    return each


def test_trainings_take_the_gpus_of_every_node_and_no_node_without(found: list[Any]) -> None:
    trials = found[0]["trials"]
    assert min(one["node_gpus"] for one in trials) >= 1
    assert len({one["node"] for one in trials}) == 2
    assert all(len(one["gpus"]) == 1 for one in trials)
    for one in trials:  # no GPU is in two hands
        others = [
            other
            for other in trials
            if other is not one and (other["node"], other["gpus"]) == (one["node"], one["gpus"])
        ]
        assert all(o["ended"] <= one["began"] or one["ended"] <= o["began"] for o in others)


def test_a_gpu_type_that_is_asked_for_is_what_trials_get(found: list[Any]) -> None:
    trials = found[1]["trials"]
    assert [one["kinds"] for one in trials] == [["accelerator_type:H100"]] * 3
    spans = sorted((one["began"], one["ended"]) for one in trials)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_an_engine_is_placed_where_the_gpu_type_is_that_is_asked_for(found: list[Any]) -> None:
    assert found[3] == {"L4": ["accelerator_type:L4"], "H100": ["accelerator_type:H100"]}


def test_what_one_replica_answered_with_an_adapter_another_does_too(found: list[Any]) -> None:
    before, after = found[4]["before"], found[4]["after"]
    for answers in (before, after):
        assert {key: one["says"] for key, one in answers.items()} == {"a": "a", "b": "b"}
    assert before["a"]["pid"] not in {one["pid"] for one in after.values()}


def test_curation_spreads_over_nodes(found: list[Any]) -> None:
    assert sorted(one["item"] for one in found[2]) == list(range(12))
    assert len({one["node"] for one in found[2]}) >= 2


def test_what_a_lost_node_was_training_is_trained_by_another(
    three: Cluster, tmp_path: Path
) -> None:
    lost = three.add(Node(8, 3, "L4"))  # the only one with three GPUs
    plan = {"trials": 6, "seconds": 5, "gpus": 1, "together": 6}
    folder = tmp_path / "0" / "runs" / "sleepers" / "trials"

    def at_work() -> list[Path]:
        begun = {path.parent: json.loads(path.read_text()) for path in folder.glob("*/tries.json")}
        there = [trial for trial, tries in begun.items() if tries[-1]["node_gpus"] == 3]
        return [trial for trial in there if not (trial / "training.json").exists()]

    with three.running(SLEEPERS, three.address, str(tmp_path), json.dumps(plan)) as driver:
        wait_until(at_work)
        interrupted = at_work()
        at = time.time()
        lost.lose()
        out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    trials = json.loads(out)[0]["trials"]  # whatever Ray has to say of the loss
    assert [one for one in trials if "failed" in one] == []
    assert len(list(folder.glob("*/training.json"))) == 6
    assert interrupted
    took = []
    for trial in interrupted:
        first, second = json.loads((trial / "tries.json").read_text())
        assert first["node"] != second["node"]
        took.append(second["began"] - at)
    told("A node is lost during a training", "its second beginning", *took)


def experiment(folder: Path) -> Path:
    write_sample_logs(folder / "logs", 300)
    file = folder / "nodes.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "nodes",
                "logs": str(folder / "logs"),
                "workload": ROUTER,
                "storage": str(folder / "storage"),
                "dataset": {"eval_size": 10},
                "candidates": [{"model": "m", "endpoint": "http://127.0.0.1:9/v1"}],
                "methods": {"base": {}},
                "judge": None,
            }
        )
    )
    return file


@pytest.fixture(scope="module")
def older(three: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Raylet:
    """A node that joins with older packages, the only one with three GPUs."""
    folder = tmp_path_factory.mktemp("older")
    for name, version in {"transformers": "4.0.1", "peft": "0.1.2"}.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = f"{folder}:{three.environment['PYTHONPATH']}"
    return three.add(Node(2, 3, "L4", environment={"PYTHONPATH": path}))


DIFFERS = r"transformers is [\d.]+ at the driver, but 4\.0\.1 on [\d.]+:\d+\. peft is "


@pytest.mark.usefixtures("older")
def test_nodes_with_other_packages_are_refused_by_name_version_and_node(
    three: Cluster, tmp_path: Path
) -> None:
    file = experiment(tmp_path)
    done = three.python("-m", "flywheel", "run", str(file), f"--address={three.address}")
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert re.search(DIFFERS, said)
    assert "ray is" not in said
    assert not (tmp_path / "storage" / "runs").exists()


@pytest.mark.usefixtures("older")
def test_such_a_node_that_joined_after_the_check_is_refused_by_the_work_that_comes_there(
    three: Cluster, tmp_path: Path
) -> None:
    training = {"trials": 3, "seconds": 0.1, "gpus": 3, "together": 1}
    plans = [training, {"items": 8, "seconds": 0.5}]
    done = three.python(SLEEPERS, three.address, str(tmp_path), *map(json.dumps, plans))
    assert done.returncode == 0, done.stderr
    for one in json.loads(done.stdout):
        assert re.search(DIFFERS, one["refused"])
        assert "\n" not in one["refused"]
    begun = list(tmp_path.glob("0/runs/*/trials/*"))
    assert [[path.name for path in one.iterdir()] for one in begun] == [["spec.json"]]
