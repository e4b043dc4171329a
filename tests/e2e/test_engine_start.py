"""Engines that do not start, and runs that are stopped while one does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from recovery import told
from remote_bench import EVAL_SIZE, bench

from flywheel.sample_logs import write_sample_logs
from flywheel.testing import FakeEndpoint, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def run(file: Path, *more: str) -> tuple[dict[str, Json], str]:
    """The results by candidate, and what was said."""
    command = [sys.executable, "-m", "flywheel", "run", str(file), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    return {row["result"]["trial"]["candidate"]: row["result"] for row in rows}, done.stderr


def experiment(folder: Path, *candidates: Json) -> Path:
    write_sample_logs(folder / "logs", 300)
    return bench(folder, folder / "logs", candidates).file


def test_an_engine_that_does_not_start_fails_its_trials_alone_until_it_is_mended(
    tmp_path: Path,
) -> None:
    weights = tiny_model(tmp_path / "tiny") / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(b"no weights at all")
    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_id": "MM-1"})) as fake:
        broken = {"name": "broken", "model": str(weights.parent)}
        whole = {"name": "whole", "model": "m", "endpoint": fake.url}
        file = experiment(tmp_path, broken, whole)
        results, said = run(file)
        assert results["whole"]["status"] == "succeeded"
        assert results["broken"]["status"] == "failed"
        reason = f"the engine of {weights.parent} did not start: SafetensorError: "
        assert results["broken"]["error"].startswith(reason)
        assert "asctime" not in said  # what libraries would log of our own events

        asked = len(fake.requests)
        weights.write_bytes(good)
        mended = time.monotonic()
        results, _ = run(file, "--resume")
        fault = "An engine does not start: its weights cannot be read"
        told(fault, "the end of the resumed run", time.monotonic() - mended)
        assert {result["status"] for result in results.values()} == {"succeeded"}
        assert results["broken"]["metrics"]["function_name"]["n"] == EVAL_SIZE
        assert len(fake.requests) == asked == EVAL_SIZE


def test_a_run_that_is_stopped_while_its_engine_starts_leaves_nothing(tmp_path: Path) -> None:
    """Seconds mostly; where Ray Serve has not heard of the engine yet, up to the pool's minute."""
    file = experiment(tmp_path, {"model": str(tiny_model(tmp_path / "tiny"))})
    command = [sys.executable, "-m", "flywheel", "run", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = iter(process.stderr)
        assert any("starting the engine" in line for line in said)
        time.sleep(5)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        at = time.monotonic()
        rest = "".join(said)
        assert process.wait() == 130
    assert time.monotonic() - at < 120
    assert rest.endswith("the same command with --resume goes on from here\n")
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
