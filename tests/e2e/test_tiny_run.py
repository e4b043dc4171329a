"""The whole job for real, on models so small that it takes minutes: curate to leaderboard."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from flywheel.inference import read
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import tiny_model
from flywheel.types import Json, TrialResult

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EVAL_SIZE, TRAIN_SIZE = 16, 64


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[str]
    """Processes it started that outlived it."""


def flywheel_run(file: Path, *arguments: str) -> Done:
    command = [sys.executable, "-m", "flywheel", "run", str(file), *arguments]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started: set[psutil.Process] = set()
    while True:
        started.update(descendants(process.pid))
        try:
            out, err = process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            continue
        seconds = time.monotonic() - began
        left = [str(p) for p in psutil.wait_procs(started, timeout=20)[1]]
        return Done(process.returncode, out, err, seconds, left)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@dataclass(frozen=True)
class Job:
    """A finished run and where it is."""

    file: Path
    done: Done
    storage: Storage

    @property
    def run(self) -> Storage:
        (name,) = self.storage.at("runs").names()
        return self.storage.at("runs", name)

    def results(self) -> dict[str, TrialResult]:
        folder = self.run.at("trials")
        found = [folder.at(key).read_json("result.json") for key in folder.names()]
        return {data["label"]: TrialResult.from_json(data) for data in found}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """base, icl, two lora trials and a whole model trained of one candidate, rated by another."""
    folder = tmp_path_factory.mktemp("job")
    write_sample_logs(folder / "logs", 300)
    engine = {"max_model_len": 4096}
    tiny = tiny_model(folder / "tiny")
    judge = tiny_model(folder / "judge", tools=True, seed=1)
    experiment: Json = {
        "name": "tiny",
        "logs": str(folder / "logs"),
        "workload": ROUTER,
        "storage": str(folder / "storage"),
        "dataset": {"eval_size": EVAL_SIZE, "val_ratio": 0.05},
        "candidates": [{"model": str(tiny), "engine": engine, "price_per_hour": 0.1}],
        "methods": {
            "base": {},
            "icl": {"examples": 2, "embedding_model": str(tiny)},
            "lora": {
                "rank": 8,
                "learning_rate": [1e-3, 1e-2],
                "epochs": 1,
                "max_train_records": TRAIN_SIZE,
            },
            "full": {"learning_rate": 1e-2, "epochs": 1, "max_train_records": TRAIN_SIZE},
        },
        "sampling": {"max_tokens": 32},
        "judge": {
            "model": str(judge),
            "engine": engine,
            "calibration_pairs": 8,
            "injection_suite": False,
        },
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(experiment))
    done = flywheel_run(file, "--json")
    assert done.code == 0, done.err
    return Job(file, done, Storage(str(folder / "storage")))


def test_every_trial_has_answered_and_was_scored(job: Job) -> None:
    results = job.results()
    assert sorted(results) == [
        "tiny base",
        "tiny full lr=0.01 epochs=1 n=64",
        "tiny icl k=2",
        "tiny lora r=8 lr=0.001 epochs=1 n=64",
        "tiny lora r=8 lr=0.01 epochs=1 n=64",
    ]
    for result in results.values():
        assert (result.status, result.error) == ("succeeded", "")
        for name in ("function_name", "function_name_and_args_accuracy", "similarity"):
            figure = result.metrics[name]
            assert (figure.n, figure.unscored, figure.failed) == (EVAL_SIZE, 0, 0)
        assert result.latency is not None
        assert result.latency.output_tokens_per_second > 0
        assert result.cost is not None
        assert result.cost.basis == "machine"
        assert result.cost.per_1k_requests


def test_the_judge_was_calibrated_and_is_not_trusted(job: Job) -> None:
    calibration = job.run.read_json("calibration.json")
    assert calibration["unscored"] == 0
    assert calibration["n"] > 8
    assert calibration["trusted"] is False
    board = job.run.read_json("leaderboard.json")
    assert board["metric"] == "function_name_and_args_accuracy"
    assert board == json.loads(job.done.out)


def test_lora_trials_trained_and_left_their_own_adapters(job: Job) -> None:
    trained = {k: r for k, r in job.results().items() if r.trial.method == "lora"}
    adapters = set()
    for result in trained.values():
        losses = result.training["losses"]
        assert len(losses) == result.training["steps"] == TRAIN_SIZE // 16
        assert all(map(math.isfinite, losses))
        assert losses[-1] < losses[0]
        assert result.training["rows"] == TRAIN_SIZE
        assert 0 < result.training["computed_tokens"] < result.training["tokens"]
        adapter = job.run.at("trials", result.key, "adapter")
        adapters.add(adapter.read_bytes("adapter_model.safetensors"))
    assert len(adapters) == 2


def test_weights_of_their_own_were_trained_and_answered_otherwise(job: Job) -> None:
    results = job.results()
    full = results["tiny full lr=0.01 epochs=1 n=64"]
    losses = full.training["losses"]
    assert losses[-1] < losses[0]
    trained = job.run.at("trials", full.key)
    assert trained.exists("model/model.safetensors")
    assert not trained.exists("checkpoint.safetensors")
    answers = [
        {one.record_id: one.message for one in read(job.run.at("trials", key, "completions"))}
        for key in (full.key, results["tiny base"].key)
    ]
    assert answers[0].keys() == answers[1].keys()
    assert answers[0] != answers[1]


def test_one_engine_served_the_candidate_one_its_own_weights_and_one_the_judge(job: Job) -> None:
    lines = job.done.err.splitlines()
    assert sum(line.startswith("starting the engine of") for line in lines) == 3


def test_no_process_outlives_the_run(job: Job) -> None:
    assert job.done.left == []


def test_resuming_a_run_that_was_cut_off_at_its_very_end_redoes_nothing(job: Job) -> None:
    board = job.run.read_json("leaderboard.json")
    job.run.write_json("run.json", {**job.run.read_json("run.json"), "status": "running"})
    paid_for = {"completions", "verdicts", "adapter", "model"}
    files = [p for p in Path(job.run.url).rglob("*") if paid_for & set(p.parts)]
    before = {p: p.stat().st_mtime_ns for p in files}
    done = flywheel_run(job.file, "--resume", "--json")
    assert done.code == 0, done.err
    assert "starting the engine" not in done.err
    assert "training" not in done.err
    assert {p: p.stat().st_mtime_ns for p in files} == before
    again = json.loads(done.out)
    assert [row["result"]["metrics"] for row in again["rows"]] == [
        row["result"]["metrics"] for row in board["rows"]
    ]
    assert job.run.read_json("run.json")["status"] == "succeeded"
