"""Servers that a run needs, and its storage, fail while it works: the run ends or goes on.

Each test is a row of the table in ``docs/faults.md``. Servers are real, or real HTTP.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

import pytest
from mlflow_server import Server
from recovery import asked_again, told
from remote_bench import (
    EVAL_SIZE,
    Bench,
    bench,
    guess,
    judge,
    judged_by,
    keyless,
    slowly,
    wait_for,
)

from flywheel.sample_logs import write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, Reply, text_reply
from flywheel.types import Json, TrialResult

pytestmark = [
    pytest.mark.ray,
    pytest.mark.services,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RIGHT = "function_name_and_args_accuracy"
PLACES = 3
"""Requests in flight at a time: what a fault may lose."""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_sample_logs(folder, 300)
    return folder


@pytest.fixture(scope="module")
def address(ray_session: None) -> str:
    import ray

    return f"--address={ray.get_runtime_context().gcs_address}"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, logs: Path, address: str) -> Bench:
    """An undisturbed run."""
    with FakeEndpoint(guess) as fake, FakeEndpoint(judge) as rater:
        folder = tmp_path_factory.mktemp("calm")
        mine = bench(folder, logs, [keyless(fake)], judge=judged_by(rater))
        assert mine.ended(address).returncode == 0
    return mine


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(tmp_path / "mlflow", port)
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGTERM)


def sync(mine: Bench) -> subprocess.CompletedProcess[str]:
    name = mine.run.url.rsplit("/", 1)[-1]
    command = [sys.executable, "-m", "flywheel", "sync", name, f"--storage={mine.storage.url}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def results(run: Storage) -> dict[str, TrialResult]:
    keys = run.at("trials").names()
    return {k: TrialResult.from_json(run.at("trials", k).read_json("result.json")) for k in keys}


def test_an_outage_of_mlflow_fails_no_run_and_loses_nothing(
    tmp_path: Path, logs: Path, address: str, mlflow: Server
) -> None:
    from mlflow import MlflowClient

    with FakeEndpoint(guess) as quick, FakeEndpoint(slowly(guess)) as slow:
        both = [keyless(quick, name="quick"), keyless(slow, name="slow", concurrency=2)]
        mine = bench(tmp_path, logs, both, tracking={"uri": mlflow.url})
        process = mine.start(address)
        wait_for(lambda: len(slow.requests) >= 3)
        mlflow.stop(signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    note = mine.run.read_json("run.json")
    assert note["status"] == "succeeded"
    assert note["unsent"]
    assert f"`flywheel sync {note['run']}`" in " ".join(err.split())

    away = sync(mine)
    assert away.returncode == 1
    assert mlflow.url in away.stderr
    assert "Traceback" not in away.stderr

    mlflow.start()
    took = []
    for _ in range(3):
        began = time.monotonic()
        done = sync(mine)
        took.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
        client = MlflowClient(tracking_uri=mlflow.url)
        home = client.get_experiment_by_name("flywheel").experiment_id
        runs = client.search_runs([home])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = {r.data.tags["flywheel.trial_key"]: r for r in runs if r not in parents}
        assert [parent.info.status for parent in parents] == ["FINISHED"]
        assert len(runs) == 3
        assert children.keys() == results(mine.run).keys()
    assert mine.run.read_json("run.json")["unsent"] == []
    names = {f.path for f in client.list_artifacts(parents[0].info.run_id)}
    assert names == {"experiment.yaml", "leaderboard.json", "manifest.json", "report.html"}
    for key, result in results(mine.run).items():
        assert children[key].info.status == "FINISHED"
        assert children[key].data.metrics[f"{RIGHT}_n"] == EVAL_SIZE
        assert children[key].data.metrics[RIGHT] == pytest.approx(result.metrics[RIGHT].value)
        names = {f.path for f in client.list_artifacts(children[key].info.run_id)}
        assert names == {"completions.json", "result.json"}
    told("MLflow's server is killed during a run", "the end of `flywheel sync`", took[0])


def verdicts(mine: Bench) -> dict[str, tuple[float | None, str]]:
    (trial,) = mine.trials()
    rows = trial.at("scores").read_lines("similarity.jsonl")
    return {row["record_id"]: (row["value"], row["reason"]) for row in rows}


class InTurn:
    """Assigns each question one of several answers, for good."""

    def __init__(self, answers: Sequence[Callable[[Json], Json | Reply]]) -> None:
        self.answers, self.assigned, self.lock = answers, dict[str, int](), Lock()

    def __call__(self, body: Json) -> Json | Reply:
        asked = body["messages"][-1]["content"]
        with self.lock:
            number = self.assigned.setdefault(asked, len(self.assigned))
        return self.answers[number % len(self.answers)](body)


def hangs(body: Json) -> Json:
    time.sleep(3)
    return judge(body)


def test_a_judge_that_fails_leaves_verdicts_unscored_and_the_run_ends(
    tmp_path: Path, logs: Path, address: str
) -> None:
    rambles = lambda body: text_reply("I would say it is rather good.")  # noqa: E731
    faults = [
        *(rambles, lambda body: Reply({"error": {"message": "out of order"}}, 500)),
        *(rambles, lambda body: Reply({"error": {"message": "slow down"}}, 429)),
        *(rambles, lambda body: Reply(b"<html>rubbish")),
        *(rambles, hangs),
    ]
    client = {"attempts": 2, "backoff_s": 0.1, "retry_for_s": 1}
    with FakeEndpoint(guess) as fake, FakeEndpoint(InTurn(faults)) as rater:
        rated = judged_by(rater, client=client, timeout_s=1, calibration_pairs=5, concurrency=1)
        mine = bench(tmp_path, logs, [keyless(fake)], judge=rated)
        done = mine.ended(address, "--json")
        ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    (result,) = results(mine.run).values()
    similarity = result.metrics["similarity"]
    assert (similarity.value, similarity.unscored) == (None, EVAL_SIZE)
    assert result.metrics[RIGHT].unscored == 0
    found = verdicts(mine)
    assert len(found) == EVAL_SIZE
    assert {value for value, _ in found.values()} == {None}
    reasons = " ".join(reason for _, reason in found.values())
    for part in ("unparsable verdict", "HTTP 500", "HTTP 429", "JSON", "time"):
        assert part in reasons
    fault = "The judge answers 500, 429, rubbish or no verdict, or hangs, from first to last"
    told(fault, "the end of the run", ended - rater.requests[0].at)


def test_a_judge_that_was_down_is_asked_again_by_a_fresh_run(
    tmp_path: Path, logs: Path, address: str, calm: Bench
) -> None:
    down = Event()
    down.set()

    def sometimes(body: Json) -> Json | Reply:
        return Reply({"error": {"message": "out of order"}}, 503) if down.is_set() else judge(body)

    with FakeEndpoint(guess) as fake, FakeEndpoint(sometimes) as rater:
        rated = judged_by(rater, client={"outage_s": 2, "backoff_s": 0.1})
        mine = bench(tmp_path, logs, [keyless(fake)], judge=rated)
        done = mine.ended(address)
        assert done.returncode == 0, done.stderr
        assert {value for value, _ in verdicts(mine).values()} == {None}
        down.clear()
        began = time.monotonic()
        done = mine.ended(address, "--fresh")
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
    (result,) = results(mine.runs[-1]).values()
    (expected,) = results(calm.run).values()
    assert result.metrics["similarity"] == expected.metrics["similarity"]
    told(
        "The judge's endpoint is down when it is due", "the end of the run with `--fresh`", seconds
    )
    assert len(fake.requests) == EVAL_SIZE


def test_a_judge_that_comes_back_gives_the_verdicts_of_an_undisturbed_run(
    tmp_path: Path, logs: Path, address: str, calm: Bench
) -> None:
    """The first try of every request fails, in one of the ways there are."""
    faults: list[Callable[[Json], Json | Reply]] = [
        lambda body: Reply({"error": {"message": "out of order"}}, 500),
        lambda body: Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.2"}),
        lambda body: Reply(b"<html>rubbish"),
        lambda body: Reply(drop=True),
    ]
    tried: set[str] = set()
    first = InTurn(faults)

    def second(body: Json) -> Json | Reply:
        asked = body["messages"][-1]["content"]
        if asked in tried:
            return judge(body)
        tried.add(asked)
        return first(body)

    with FakeEndpoint(guess) as fake, FakeEndpoint(second) as rater:
        rated = judged_by(rater, concurrency=2, client={"backoff_s": 0.05})
        mine = bench(tmp_path, logs, [keyless(fake)], judge=rated)
        done = mine.ended(address)
    assert done.returncode == 0, done.stderr
    assert None not in {value for value, _ in verdicts(mine).values()}
    assert verdicts(mine) == verdicts(calm)
    fault = "The judge fails each request once: 500, 429, rubbish, lost connections"
    told(fault, "the request's second try", *asked_again(rater.requests))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A read-only view of a folder over itself: what is opened by name from now on is refused."""
    at = str(folder)
    subprocess.run(["mount", "--bind", at, at], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", at], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    (tmp_path / "probe").mkdir()
    try:
        with read_only(tmp_path / "probe"):
            assert not os.access(tmp_path / "probe", os.W_OK)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")


def same(mine: Bench, calm: Bench) -> None:
    """The same dataset, the same answers scored alike, and a run that ended."""
    assert mine.run.read_json("run.json")["status"] == "succeeded"
    assert mine.storage.at("datasets").names() == calm.storage.at("datasets").names()
    (got,), (expected,) = results(mine.run).values(), results(calm.run).values()
    assert got.status == expected.status == "succeeded"
    assert got.metrics == {k: v for k, v in expected.metrics.items() if k != "similarity"}


def asked_twice(fake: FakeEndpoint) -> int:
    asked = [str(request.body["messages"]) for request in fake.requests]
    return len(asked) - len(set(asked))


@pytest.mark.usefixtures("may_mount")
def test_a_storage_that_is_read_only_for_seconds_is_waited_for(
    tmp_path: Path, logs: Path, address: str, calm: Bench
) -> None:
    with FakeEndpoint(slowly(guess)) as fake:
        mine = bench(tmp_path, logs, [keyless(fake, concurrency=PLACES)])
        process = mine.start(address)
        wait_for(lambda: len(fake.requests) > PLACES)
        began = time.monotonic()
        with read_only(Path(mine.storage.url)):
            time.sleep(3)
        back = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    same(mine, calm)
    goes_on = min(request.at for request in fake.requests if request.at > back)
    fault = "The storage is read-only for 3 s while a trial answers"
    told(fault, "the next request", goes_on - began)
    assert asked_twice(fake) <= PLACES


@pytest.mark.usefixtures("may_mount")
def test_a_run_whose_storage_stays_read_only_ends_and_is_resumed(
    tmp_path: Path, logs: Path, address: str, calm: Bench
) -> None:
    with FakeEndpoint(slowly(guess)) as fake:
        mine = bench(tmp_path, logs, [keyless(fake, concurrency=PLACES)])
        process = mine.start(address)
        wait_for(lambda: len(fake.requests) > PLACES)
        with read_only(Path(mine.storage.url)):
            _, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "Read-only file system" in err
        assert "--resume goes on" in " ".join(err.split())
        began = time.monotonic()
        done = mine.ended(address, "--resume")
        assert done.returncode == 0, done.stderr
        told("The storage stays read-only", "the end of the resumed run", time.monotonic() - began)
    same(mine, calm)
    assert asked_twice(fake) <= PLACES
