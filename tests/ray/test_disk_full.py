"""A disk that really fills up during a training, and what goes on when there is space again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from recovery import told

from flywheel.methods.checkpoints import NAME
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.testing import tiny_model
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

SIZE = "64m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    def write(size: int) -> None:
        with file.open("ab", buffering=0) as out:
            while True:
                out.write(b"x" * size)

    for size in (1 << 20, 1 << 12):
        with pytest.raises(OSError, match="No space left"):
            write(size)


def one(pattern: str, disk: Path) -> Path | None:
    return next(disk.glob(f"runs/*/trials/*/{pattern}"), None)


def test_a_full_disk_ends_the_run_in_a_sentence_and_training_goes_on_from_the_last_checkpoint(
    disk: Path, tmp_path: Path
) -> None:
    write_sample_logs(tmp_path / "logs", 200)
    experiment: Json = {
        "name": "full",
        "logs": str(tmp_path / "logs"),
        "workload": ROUTER,
        "storage": str(disk),
        "dataset": {"eval_size": 8},
        "candidates": [{"model": str(tiny_model(tmp_path / "tiny"))}],
        "methods": {
            "lora": {"rank": 8, "epochs": 2, "max_train_records": 64, "checkpoint_every_s": 0}
        },
        "judge": None,
    }
    file = tmp_path / "full.yaml"
    file.write_text(yaml.safe_dump(experiment))
    command = [sys.executable, "-m", "flywheel", "run", str(file)]

    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while one(NAME, disk) is None:
            assert run.poll() is None
            time.sleep(0.01)
        fill(disk / "ballast")
        _, err = run.communicate(timeout=600)
    finally:
        run.kill()
    assert run.returncode == 1
    said = err.splitlines()[-1]
    assert "No space left on device" in said
    assert "free some space and run it again with --resume" in said
    assert "Traceback" not in err
    assert one("training.json", disk) is None
    assert one(NAME, disk) is not None

    (disk / "ballast").unlink()
    began = time.monotonic()
    resumed = subprocess.Popen([*command, "--resume"], stderr=subprocess.DEVNULL)
    try:
        while (trained := one("training.json", disk)) is None:
            assert resumed.poll() is None
            time.sleep(0.05)
        fault = "The storage's disk is full while a checkpoint is written"
        told(fault, "the end of the resumed training", time.monotonic() - began)
        assert json.loads(trained.read_text())["resumed"] == 1
        assert one("adapter/adapter_model.safetensors", disk) is not None
    finally:
        resumed.kill()  # what follows is no different from other runs
        resumed.wait()
