"""Parity on request: what a task of its own has a base model and its adapters say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from flywheel import paritycheck, trials, versions
from flywheel.cluster import Cluster
from flywheel.config import Experiment, ParityConfig, validate
from flywheel.errors import ClusterError, EngineError, TrainingError
from flywheel.folders import Desk
from flywheel.parity import Generation
from flywheel.paritycheck import Subject
from flywheel.planning import plan
from flywheel.progress import Silent
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, sample_record, text_reply, tiny_model, tool_reply
from flywheel.types import Json

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LIMITS = ParityConfig(records=2, tokens=6)
SHORT: Json = {"steps": 2, "batch_records": 2, "max_train_records": 4}


def silent(done: int, total: int, val_loss: float | None = None, /) -> None:
    """Nobody watches."""


class Told(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []

    def update(self, stage: str, done: int, total: int) -> None:
        self.counts.append((done, total))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    lora = {"rank": 8, "learning_rate": [1e-3, 1e-2], **SHORT}
    return validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "candidates": [{"model": str(model), "name": "tiny"}],
            "methods": {"lora": lora},
        },
        "t.yaml",
    )


@pytest.fixture(scope="module")
def desk(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run with two adapters, of which the first cannot be loaded."""
    storage = Storage(str(tmp_path_factory.mktemp("storage")))
    asked = [f"Where is A-{i}?" for i in range(6)]
    records = [sample_record(q, tool_reply("track_order", {"order_id": q[-4:-1]})) for q in asked]
    for split, part in (("train", records[:4]), ("val", records[4:])):
        table = pa.Table.from_pylist([{**r.to_row(), "class": "track_order"} for r in part])
        storage.at("datasets", "f").write_table(f"{split}/00000.parquet", table)
    found = Desk(storage, "run")
    broken, whole = plan(experiment, "f")
    trials.train(whole, found, 2, silent)
    shutil.copytree(found.folder(whole).url, found.folder(broken).url)
    found.folder(broken).write_bytes("adapter/adapter_model.safetensors", b"no weights")
    for trial in (broken, whole):
        found.folder(trial).remove("reference.json")
    return found


def subjects(experiment: Experiment, desk: Desk) -> list[Subject]:
    """The base model as it is, and its adapters."""
    (candidate,), adapted = experiment.candidates, plan(experiment, "f")
    base = replace(adapted[0], method="base", parameters={})
    return [
        Subject(candidate, base, adapted=False, folder=desk.storage.at("parity", base.key)),
        *(Subject(candidate, one, adapted=True, folder=desk.folder(one)) for one in adapted),
    ]


def ask(group: list[Subject], desk: Desk, shown: Silent) -> dict[str, str]:
    cluster = Cluster([{"CPU": 2.0}], ours=True)
    return paritycheck.outside_the_engine([group], desk, LIMITS, cluster, shown)


def test_an_adapter_that_cannot_be_loaded_fails_alone(
    experiment: Experiment, desk: Desk, ray_session: None
) -> None:
    group, shown = subjects(experiment, desk), Told()
    base, victim, whole = group
    broken = ask(group, desk, shown)
    assert list(broken) == [victim.trial.key]
    assert "while answering with" in broken[victim.trial.key]
    assert [s.folder.exists("reference.json") for s in group] == [True, False, True]
    said = [s.folder.read_json("reference.json") for s in (base, whole)]
    assert [bool(one[0]["moved"]) for one in said] == [False, True]
    assert shown.counts == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_adapter_that_the_engine_does_not_take_fails_alone(
    experiment: Experiment, desk: Desk
) -> None:
    base, *_, whole = subjects(experiment, desk)
    said = [
        Generation(r.id, [1], [1], [{1: 0.0}]).to_json() for r in trials.unseen(whole.trial, desk)
    ]
    for subject in (base, whole):
        subject.folder.write_json("reference.json", said)
    with FakeEndpoint(lambda body: text_reply("no token ids")) as fake:
        found = paritycheck.compared(whole, desk, fake.endpoint(), LIMITS)
        with pytest.raises(EngineError, match="token ids"):
            paritycheck.compared(base, desk, fake.endpoint(), LIMITS)
    assert not found.passed
    assert "asking fake for token ids" in found.first_difference
    assert whole.folder.read_json("parity.json") == found.to_json()


def test_a_base_model_that_cannot_be_loaded_ends_the_check(
    experiment: Experiment, desk: Desk, tmp_path: Path, ray_session: None
) -> None:
    (subject, *_) = subjects(experiment, desk)
    model = tmp_path / "model"
    shutil.copytree(subject.candidate.model, model)
    (model / "model.safetensors").write_bytes(b"no weights")
    gone = replace(subject, trial=replace(subject.trial, model=str(model)))
    with pytest.raises(TrainingError, match="while answering with") as failed:
        ask([gone], desk, Silent())
    assert "Traceback" not in str(failed.value)
    assert len(str(failed.value).splitlines()) == 1


def test_a_node_with_other_packages_answers_nothing(
    experiment: Experiment, desk: Desk, ray_session: None
) -> None:
    driver = {**versions.installed(), "peft": "0.1.2"}
    task = paritycheck._answers(subjects(experiment, desk), desk, LIMITS, 1, driver)
    with pytest.raises(ClusterError, match=r"peft is 0\.1\.2 at the driver, but "):
        next(task)
