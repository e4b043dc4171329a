"""A fully fine-tuned model is trained, served by an engine of its own, and ranked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import tiny_model
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_weights_of_their_own_are_trained_served_and_ranked(tmp_path: Path) -> None:
    write_sample_logs(tmp_path / "logs", 300)
    tiny = tiny_model(tmp_path / "tiny")
    experiment: Json = {
        "name": "full",
        "logs": str(tmp_path / "logs"),
        "workload": ROUTER,
        "storage": str(tmp_path / "storage"),
        "dataset": {"eval_size": 8, "val_ratio": 0.05},
        "candidates": [{"model": str(tiny), "engine": {"max_model_len": 4096}}],
        "methods": {
            "base": {},
            "full": {"learning_rate": 1e-2, "epochs": 1, "max_train_records": 64},
        },
        "sampling": {"max_tokens": 16},
        "judge": None,
    }
    file = tmp_path / "full.yaml"
    file.write_text(yaml.safe_dump(experiment))
    command = [sys.executable, "-m", "flywheel", "run", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {
        row["result"]["trial"]["method"]: row["result"] for row in json.loads(done.stdout)["rows"]
    }
    assert {method: row["status"] for method, row in rows.items()} == {
        "base": "succeeded",
        "full": "succeeded",
    }
    losses = rows["full"]["training"]["losses"]
    assert losses[-1] < losses[0]
    assert done.stderr.count("starting the engine of") >= 2
    store = Storage(str(tmp_path / "storage"))
    (run,) = store.at("runs").names()
    trials = store.at("runs", run, "trials")
    answers = [
        {line["record_id"]: line["message"] for line in lines(trials.at(key, "completions"))}
        for key in trials.names()
    ]
    assert len(answers) == 2
    assert answers[0].keys() == answers[1].keys()
    assert answers[0] != answers[1]
    trained = trials.at(rows["full"]["key"])
    assert trained.exists("model/model.safetensors")
    assert not trained.exists("checkpoint.safetensors")


def lines(folder: Storage) -> list[Json]:
    return [line for name in folder.names(".jsonl") for line in folder.read_lines(name)]
