"""A sweep of two tiny bases, each as it is, with one and two examples, and with four adapters.

What `tests.benchmarks.serving` counts engine starts by, and what the test of the parity gate runs.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.testing import tiny_model
from flywheel.types import Json

TRIALS = 14


def flywheel(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as people run it."""
    command = [sys.executable, "-m", "flywheel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


@dataclass(frozen=True)
class Sweep:
    """A finished sweep and where it is."""

    file: Path
    storage: Storage
    models: tuple[str, str]

    @property
    def run_id(self) -> str:
        """The only run there is."""
        (name,) = self.storage.at("runs").names()
        return name

    @property
    def run(self) -> Storage:
        """Its folder."""
        return self.storage.at("runs", self.run_id)

    def results(self) -> list[Json]:
        """One per trial."""
        trials = self.run.at("trials")
        return [trials.at(key).read_json("result.json") for key in trials.names()]

    def adapted(self) -> list[Json]:
        """Those with an adapter."""
        return [r for r in self.results() if r["trial"]["method"] == "lora"]

    def engine_starts(self) -> dict[str, int]:
        """By model."""
        starts: dict[str, int] = self.run.read_json("run.json")["engine_starts"]
        return starts


def run(folder: Path, eval_size: int) -> Sweep:
    """Run it in an empty folder.

    Raises:
        RuntimeError: The command failed; with what it said.
    """
    write_sample_logs(folder / "logs", 200)
    models = [tiny_model(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    experiment: Json = {
        "name": "sweep",
        "logs": str(folder / "logs"),
        "workload": ROUTER,
        "storage": str(folder / "storage"),
        "dataset": {"eval_size": eval_size},
        "candidates": [{"model": str(m), "engine": {"max_model_len": 4096}} for m in models],
        "methods": {
            "base": {},
            "icl": {"examples": [1, 2], "selection": "lexical"},
            "lora": {
                "rank": [8, 16],
                "learning_rate": [1e-2, 2e-2],
                "epochs": 1,
                "max_train_records": 32,
            },
        },
        "sampling": {"max_tokens": 16},
        "parity": {"records": 3, "tokens": 12},
        "judge": None,
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(experiment))
    done = flywheel("run", str(file), "--json")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Sweep(file, Storage(str(folder / "storage")), (str(models[0]), str(models[1])))
