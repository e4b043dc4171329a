"""A run sent to a cluster with ``ray job submit``, token authentication on."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.testing import FakeEndpoint, tool_reply

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
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def test_a_submitted_job_runs_an_experiment(cluster: dict[str, str], tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_number": "1"})) as endpoint:
        changes = {
            "candidates": [{"model": "fake", "endpoint": endpoint.url}],
            "methods": {"base": {}},
            "judge": None,
            "dataset.eval_size": 10,
            "storage": str(storage),
        }
        settings = [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
        done = submit(cluster, *DEMO, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    (run,) = (storage / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "succeeded"
    (result,) = run.glob("trials/*/result.json")
    assert json.loads(result.read_text())["metrics"]["function_name"]["n"] == 10


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
