"""A whole run of a workload of labels: embeddings, a ground-truth file, and an own metric."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flywheel.curation import load_split
from flywheel.sample_logs import TICKETS, write_sample_logs
from flywheel.scoring.text import text_of
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, text_reply, tiny_model
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

OWN = "def brief(case, *, most: int = 20):\n    return len(case.answer) <= most\n"
UNNAMED = 2
"""Eval records that the file says nothing of."""


def flywheel(folder: Path, command: str, file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flywheel", command, str(file)],
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_is_scored_as_its_file_asks(tmp_path: Path) -> None:
    write_sample_logs(tmp_path / "logs", 300)
    (tmp_path / "own_brief.py").write_text(OWN)
    file, storage = tmp_path / "run.yaml", Storage(str(tmp_path / "storage"))
    embedding = str(tiny_model(tmp_path / "embedding"))
    experiment: Json = {
        "name": "labels",
        "logs": str(tmp_path / "logs"),
        "workload": TICKETS,
        "storage": storage.url,
        "dataset": {"eval_size": 12},
        "methods": {"base": {}},
        "judge": None,
    }
    with FakeEndpoint(lambda body: text_reply("refund")) as fake:
        experiment["candidates"] = [{"model": "guesser", "endpoint": fake.url}]
        file.write_text(yaml.safe_dump(experiment))
        flywheel(tmp_path, "curate", file)
        (fingerprint,) = storage.at("datasets").names()
        records = load_split(storage, fingerprint, "eval")
        truth = [
            {"id": record.id, "expected": text_of(record.answer)} for record in records[UNNAMED:]
        ]
        truth[0]["expected"] = "another label than production's"
        (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, truth)))
        experiment["scoring"] = {
            "references": str(tmp_path / "truth.jsonl"),
            "metrics": [
                "default",
                {"metric": "embedding_similarity", "parameters": {"model": embedding}},
                {"metric": "own_brief:brief", "parameters": {"most": 6}},
            ],
        }
        file.write_text(yaml.safe_dump(experiment))
        flywheel(tmp_path, "run", file)

    (name,) = storage.at("runs").names()
    run = storage.at("runs", name)
    (key,) = run.at("trials").names()
    result = run.at("trials", key).read_json("result.json")
    assert result["metrics"].keys() == {
        "exact_match",
        "label_accuracy",
        "embedding_similarity",
        "brief",
    }
    named = len(records) - UNNAMED
    for figure in result["metrics"].values():
        assert (figure["n"], figure["unscored"], figure["failed"]) == (len(records), UNNAMED, 0)
    assert result["metrics"]["brief"]["value"] == 1.0
    (made,) = (result["classes"]["label_accuracy"],)
    assert sum(line["support"] for line in made["classes"]) == made["n"] == named
    board = run.read_json("leaderboard.json")
    assert board["metric"] == "label_accuracy"
    assert board["logged"]["value"] == pytest.approx((named - 1) / named)
    assert run.read_json("run.json")["references"]
    assert storage.at("embeddings").names()
