"""Several processes train one model as one would, and none outlives the trainer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import LoraConfig
from flywheel.errors import TrainingError
from flywheel.methods import lora, ranks
from flywheel.methods.ranks import ALONE, Ranks
from flywheel.rendering import Example
from flywheel.testing import sample_record, tiny_model, tool_reply
from flywheel.types import Json

RECORDS = [
    sample_record(f"Where is order A-{i}?", tool_reply("track_order", {"order_id": f"A-{i}" * i}))
    for i in range(1, 14)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def learn(model: Path, folder: Path, **changes: Any) -> partial[Json]:
    config = LoraConfig(rank=8, batch_records=4, learning_rate=1e-2, epochs=1, precision="fp32")
    parameters = {**config.model_dump(), "base_model": "org/tiny", **changes}
    return partial(lora.train, model, RECORDS, RECORDS[:3], parameters, 0, folder, 1)


def helpers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def row(length: int) -> Example:
    return Example(f"r{length}", [0] * length, length - 1)


@given(st.lists(st.integers(2, 500), max_size=40), st.integers(1, 8))
def test_every_row_is_one_ranks_and_the_parts_are_nearly_equal(lengths: list[int], size: int):
    rows = [row(length) for length in lengths]
    parts = [Ranks(rank, size).share(rows) for rank in range(size)]
    assert sorted(len(one.ids) for part in parts for one in part) == sorted(lengths)
    tokens = [sum(len(one.ids) for one in part) for part in parts]
    assert max(tokens) - min(tokens) <= 2 * max(lengths, default=0)


def test_alone_nothing_changes_and_nothing_is_started() -> None:
    rows = [row(3), row(9), row(4)]
    assert ALONE.share(rows) == rows
    assert ALONE.total([1.5, 2], None) == [1.5, 2]
    assert ranks.current() == ALONE
    with ranks.helped(partial(time.sleep, 100), 1):
        assert helpers() == []


def test_two_processes_learn_what_one_does(model: Path, tmp_path: Path) -> None:
    alone = learn(model, tmp_path / "alone")()
    work = learn(model, tmp_path / "together")
    with ranks.helped(work, 2):
        assert ranks.current() == Ranks(0, 2)
        together = work()
    assert ranks.current() == ALONE
    assert together["losses"] == pytest.approx(alone["losses"], abs=2e-3)
    assert together["val_losses"][-1][1] == pytest.approx(alone["val_losses"][-1][1], abs=2e-3)
    assert together["tokens"] == alone["tokens"]
    assert (tmp_path / "together" / "adapter_model.safetensors").exists()
    assert helpers() == []


def test_a_helper_that_fails_ends_the_training_with_a_sentence(model: Path, tmp_path: Path) -> None:
    work = learn(model, tmp_path)
    with (
        pytest.raises(TrainingError, match="training on 2 devices together"),
        ranks.helped(partial(sys.exit, 3), 2),
    ):
        work()


def test_helpers_end_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time; from functools import partial; from flywheel.methods import ranks\n"
        "if __name__ == '__main__':\n"
        "    with ranks.helped(partial(time.sleep, 100), 2):\n"
        "        print('together', flush=True); time.sleep(100)\n"
    )
    file = tmp_path / "trainer.py"
    file.write_text(program)
    trainer = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout
    assert trainer.stdout.readline() == "together\n"
    started = psutil.Process(trainer.pid).children(recursive=True)
    assert started
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
