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

from flywheel.inference import read
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

LOGS = 5_000
COPIES = 2
"""Of each file, so that reading takes seconds; they add nothing to the dataset."""
EVAL_SIZE = 20
TAKES_S = 0.5
"""An answer."""
ECHO = {"RAYLLM_VLLM_ENGINE_CLS": "echo_engine.Echo", "ECHO_SECONDS": str(TAKES_S)}
WORKERS = Node(2, environment=ECHO)
IN_FLIGHT = 2
AT_ONCE = 4
"""Requests in flight to an engine of two replicas."""


def guess(body: Json) -> Json:
    """Right for some questions, and slow enough to lose a node meanwhile."""
    time.sleep(TAKES_S)
    return tool_reply("track_order", {"order_id": "MM-1"})


@dataclass(frozen=True)
class Bench:
    """A cluster, and an experiment that runs on it with one storage or another."""

    cluster: Cluster
    file: Path
    fake: FakeEndpoint
    model: Path

    def run(self, storage: Path, *more: str) -> list[str]:
        where = [f"--address={self.cluster.address}", f"--set=storage={storage}", "--json"]
        return ["-m", "flywheel", "run", str(self.file), *where, *more]

    def disturbed(
        self, storage: Path, busy: Callable[[], Raylet | None], *more: str
    ) -> tuple[Json, float]:
        """A run that loses the node that is busy; its board, and when the node was lost."""
        if len(self.cluster.nodes) < 3:  # another run has lost one
            self.cluster.add(WORKERS)
        with self.cluster.running(*self.run(storage, *more)) as driver:
            found: list[Raylet] = []

            def look() -> bool:
                found.extend(node for node in [busy()] if node)
                return bool(found) or driver.poll() is not None

            wait_until(look)
            (victim,) = found
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
        return next((node for node in self.cluster.nodes[1:] if works(node, title)), None)


def works(node: Raylet, title: str) -> list[int]:
    """The processes of a node that have this in their name."""
    children = psutil.Process(node.process.pid).children(recursive=True)
    return [process.pid for process in children if title in said(process)]


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
        yield Bench(running, file, fake, tiny_model(folder / "tiny"))


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


def test_a_node_that_is_lost_while_it_serves_loses_what_was_in_flight_there(
    bench: Bench, calm: Calm
) -> None:
    gone: list[int] = []

    def serving() -> Raylet | None:
        """A node with one replica of two, which answers something, and without the trial."""
        now = [one for one in asked(bench.model) if time.time() - one["at"] < TAKES_S / 2]
        if len(asked(bench.model)) < 2 * AT_ONCE:
            return None
        assert works(bench.cluster.nodes[0], "_Owner")  # on the driver's node: it stands for it
        for node in bench.cluster.nodes[1:]:
            gone[:] = works(node, "ServeReplica:tiny")
            if {one["pid"] for one in now} & set(gone) and not works(node, "ImplicitFunc"):
                return node
        return None

    engine = {"model": str(bench.model), "cpus": 1.5, "min_replicas": 2, "concurrency": AT_ONCE}
    served = f"--set=candidates={json.dumps([engine])}"
    board, at = bench.disturbed(calm.storage, serving, served)
    (row,) = board["rows"]
    assert row["result"]["status"] == "succeeded", row["result"]["error"]
    (folder,) = calm.storage.glob(f"runs/*/trials/{row['result']['key']}/completions")
    answers = read(Storage(str(folder)))
    assert [one.finish_reason for one in answers] == ["stop"] * EVAL_SIZE

    times: dict[str, list[Json]] = {}
    for one in asked(bench.model):
        times.setdefault(str(one["messages"]), []).append(one)
    again = [one for one in times.values() if len(one) > 1]
    assert len(times) == EVAL_SIZE
    assert 1 <= len(again) <= AT_ONCE
    for first, second in again:  # the way to the other replica may have led over this node, too
        assert second["pid"] not in gone
        assert at - first["at"] < 2 * TAKES_S
    left = ("ray::Serve", "_Keeper", "_Owner", "ImplicitFunc")
    nodes = bench.cluster.nodes
    wait_until(lambda: not any(works(node, title) for node in nodes for title in left), 30)
    seconds = max(second["at"] for _, second in again) - at
    told("A node is lost while it serves", "the last question being asked again", seconds)


def asked(model: Path) -> list[Json]:
    """What the engines of a model were asked by now, and by which process."""
    file = model / "asked.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def monotonic(at: float) -> float:
    """A second since the epoch on the clock of requests."""
    return at - time.time() + time.monotonic()
