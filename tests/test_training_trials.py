"""What a trial that learns leaves in its folder, whichever weights learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from flywheel import folders, trials
from flywheel.config import validate
from flywheel.errors import TrialStoppedError
from flywheel.folders import Desk
from flywheel.methods.checkpoints import NAME
from flywheel.planning import plan
from flywheel.storage import Storage
from flywheel.testing import sample_record, tiny_model, tool_reply
from flywheel.types import Json, Trial

SHORT: Json = {"steps": 3, "batch_records": 4, "checkpoint_every_s": 0}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run in a storage with a dataset of a few records."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    records = [
        sample_record(f"Where is A-{i}?", tool_reply("track_order", {"order_id": f"A-{i}"}))
        for i in range(10)
    ]
    for split, part in (("train", records[:8]), ("val", records[8:])):
        rows = [{**record.to_row(), "class": "track_order"} for record in part]
        table = pa.Table.from_pylist(rows)
        storage.at("datasets", "f").write_table(f"{split}/00000.parquet", table)
    return Desk(storage, "run")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    """A trial of each method that learns."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    experiment = validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "candidates": [{"model": str(model), "name": "tiny"}],
            "methods": {"lora": {"rank": 8, **SHORT}, "full": SHORT},
        },
        "t.yaml",
    )
    return {trial.method: trial for trial in plan(experiment, "f")}


def test_trials_are_told_apart_by_what_decides_their_length(planned: dict[str, Trial]) -> None:
    assert [trial.label for trial in planned.values()] == [
        "tiny lora r=8 lr=0.001 steps=3 batch_records=4",
        "tiny full lr=5e-05 steps=3 batch_records=4",
    ]


def test_parity_is_asked_with_the_trials_own_prompt(desk: Desk, planned: dict[str, Trial]) -> None:
    trial = planned["lora"]
    other = replace(trial, settings={**trial.settings, "system_prompt": "Be brief."})
    said = [record.messages[0]["content"] for record in trials.unseen(other, desk)]
    assert said == ["Be brief."] * 2
    assert [r.id for r in trials.unseen(other, desk)] == [r.id for r in trials.unseen(trial, desk)]


@pytest.mark.parametrize(
    ("method", "weights"),
    [("lora", "adapter/adapter_model.safetensors"), ("full", "model/model.safetensors")],
)
def test_a_stopped_trial_leaves_nothing_and_a_finished_one_its_weights(
    desk: Desk, planned: dict[str, Trial], method: str, weights: str
) -> None:
    trial = planned[method]
    folder = desk.folder(trial)

    def stop(done: int, total: int, val_loss: float | None = None) -> None:
        if done == 2:
            assert folder.exists(NAME)
            raise TrialStoppedError("worse than others")

    with pytest.raises(TrialStoppedError):
        trials.train(trial, desk, 1, stop)
    assert not Path(folder.url).exists() or folder.names() == []
    told: list[tuple[int, int, bool]] = []

    def tell(done: int, total: int, val_loss: float | None = None) -> None:
        told.append((done, total, folder.exists("training.json")))

    trials.train(trial, desk, 1, tell)
    assert told == [(1, 3, False), (2, 3, False), (3, 3, True)]
    assert folder.exists(weights)
    told_to_parity = {"reference.json"} if method == "lora" else set()
    assert set(folder.names()) == {weights.partition("/")[0], "training.json"} | told_to_parity
    summary = folder.read_json("training.json")
    assert (summary["steps"], summary["resumed"]) == (3, 0)


def test_a_trial_stopped_during_its_last_steps_is_not_saved_as_finished(
    desk: Desk, planned: dict[str, Trial]
) -> None:
    trial = replace(planned["lora"], seed=7)
    folder = desk.folder(trial)
    facts = {"by": "asha", "share": 0.9, "val_loss": 2.0, "seconds": 1.0}

    def stop_unheard(done: int, total: int, val_loss: float | None = None) -> None:
        folders.write_stop(folder, facts)

    with pytest.raises(TrialStoppedError):
        trials.train(trial, desk, 1, stop_unheard)
    assert not folder.exists("training.json")
    assert not folder.exists(NAME)
    assert folders.stopped(folder) == facts


def test_what_a_scheduler_stopped_counts_as_stopped_even_where_it_was_saved(
    desk: Desk, planned: dict[str, Trial]
) -> None:
    folder = desk.folder(replace(planned["lora"], seed=8))
    folder.write_json("training.json", {"val_loss": 1.0, "seconds": 2.0})
    assert folders.stopped(folder) is None
    folders.write_stop(folder, {"by": "asha", "share": 0.9})
    assert folders.stopped(folder) == {"by": "asha", "share": 0.9}
