"""Runs sent to a cluster as jobs, by Ray's command or by ours, token authentication on."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from raylets import free_port

from flywheel.testing import FakeEndpoint, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).parents[2]
DEMO = ("python", "-m", "flywheel", "run", "experiments/demo.yaml")
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head node as ``ray start --head`` makes it; yields the submitter's environment."""
    dashboard = free_port()
    environment = {
        **os.environ,
        # As where the environment is activated: a job's `python` is the one that has flywheel.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    starting = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={free_port()}", f"--dashboard-port={dashboard}"]
    # By default those of any other Ray on this machine: then no agent would take a job.
    own = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    command += [f"--{name}={free_port()}" for name in (*own, "ray-client-server-port")]
    head = subprocess.Popen(
        command, env=starting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_jobs(environment)
        yield environment
    finally:  # told to end, it would take half a minute
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(60)


def test_a_submitted_job_runs_an_experiment(cluster: dict[str, str], tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_number": "1"})) as endpoint:
        done = submit(cluster, *DEMO, *settings_for(endpoint, storage))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    (run,) = (storage / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "succeeded"
    (result,) = run.glob("trials/*/result.json")
    assert json.loads(result.read_text())["metrics"]["function_name"]["n"] == 10


@pytest.fixture
def slow() -> Iterator[FakeEndpoint]:
    """A candidate that takes a second for every answer."""

    def answer(body: Json) -> Json:
        time.sleep(1)
        return tool_reply("track_order", {"order_number": "1"})

    with FakeEndpoint(answer) as endpoint:
        yield endpoint


def settings_for(endpoint: FakeEndpoint, storage: Path) -> list[str]:
    changes = {
        "candidates": [{"model": "fake", "endpoint": endpoint.url, "concurrency": 1}],
        "methods": {"base": {}},
        "judge": None,
        "dataset.eval_size": 10,
        "storage": str(storage),
    }
    return [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """``flywheel run --submit`` as somebody at a terminal does, who has no Ray address set."""
    url = environment["RAY_ADDRESS"]
    command = [sys.executable, "-m", "flywheel", "run", "experiments/demo.yaml"]
    return subprocess.Popen(
        [*command, f"--submit={url}", *arguments],
        cwd=REPOSITORY,
        env={**environment, "RAY_ADDRESS": "127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_who_submits_may_go_and_come_back_to_the_same_job(
    cluster: dict[str, str], slow: FakeEndpoint, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    settings = settings_for(slow, storage)
    process = start(cluster, *settings)
    deadline = time.monotonic() + 120
    while len(slow.requests) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "reading logs" in out
    (job,) = re.findall(r"detached; job (\S+) goes on\. Come back .* --resume", err)
    assert "Traceback" not in err

    back = start(cluster, *settings, "--resume")
    out, err = back.communicate(timeout=200)
    assert back.returncode == 0, err
    assert f"job {job} at" in err
    assert "reading logs" in out  # from its beginning
    assert "answers best" in out or "No trial reaches" in out or "fake base" in out
    assert len(slow.requests) == 10  # it was one run all the time
    assert len(list((storage / "runs").iterdir())) == 1


def test_a_job_that_was_ended_is_gone_on_with_by_another(
    cluster: dict[str, str], slow: FakeEndpoint, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    settings = settings_for(slow, storage)
    process = start(cluster, *settings)
    deadline = time.monotonic() + 120
    while len(slow.requests) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.stderr is not None
    (job,) = re.findall(r"job (\S+) at", process.stderr.readline())  # nothing before it
    stop = [RAY, "job", "stop", job]
    subprocess.run(stop, env=cluster, check=True, capture_output=True, timeout=60)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"job {job} STOPPED" in err

    again = start(cluster, *settings, "--resume", "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    told = json.loads(out)
    assert told["status"] == "SUCCEEDED"
    assert told["id"] != job
    assert len(slow.requests) <= 11  # what was in flight is asked again
    (run,) = (storage / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "succeeded"


def test_a_request_that_the_job_refuses_is_the_submitters_exit_code(
    cluster: dict[str, str], slow: FakeEndpoint, tmp_path: Path
) -> None:
    refused = start(cluster, *settings_for(slow, tmp_path), "--set=workload=shop.nope")
    out, err = refused.communicate(timeout=200)
    assert refused.returncode == 2
    assert "no record of shop.nope" in out
    assert "FAILED" in err


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["none", "another"])
def test_without_the_clusters_token_nothing_is_submitted(
    cluster: dict[str, str], slow: FakeEndpoint, tmp_path: Path, token: str
) -> None:
    stranger = {**cluster, "RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    if not token:
        stranger["RAY_AUTH_MODE"] = "disabled"
    process = start(stranger, *settings_for(slow, tmp_path))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "asking the Ray cluster at" in err
    assert "Traceback" not in err
    assert slow.requests == []


def submit(
    environment: dict[str, str], *command: str, working_dir: str | None = "."
) -> subprocess.CompletedProcess[str]:
    sent = [] if working_dir is None else ["--working-dir", working_dir]
    return subprocess.run(
        [RAY, "job", "submit", *sent, "--", *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def wait_for_jobs(environment: dict[str, str]) -> None:
    """Until the head runs jobs: its dashboard lists them before its agent takes any."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        tried = submit(environment, "true", working_dir=None)
        if tried.returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"the head node takes no jobs: {tried.stderr}")
