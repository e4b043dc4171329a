"""An engine that does not start: its trials fail with vLLM's reason, the others are ranked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from recovery import told

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.testing import FakeEndpoint, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EVAL_SIZE = 8


def run(file: Path, *more: str) -> tuple[dict[str, Json], str]:
    """The results by candidate, and what was said."""
    command = [sys.executable, "-m", "flywheel", "run", str(file), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    return {row["result"]["trial"]["candidate"]: row["result"] for row in rows}, done.stderr


def test_its_trials_fail_with_the_reason_and_a_resumed_run_tries_them_again(
    tmp_path: Path,
) -> None:
    write_sample_logs(tmp_path / "logs", 300)
    weights = tiny_model(tmp_path / "tiny") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"no weights at all")
    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_id": "MM-1"})) as fake:
        experiment: Json = {
            "name": "broken",
            "logs": str(tmp_path / "logs"),
            "workload": ROUTER,
            "storage": str(tmp_path / "storage"),
            "dataset": {"eval_size": EVAL_SIZE},
            "candidates": [
                {"name": "broken", "model": str(weights.parent)},
                {"name": "whole", "model": "m", "endpoint": fake.url},
            ],
            "methods": {"base": {}},
            "judge": None,
        }
        file = tmp_path / "broken.yaml"
        file.write_text(yaml.safe_dump(experiment))
        results, said = run(file)
        assert results["whole"]["status"] == "succeeded"
        assert results["broken"]["status"] == "failed"
        reason = f"the engine of {weights.parent} did not start: SafetensorError: "
        assert results["broken"]["error"].startswith(reason)
        assert "asctime" not in said  # what libraries would log of our own events

        asked = len(fake.requests)
        weights.write_bytes(whole)
        mended = time.monotonic()
        results, _ = run(file, "--resume")
        fault = "An engine does not start: its weights cannot be read"
        told(fault, "the end of the resumed run", time.monotonic() - mended)
        assert {result["status"] for result in results.values()} == {"succeeded"}
        assert results["broken"]["metrics"]["function_name"]["n"] == EVAL_SIZE
        assert len(fake.requests) == asked == EVAL_SIZE
