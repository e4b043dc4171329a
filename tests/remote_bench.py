"""Whole runs from the command line against fake endpoints, started as users start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from flywheel.sample_logs import ROUTER
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, tool_reply, verdict
from flywheel.types import Json

SECRET = "sk-of-the-shop-1234567890"
EVAL_SIZE = 12


def guess(body: Json) -> Json:
    """A candidate that knows one tool."""
    return tool_reply("track_order", {"order_id": "MM-1"})


def judge(body: Json) -> Json:
    """Rates equal answers 10 and others 2."""
    reference, candidate = body["messages"][-1]["content"].split("<<<")[-2:]
    return verdict(10 if reference.split(">>>")[0] == candidate.split(">>>")[0] else 2)


@dataclass(frozen=True)
class Bench:
    """An experiment file and where its runs go."""

    file: Path
    storage: Storage

    @property
    def runs(self) -> list[Storage]:
        runs = self.storage.at("runs")
        return [runs.at(name) for name in runs.names()]

    @property
    def run(self) -> Storage:
        (only,) = self.runs
        return only

    def trials(self) -> list[Storage]:
        folder = self.run.at("trials")
        return [folder.at(name) for name in folder.names()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Run the file with the key in the environment, in a process group as a terminal does."""
        return subprocess.Popen(
            [sys.executable, "-m", "flywheel", "run", str(self.file), *arguments],
            env={**os.environ, "SHOP_KEY": SECRET},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def bench(folder: Path, logs: Path, candidates: Sequence[Json], **changes: Any) -> Bench:
    experiment = {
        "name": "remote",
        "logs": str(logs),
        "workload": ROUTER,
        "storage": str(folder / "storage"),
        "dataset": {"eval_size": EVAL_SIZE},
        "candidates": list(candidates),
        "methods": {"base": {}},
        "judge": None,
        **changes,
    }
    file = folder / "remote.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return Bench(file, Storage(str(folder / "storage")))


def candidate(fake: FakeEndpoint, **fields: Any) -> Json:
    return {"model": "guesser", "endpoint": fake.url, "api_key_env": "SHOP_KEY", **fields}


def keyless(fake: FakeEndpoint, **fields: Any) -> Json:
    """A candidate that asks for no key: workers of the session's Ray have none."""
    return candidate(fake, api_key_env=None, **fields)


def judged_by(fake: FakeEndpoint, **fields: Any) -> Json:
    return {"model": "rater", "endpoint": fake.url, "calibration_pairs": 6, **fields}


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C as a terminal does; what the run says, once nothing of it is left."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    assert gone
    return err


def slowly(answer: Callable[[Json], Json]) -> Callable[[Json], Json]:
    def wait(body: Json) -> Json:
        time.sleep(0.3)
        return answer(body)

    return wait
