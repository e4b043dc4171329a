"""The loop that all trainers share: what it learns, when it stops, and how it goes on."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.config import FullConfig, LoraConfig
from flywheel.errors import TrainingError, TrialStoppedError
from flywheel.methods import full, lora, training
from flywheel.methods.checkpoints import NAME
from flywheel.storage import Storage
from flywheel.testing import sample_record, tiny_model, tool_reply
from flywheel.types import Json, Record

RECORDS = [
    sample_record(f"Where is order A-{i}?", tool_reply("track_order", {"order_id": f"A-{i}"}))
    for i in range(24)
]
VAL = [
    sample_record(f"Where is order B-{i}?", tool_reply("track_order", {"order_id": f"B-{i}"}))
    for i in range(6)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def parameters(**changes: Any) -> Json:
    defaults: Json = {"rank": 8, "batch_records": 8, "learning_rate": 1e-2, "epochs": 2}
    config = LoraConfig(**{**defaults, **changes})
    return {**config.model_dump(), "base_model": "org/tiny"}


def train(
    model: Path,
    folder: Path,
    *,
    records: list[Record] = RECORDS,
    val: list[Record] = VAL,
    progress: training.Progress = lambda done, total, val_loss: None,
    checkpoints: Storage | None = None,
    **changes: Any,
) -> Json:
    return lora.train(
        model,
        records,
        val,
        parameters(**changes),
        0,
        folder,
        1,
        progress=progress,
        checkpoints=checkpoints,
    )


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def test_the_loss_falls_and_the_adapter_says_how_it_was_made(model: Path, tmp_path: Path) -> None:
    summary = train(model, tmp_path, rslora=True, init="gaussian", target_modules=["q_proj"])
    assert summary["steps"] == summary["steps_planned"] == 6
    assert summary["losses"][-1] < summary["losses"][0]
    assert [step for step, _ in summary["val_losses"]] == [2, 3, 5, 6]
    assert summary["val_loss"] == summary["val_losses"][-1][1]
    assert 0 < summary["computed_tokens"] < summary["tokens"]
    assert summary["layout"] == "packed"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 16, True)
    assert config["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True}, {"pack_tokens": 64}, {"precision": "fp32"}],
    ids=str,
)
def test_how_a_step_is_computed_does_not_change_what_is_learned(
    model: Path, tmp_path: Path, changes: Json
) -> None:
    plain = train(model, tmp_path / "a")
    other = train(model, tmp_path / "b", **changes)
    assert other["losses"] == pytest.approx(plain["losses"], rel=0.02)
    assert (tmp_path / "b" / "adapter_model.safetensors").is_file()


def test_the_same_seed_gives_the_same_adapter_with_dropout_too(model: Path, tmp_path: Path) -> None:
    first, again = (train(model, tmp_path / name, dropout=0.2) for name in "ab")
    assert first["losses"] == again["losses"]
    one, other = (tmp_path / name / "adapter_model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


class Killed(BaseException):
    """As if the process ended there."""


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("changes", [{}, {"patience": 3}], ids=["plain", "patience"])
def test_a_killed_training_goes_on_along_the_same_curve(
    model: Path, tmp_path: Path, at: int, changes: Json
) -> None:
    changes = {**changes, "dropout": 0.1, "checkpoint_every_s": 0}
    whole = train(model, tmp_path / "whole", **changes)

    def kill(done: int, total: int, val_loss: float | None) -> None:
        if done == at + 1:
            raise Killed

    store = Storage(str(tmp_path / "store"))
    with pytest.raises(Killed):
        train(model, tmp_path / "cut", progress=kill, checkpoints=store, **changes)
    assert store.names() == [NAME]
    seen: list[int] = []
    resumed = train(
        model,
        tmp_path / "resumed",
        progress=lambda done, total, val_loss: seen.append(done),
        checkpoints=store,
        **changes,
    )
    assert seen == list(range(at + 1, 7))
    for name in ("losses", "val_losses", "val_loss", "best_step", "tokens", "computed_tokens"):
        assert resumed[name] == whole[name]
    assert (whole["resumed"], resumed["resumed"]) == (0, 1)
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert left.keys() == right.keys()
    assert all(bool((left[name] == right[name]).all()) for name in left)


def test_a_checkpoint_of_another_training_is_not_used(model: Path, tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    train(model, tmp_path / "a", checkpoints=store, checkpoint_every_s=0)
    other = train(model, tmp_path / "b", checkpoints=store, learning_rate=2e-2)
    assert (other["resumed"], len(other["losses"])) == (0, 6)


def test_a_checkpoint_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    store.write_bytes(NAME, b"not a checkpoint")
    with pytest.raises(TrainingError, match=rf"reading {NAME} .*delete it"):
        train(model, tmp_path / "a", checkpoints=store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB; one checkpoint of the tiny model fits, not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may make a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    model: Path, tmp_path: Path, small_disk: Path
) -> None:
    store = Storage(str(small_disk))
    summary = train(model, tmp_path / "a", checkpoints=store, checkpoint_every_s=0)
    assert "No space left" in summary["checkpoint_error"]
    assert [path.name for path in small_disk.iterdir()] == [NAME]  # the first, nothing half
    assert summary["losses"] == train(model, tmp_path / "b")["losses"]


def test_the_checkpoint_before_the_disk_was_full_is_whole(
    model: Path, tmp_path: Path, small_disk: Path
) -> None:
    store = Storage(str(small_disk))
    changes = {"rank": 1, "checkpoint_every_s": 0}

    def fill(done: int, total: int, val_loss: float | None) -> None:
        if done == 4:  # the checkpoint of step 3 is there; that of step 4 will not fit beside it
            free = small_disk.stat().st_blksize * 4096
            with pytest.raises(OSError, match="No space"):
                (small_disk / "log").write_bytes(bytes(free))
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(model, tmp_path / "cut", progress=fill, checkpoints=store, **changes)
    (small_disk / "log").unlink()
    seen: list[int] = []
    resumed = train(
        model,
        tmp_path / "resumed",
        progress=lambda done, total, val_loss: seen.append(done),
        checkpoints=store,
        **changes,
    )
    assert seen == [4, 5, 6]
    assert resumed["losses"] == train(model, tmp_path / "whole", **changes)["losses"]


def test_the_scheduler_ends_a_training_through_its_progress(model: Path, tmp_path: Path) -> None:
    heard: list[float | None] = []

    def stop(done: int, total: int, val_loss: float | None) -> None:
        heard.append(val_loss)
        if done == 3:
            raise TrialStoppedError("worse than others")

    with pytest.raises(TrialStoppedError, match="worse than others"):
        train(model, tmp_path / "a", progress=stop)
    assert heard[0] is None
    assert all(loss is not None and math.isfinite(loss) for loss in heard[1:])
    assert not (tmp_path / "a").exists()


def test_a_training_that_no_longer_improves_stops_and_keeps_the_best(
    model: Path, tmp_path: Path
) -> None:
    changes = {"patience": 2, "validations": 40, "epochs": 40, "learning_rate": 0.5}
    heard: list[tuple[int, int]] = []
    summary = train(
        model,
        tmp_path / "a",
        progress=lambda done, total, val_loss: heard.append((done, total)),
        **changes,
    )
    by_step = dict(summary["val_losses"])
    assert summary["steps"] < summary["steps_planned"] == 120
    assert heard[-1] == (summary["steps"], summary["steps"])
    assert summary["val_loss"] == by_step[summary["best_step"]] == min(by_step.values())
    assert list(by_step)[-3] == summary["best_step"]
    kept = train(model, tmp_path / "b", **{**changes, "patience": None, "epochs": 40})
    assert kept["val_loss"] == kept["val_losses"][-1][1]


def test_a_loss_that_is_not_finite_names_step_and_records(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+ of \d+; records: ") as caught:
        train(model, tmp_path, learning_rate=1e30, epochs=20)
    named = str(caught.value).rpartition("records: ")[2].split(", ")
    assert len(named) == 8
    assert set(named) <= {record.id for record in RECORDS}
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "4bit"}, "4bit needs a CUDA GPU"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head: no such linear layer.*down_proj"),
        ({"max_tokens": 16}, "none of 24 training records has at most 16 tokens"),
    ],
    ids=["4bit", "head", "long"],
)
def test_what_cannot_be_trained_is_refused_before_weights_are_loaded(
    model: Path, tmp_path: Path, changes: Json, message: str
) -> None:
    without = tmp_path / "without-weights"
    without.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (without / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrainingError, match=message):
        train(without, tmp_path / "a", **changes)


def test_patience_without_validation_records_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="val_ratio"):
        train(model, tmp_path, val=[], patience=1)


def test_without_validation_records_there_is_no_validation_loss(
    model: Path, tmp_path: Path
) -> None:
    summary = train(model, tmp_path, val=[])
    assert (summary["val_loss"], summary["val_losses"]) == (None, [])


def test_rows_longer_than_the_models_positions_are_left_out(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 700}))
    long = sample_record("Where? " * 400)
    summary = train(model, tmp_path / "a", records=[*RECORDS, long])
    assert (summary["rows"], summary["rows_too_long"]) == (24, 1)


def test_vllm_takes_the_adapter(model: Path, tmp_path: Path) -> None:
    peft_helper = pytest.importorskip("vllm.lora.peft_helper")
    from vllm.config.lora import LoRAConfig

    train(model, tmp_path, rslora=True, init="orthogonal", epochs=1)
    helper = peft_helper.PEFTHelper.from_local_dir(str(tmp_path), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=8, max_loras=1))
    assert helper.vllm_lora_scaling_factor == pytest.approx(16 / math.sqrt(8))


def test_full_fine_tuning_leaves_a_model_of_its_own(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from flywheel.rendering import Renderer

    config = FullConfig(learning_rate=5e-3, batch_records=8, checkpoint_every_s=0)
    told = {**config.model_dump(), "base_model": "org/tiny"}
    store = Storage(str(tmp_path / "store"))
    summary = full.train(model, RECORDS, VAL, told, 0, tmp_path / "model", 1, checkpoints=store)
    assert summary["losses"][-1] < summary["losses"][0] - 0.5
    saved = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    before = AutoModelForCausalLM.from_pretrained(str(model))
    assert saved.dtype == before.dtype
    changed = [
        not bool((a == b).all())
        for a, b in zip(saved.parameters(), before.parameters(), strict=True)
    ]
    assert all(changed)
    own, base = (Renderer.load(folder) for folder in (tmp_path / "model", model))
    assert own.example(RECORDS[0]) == base.example(RECORDS[0])
    again = full.train(model, RECORDS, VAL, told, 0, tmp_path / "again", 1, checkpoints=store)
    assert again["losses"] == summary["losses"]
