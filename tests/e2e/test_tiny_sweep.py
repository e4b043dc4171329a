"""A sweep for real, on tiny models: Optuna suggests, ASHA stops, a later run pays nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import tiny_model
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

SAMPLES = 6


@dataclass(frozen=True)
class Sweep:
    """A finished sweep and where it is."""

    file: Path
    storage: Storage
    err: str

    def runs(self) -> list[Storage]:
        return [self.storage.at("runs", name) for name in self.storage.at("runs").names()]

    def results(self, run: Storage) -> list[Json]:
        folder = run.at("trials")
        return [folder.at(key).read_json("result.json") for key in folder.names()]


def flywheel(*arguments: str) -> str:
    command = [sys.executable, "-m", "flywheel", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    write_sample_logs(folder / "logs", 300)
    (folder / "short.txt").write_text("Call the right tool.")
    experiment: Json = {
        "name": "sweep",
        "logs": str(folder / "logs"),
        "workload": ROUTER,
        "storage": str(folder / "storage"),
        "dataset": {"eval_size": 8, "val_ratio": 0.1},
        "candidates": [
            {
                "model": str(tiny_model(folder / "tiny")),
                "engine": {"max_model_len": 4096},
                "price_per_hour": 0.1,
            }
        ],
        "methods": {
            "base": {"system_prompt": [None, str(folder / "short.txt")]},
            "icl": {"examples": [1, 2], "embedding_model": None},
            "lora": {
                "rank": [1, 8],
                "learning_rate": {"loguniform": [1e-5, 1e-1]},
                "epochs": 2,
                "max_train_records": 64,
                "class_balance": ["natural", "equal"],
            },
        },
        "search": {
            "algorithm": "optuna",
            "samples": SAMPLES,
            "objectives": ["val_loss", "cost"],
            "scheduler": {"kind": "asha", "grace": 0.25, "reduction": 2},
        },
        "sampling": {"max_tokens": 16},
        "judge": None,
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return Sweep(file, Storage(experiment["storage"]), flywheel("run", str(file), "--json"))


def test_every_suggestion_ended_as_a_result(sweep: Sweep) -> None:
    (run, *_) = sweep.runs()
    results = sweep.results(run)
    methods = [result["trial"]["method"] for result in results]
    assert [methods.count(name) for name in ("base", "icl", "lora")] == [2, 2, SAMPLES]
    assert {result["status"] for result in results} == {"succeeded", "stopped"}
    assert len(run.at("search").at(*run.at("search").names()).names(".json")) == SAMPLES


def test_asha_stopped_some_before_their_end_and_left_word_of_it(sweep: Sweep) -> None:
    results = sweep.results(sweep.runs()[0])
    stopped = [result for result in results if result["status"] == "stopped"]
    assert 0 < len(stopped) < SAMPLES
    assert all("by asha after" in result["error"] for result in stopped)
    trained = [r["training"]["val_loss"] for r in results if r["training"]]
    assert all(0 < loss < 20 for loss in trained)


def test_another_system_prompt_is_another_trial_with_shorter_prompts(sweep: Sweep) -> None:
    run = sweep.runs()[0]
    labels = {result["label"]: result["key"] for result in sweep.results(run)}
    specs = {label: run.at("trials", key).read_json("spec.json") for label, key in labels.items()}
    assert specs["tiny base prompt=short"]["settings"]["system_prompt"] == "Call the right tool."
    assert "system_prompt" not in specs["tiny base"]["settings"]


def test_a_later_run_trains_and_asks_nothing_that_was_finished(sweep: Sweep) -> None:
    before = sweep.results(sweep.runs()[0])
    err = flywheel("run", str(sweep.file), "--json")
    assert "starting the engine" not in err
    run = sweep.runs()[-1]
    reused = [r for r in sweep.results(run) if r["provenance"].get("reused_from")]
    assert {r["key"] for r in before} == {r["key"] for r in sweep.results(run)}
    assert {r["key"] for r in reused} == {r["key"] for r in before if r["status"] == "succeeded"}
    board = run.read_json("leaderboard.json")
    first = sweep.runs()[0].read_json("leaderboard.json")
    assert json.dumps(board["rows"][0]["result"]["metrics"]) == json.dumps(
        first["rows"][0]["result"]["metrics"]
    )
