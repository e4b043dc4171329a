"""How long a plan may take is told from what was measured, and what was not is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flywheel import folders, planning
from flywheel.config import validate
from flywheel.folders import Desk
from flywheel.forecast import Forecast, forecast, longest_first, speeds
from flywheel.storage import Storage
from flywheel.types import Json, Trial

TRAINING: Json = {"steps": None, "batch_tokens": None, "batch_records": 16}


def lora(model: str = "org/a", **parameters: Any) -> Trial:
    chosen = {"epochs": 2.0, "max_train_records": 100, **parameters}
    return Trial(model[4:], model, "lora", chosen, "f", 0, {"training": TRAINING})


def measured(storage: Storage, name: str, seconds: float, per_s: float = 2.0) -> Storage:
    """A run whose one trial learned from 100 records twice and then answered."""
    desk, trial = Desk(storage, name), lora()
    folder = desk.folder(trial)
    folders.write_spec(folder, trial)
    done = {"rows": 100, "steps": 12, "steps_planned": 12, "seconds": seconds}
    folder.write_json("training.json", done)
    latency = {
        "p50_s": 1.0,
        "p95_s": 2.0,
        "output_tokens_per_second": 9.0,
        "requests_per_second": per_s,
        "concurrency": 4,
    }
    folder.write_json("answers.json", {"wall_s": 30.0, "latency": latency})
    return desk.run


def everything(trial: Trial, step: str) -> bool:
    return True


def told(planned: list[Trial], speed: dict[tuple[str, str], float], together: int = 1) -> Forecast:
    return forecast(
        planned, everything, speed, train_records=1000, eval_records=50, together=together
    )


def test_speeds_are_the_median_of_earlier_trials(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    runs = [measured(storage, f"run-{i}", seconds) for i, seconds in enumerate((100, 200, 900))]
    assert speeds(runs) == {("train", "org/a"): 1.0, ("answer", "org/a"): 0.5}


def test_a_trial_taken_over_from_another_run_is_not_measured_again(tmp_path: Path) -> None:
    run = measured(Storage(str(tmp_path)), "run", 100)
    run.at("trials", lora().key).write_json("reused.json", {"run": "other"})
    assert speeds([run]) == {}


def test_a_plan_takes_what_its_records_took_before() -> None:
    speed = {("train", "org/a"): 0.5, ("answer", "org/a"): 0.25}
    found = told([lora(), lora(max_train_records=None), lora(epochs=1.0)], speed)
    assert found == Forecast(0.5 * (200 + 2000 + 100), 37.5, ())
    assert found.sentence == "about 20 min by earlier runs"
    assert told([lora(), lora()], speed, together=2).training_s == 100


def test_steps_count_in_place_of_epochs() -> None:
    trial = lora(steps=10)
    assert told([trial], {("train", "org/a"): 1.0}).training_s == 160


def test_what_was_never_measured_is_said_to_be_unknown() -> None:
    found = told([lora(), lora("org/b")], {("train", "org/a"): 1.0, ("answer", "org/a"): 1.0})
    assert found.unknown == ("training b", "answering with b")
    assert found.sentence == (
        "about 4 min by earlier runs; not measured yet: training b, answering with b"
    )
    assert told([lora("org/b")], {}).sentence == ""


@pytest.mark.parametrize("step", ["train", "answer"])
def test_what_is_done_takes_no_time(step: str) -> None:
    speed = {("train", "org/a"): 1.0, ("answer", "org/a"): 1.0}

    def unfinished(trial: Trial, asked: str) -> bool:
        return asked == step

    found = forecast([lora()], unfinished, speed, train_records=9, eval_records=9, together=1)
    assert (found.training_s > 0, found.answering_s > 0) == (step == "train", step == "answer")


def test_suggestions_to_come_count_as_the_longest_that_there_may_be() -> None:
    one = validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "candidates": [{"model": "org/a"}, {"model": "org/b"}],
            "methods": {
                "lora": {
                    "learning_rate": {"loguniform": [1e-5, 1e-1]},
                    "max_train_records": {"choice": [96, 192]},
                    "epochs": [1, 3],
                }
            },
            "search": {"algorithm": "optuna", "samples": 3},
        },
        "x.yaml",
    )
    stand_ins = planning.longest(one, "f")
    assert [trial.candidate for trial in stand_ins] == ["a"] * 3 + ["b"] * 3
    settings = [{**t.settings["training"], **t.parameters} for t in stand_ins]
    assert {(s["max_train_records"], s["epochs"]) for s in settings} == {(192, 3)}
    search = one.search.model_copy(update={"algorithm": "random"})
    assert planning.longest(one.model_copy(update={"search": search}), "f") == []


def test_the_longest_trainings_come_first_by_weights_records_and_epochs() -> None:
    sizes = {"org/a": 1.0, "org/b": 2.0}
    planned = [
        lora(model, max_train_records=records, epochs=epochs)
        for model in sizes
        for records in (100, 400, None)
        for epochs in (1.0, 3.0)
    ]
    ordered = longest_first(planned, 150, sizes.__getitem__)
    work = [
        sizes[trial.model]
        * min(trial.parameters["max_train_records"] or 150, 150)
        * trial.parameters["epochs"]
        for trial in ordered
    ]
    assert work == sorted(work, reverse=True)
    assert sorted(trial.key for trial in ordered) == sorted(trial.key for trial in planned)
    by_steps = [lora(steps=steps) for steps in (10, 30, 20)]
    ordered = longest_first(by_steps, 150, lambda model: 1.0)
    assert [trial.parameters["steps"] for trial in ordered] == [30, 20, 10]
