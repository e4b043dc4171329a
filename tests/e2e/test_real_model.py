"""The demo's question, smaller, on the real models: does fine-tuning teach SmolLM2 the router?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

EVAL = 40


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    changes: Json = {
        "storage": str(storage),
        "dataset.eval_size": EVAL,
        "methods.icl": None,
        "methods.lora.learning_rate": 0.002,
        "methods.lora.max_train_records": 256,
        "judge.calibration_pairs": 15,
        "judge.injection_suite": True,
    }
    settings = [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
    done = subprocess.run(
        [sys.executable, "-m", "flywheel", "run", "experiments/demo.yaml", *settings],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (storage / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def metrics(run_folder: Path) -> dict[str, Json]:
    """Metrics by method."""
    results = [json.loads(p.read_text()) for p in run_folder.glob("trials/*/result.json")]
    return {result["trial"]["method"]: result["metrics"] for result in results}


def test_fine_tuning_beats_the_model_as_it_is_with_intervals_apart(
    metrics: dict[str, Json],
) -> None:
    base, lora = (metrics[method]["function_name"] for method in ("base", "lora"))
    assert lora["value"] >= base["value"] + 0.3
    assert lora["low"] > base["high"]
    assert (base["n"], lora["n"], lora["failed"]) == (EVAL, EVAL, 0)


def test_every_verdict_of_the_judge_parses(run_folder: Path, metrics: dict[str, Json]) -> None:
    assert [m["similarity"]["unscored"] for m in metrics.values()] == [0, 0]
    calibration = json.loads((run_folder / "calibration.json").read_text())
    assert (calibration["n"], calibration["unscored"]) == (30, 0)
    assert calibration["auc"] > 0.6
    assert calibration["injection"]["asked"] >= 40


def test_the_report_tells_the_judges_standing(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert "Qwen2.5-Coder-0.5B-Instruct" in page
