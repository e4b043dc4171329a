"""A trainer that is really killed, then started again, ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flywheel.config import LoraConfig
from flywheel.methods.checkpoints import NAME
from flywheel.testing import sample_record, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TRAINER = """
import json, sys
from pathlib import Path
from flywheel.methods import lora
from flywheel.storage import Storage
from flywheel.types import Record

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
told = json.loads((folder / "told.json").read_text())
train, val = ([Record(**data) for data in told[split]] for split in ("train", "val"))
summary = lora.train(
    folder / "model", train, val, told["parameters"], 0, out, 1,
    progress=lambda done, total, val_loss: print(done, flush=True),
    checkpoints=Storage(str(out)),
)
(out / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and everything a trainer is told."""
    folder = tmp_path_factory.mktemp("work")
    tiny_model(folder / "model")
    records = [
        asdict(sample_record(f"Where is A-{i}?", tool_reply("track_order", {"order_id": f"A-{i}"})))
        for i in range(70)
    ]
    config = LoraConfig(
        rank=8, dropout=0.1, batch_records=8, epochs=4, patience=4, checkpoint_every_s=0
    )
    parameters = {**config.model_dump(), "base_model": "org/tiny"}
    told = {"train": records[:64], "val": records[64:], "parameters": parameters}
    (folder / "told.json").write_text(json.dumps(told))
    return folder


def start(work: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINER, str(work), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(work: Path, out: Path) -> Json:
    process = start(work, out)
    process.communicate()
    assert process.returncode == 0
    summary: Json = json.loads((out / "summary.json").read_text())
    return summary


def kill_after(work: Path, out: Path, steps: int, seconds: float) -> None:
    """Let it go ``seconds`` beyond its so-manieth step, into whatever it does then."""
    process = start(work, out)
    assert process.stdout is not None
    for _ in range(steps):
        assert process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_three_times_it_ends_with_the_same_curve_and_adapter(
    work: Path, tmp_path: Path
) -> None:
    whole = finish(work, tmp_path / "whole")
    assert whole["steps"] == 32
    cut = tmp_path / "cut"
    for steps, seconds in ((3, 0.0), (5, 0.01), (7, 0.03)):
        kill_after(work, cut, steps, seconds)
        assert (cut / NAME).is_file()
    resumed = finish(work, cut)
    assert resumed["resumed"] == 3
    for name in ("losses", "val_losses", "val_loss", "tokens", "steps", "best_step"):
        assert resumed[name] == whole[name]
    left, right = (
        load_file(out / "adapter_model.safetensors") for out in (tmp_path / "whole", cut)
    )
    assert left.keys() == right.keys()
    assert all(bool((left[name] == right[name]).all()) for name in left)
