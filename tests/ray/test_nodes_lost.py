"""Whole runs on a cluster that loses a node: they end by themselves, as an undisturbed run does.

The head holds nothing and the driver, so that readers and trials are on the other nodes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml
from raylets import Cluster, Node, Raylet, cluster, wait_until
from recovery import told

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.testing import FakeEndpoint, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

LOGS = 5_000
COPIES = 2
"""Of each file, so that reading takes seconds; they add nothing to the dataset."""
EVAL_SIZE = 24
WORKERS = Node(2)
IN_FLIGHT = 2


def guess(body: Json) -> Json:
    """Right for some questions, and slow enough to lose a node meanwhile."""
    time.sleep(0.5)
    return tool_reply("track_order", {"order_id": "MM-1"})


@dataclass(frozen=True)
class Bench:
    """A cluster, and an experiment that runs on it with one storage or another."""

    cluster: Cluster
    file: Path
    fake: FakeEndpoint

    def run(self, storage: Path) -> list[str]:
        where = [f"--address={self.cluster.address}", f"--set=storage={storage}", "--json"]
        return ["-m", "flywheel", "run", str(self.file), *where]

    def disturbed(self, storage: Path, busy: Callable[[], Raylet | None]) -> tuple[Json, float]:
        """A run that loses the node that is busy; its board, and when the node was lost."""
        if len(self.cluster.nodes) < 3:  # another run has lost one
            self.cluster.add(WORKERS)
        with self.cluster.running(*self.run(storage)) as driver:
            wait_until(lambda: driver.poll() is not None or busy())
            victim = busy()
            assert victim is not None
            at = time.time()
            victim.lose()
            out, err = driver.communicate(timeout=240)
        self.cluster.nodes.remove(victim)
        victim.stop()
        assert driver.returncode == 0, err
        board: Json = json.loads(out)
        return board, at

    def working(self, title: str) -> Raylet | None:
        """The node on which a process of this name works."""
        for node in self.cluster.nodes[1:]:
            for process in psutil.Process(node.process.pid).children(recursive=True):
                if title in said(process):
                    return node
        return None


def said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("lost")
    write_sample_logs(folder / "logs", LOGS)
    for file in list((folder / "logs").iterdir()):
        for copy in range(1, COPIES):
            shutil.copy(file, file.with_name(f"{copy}-{file.name}"))
    with FakeEndpoint(guess) as fake, cluster(Node(0), WORKERS, WORKERS) as running:
        experiment: Json = {
            "name": "lost",
            "logs": str(folder / "logs"),
            "workload": ROUTER,
            "storage": "overwritten",
            "dataset": {"eval_size": EVAL_SIZE},
            "candidates": [{"model": "m", "endpoint": fake.url, "concurrency": IN_FLIGHT}],
            "methods": {"base": {}},
            "judge": None,
        }
        file = folder / "lost.yaml"
        file.write_text(yaml.safe_dump(experiment))
        yield Bench(running, file, fake)


@dataclass(frozen=True)
class Calm:
    """An undisturbed run."""

    storage: Path
    board: Json


@pytest.fixture(scope="module")
def calm(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    storage = tmp_path_factory.mktemp("calm")
    done = bench.cluster.python(*bench.run(storage))
    assert done.returncode == 0, done.stderr
    return Calm(storage, json.loads(done.stdout))


def assert_same(board: Json, calm: Calm) -> None:
    """The same dataset (it is part of a trial's key), metrics and places."""
    for mine, theirs in zip(board["rows"], calm.board["rows"], strict=True):
        assert mine["result"]["status"] == "succeeded", mine["result"]["error"]
        for name in ("key", "metrics"):
            assert mine["result"][name] == theirs["result"][name]
        assert mine["rank"] == theirs["rank"]


def test_a_node_that_is_lost_while_logs_are_read_changes_nothing_of_the_dataset(
    bench: Bench, calm: Calm, tmp_path: Path
) -> None:
    board, at = bench.disturbed(tmp_path, lambda: bench.working("FlatMap"))
    assert_same(board, calm)
    (made,) = tmp_path.glob("datasets/*/manifest.json")
    (expected,) = calm.storage.glob("datasets/*/manifest.json")
    assert made.parent.name == expected.parent.name
    seconds = made.stat().st_mtime - at
    told("A node is lost while logs are read", "the dataset being written", seconds)


def test_a_node_that_is_lost_while_a_trial_asks_loses_what_was_in_flight(
    bench: Bench, calm: Calm, tmp_path: Path
) -> None:
    before = len(bench.fake.requests)

    def asking() -> Raylet | None:
        begun = len(bench.fake.requests) > before + 2 * IN_FLIGHT
        return bench.working("ImplicitFunc") if begun else None

    board, at = bench.disturbed(tmp_path, asking)
    assert_same(board, calm)
    requests = bench.fake.requests[before:]
    assert EVAL_SIZE <= len(requests) <= EVAL_SIZE + 2 * IN_FLIGHT
    _, goes_on = max(pairwise(request.at for request in requests), key=lambda two: two[1] - two[0])
    told("A node is lost while a trial asks", "the next request", goes_on - monotonic(at))


def monotonic(at: float) -> float:
    """A second since the epoch on the clock of requests."""
    return at - time.time() + time.monotonic()
