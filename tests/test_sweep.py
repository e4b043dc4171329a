"""Which trial comes next, what a budget lets through, and what an earlier run saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel import folders
from flywheel.budget import Budget
from flywheel.config import BudgetConfig, Experiment, dump, validate
from flywheel.folders import Desk
from flywheel.planning import plan, suggestions
from flywheel.reuse import Earlier, source
from flywheel.storage import Storage
from flywheel.sweep import Guided, Listed
from flywheel.types import Json, Trial


def experiment(**changes: Any) -> Experiment:
    data: Json = {
        "name": "t",
        "logs": "l",
        "workload": "w",
        "candidates": [{"model": "org/a"}, {"model": "org/b"}],
        "methods": {"lora": {"rank": [8, 16], "learning_rate": {"loguniform": [1e-5, 1e-1]}}},
        "search": {"algorithm": "optuna", "samples": 6},
    }
    return validate({**data, **changes}, "x.yaml")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def nothing(trial: Trial) -> None:
    """Neither spend nor adopt."""


def guided(desk: Desk, one: Experiment, budget: Budget | None = None, **adopt: Any) -> Guided:
    return Guided(
        one,
        "f",
        desk,
        budget or Budget(BudgetConfig()),
        nothing,
        adopt.get("adopt", nothing),
        suggestions(one),
    )


def drawn(feed: Guided | Listed) -> Iterator[Trial]:
    while (trial := feed.next()) is not None:
        yield trial


def trained(desk: Desk, trial: Trial, loss: float | None = None) -> None:
    """What a training would leave."""
    folder = desk.folder(trial)
    folders.write_spec(folder, trial)
    value = trial.parameters["learning_rate"] if loss is None else loss
    folder.write_json("training.json", {"val_loss": value, "seconds": 10.0})


def test_candidates_take_turns_and_no_trial_is_suggested_twice(storage: Storage) -> None:
    desk, one = Desk(storage, "run"), experiment()
    feed = guided(desk, one)
    assert feed.expected == 12
    found = []
    for trial in drawn(feed):
        trained(desk, trial)
        feed.ended(trial)
        found.append(trial)
    assert [trial.candidate for trial in found] == ["a", "b"] * 6
    assert len({trial.key for trial in found}) == 12
    assert list(feed.trials.values()) == found


def test_a_search_over_few_points_ends_when_all_were_tried(storage: Storage) -> None:
    lora = {"lora": {"rank": [8, 16]}}
    desk, one = Desk(storage, "run"), experiment(methods=lora, search={"algorithm": "optuna"})
    assert len(list(drawn(guided(desk, one)))) < suggestions(one)


def test_a_killed_search_goes_on_with_what_it_had_begun_and_then_as_it_would_have(
    storage: Storage,
) -> None:
    one = experiment(candidates=[{"model": "org/a"}])
    whole = []
    for name, kill_after in (("whole", 99), ("killed", 3)):
        desk = Desk(storage, name)
        feed = guided(desk, one)
        for count, trial in enumerate(drawn(feed)):
            if count == kill_after:
                break  # begun, and nothing came of it
            trained(desk, trial)
            feed.ended(trial)
        whole.append(list(feed.trials))
    feed = guided(Desk(storage, "killed"), one)
    assert feed.expected == 3
    rest = []
    for trial in drawn(feed):
        trained(Desk(storage, "killed"), trial)
        feed.ended(trial)
        rest.append(trial.key)
    assert rest == whole[0][3:]
    assert list(feed.trials) == whole[0]


def test_a_reached_budget_ends_the_suggestions(storage: Storage) -> None:
    budget = Budget(BudgetConfig(dollars=1))
    desk = Desk(storage, "run")
    feed = guided(desk, experiment(), budget)
    first = feed.next()
    assert first is not None
    budget.spend(0, 1.5)
    assert feed.next() is None
    assert budget.sentences() == ["budget reached: dollars (1.5 of 1); 11 trials were not started"]


def test_what_has_begun_is_finished_whatever_the_budget(storage: Storage) -> None:
    desk, budget = Desk(storage, "run"), Budget(BudgetConfig(gpu_hours=1))
    planned = [Trial("c", "m", "base", {"n": n}, "f", 0) for n in range(3)]
    folders.write_spec(desk.folder(planned[1]), planned[1])
    budget.spend(2, 0)
    assert list(drawn(Listed(planned, desk, budget, nothing))) == [planned[1]]
    assert budget.refused == {"gpu_hours (2 of 1)": 2}


def test_the_number_of_trials_spares_what_needs_no_training() -> None:
    one = experiment(
        methods={"base": {}, "icl": {"examples": [1, 2]}, "lora": {"rank": [8, 16]}}, search={}
    )
    budget = Budget(BudgetConfig(trials=7))
    kept, left = budget.within(plan(one, "f"), 0)
    methods = [trial.method for trial in kept]
    assert (methods.count("base"), methods.count("icl"), methods.count("lora")) == (2, 4, 1)
    assert left == 0
    assert budget.sentences() == ["budget reached: trials (7); 3 trials were not started"]
    assert Budget(BudgetConfig(trials=8)).within(kept, 5) == (kept, 1)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"gpu_hours": 2}, "gpu_hours (3 of 2)"),
        ({"dollars": 4}, "dollars (4 of 4)"),
        ({"hours": 1}, "hours (2 of 1)"),
        ({"gpu_hours": 5, "dollars": 5, "hours": 5}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_a_limit_is_reached_when_as_much_is_taken(limit: Json, said: str) -> None:
    times = iter([0.0, 7200.0])
    budget = Budget(BudgetConfig.model_validate(limit), lambda: next(times))
    budget.spend(1, 3)
    budget.spend(2, 1)
    assert budget.reached() == said


# -- earlier runs


def finished(storage: Storage, name: str, one: Experiment, trial: Trial, *steps: str) -> Desk:
    """A run that did some steps of one trial."""
    desk = Desk(storage, name)
    desk.run.write_bytes("experiment.yaml", dump(one).encode())
    desk.run.write_json("run.json", {"run": name, "dataset": "f", "status": "succeeded"})
    folder = desk.folder(trial)
    folders.write_spec(folder, trial)
    for step in steps:
        folder.write_json(f"{step}.json", {"by": "asha", "of": name})
    folder.write_bytes("adapter/nested/adapter_model.safetensors", b"weights")
    for file in ("reference.json", "parity.json"):
        folder.write_json(file, {"of": name})
    folder.write_bytes("completions/0.jsonl", b"{}\n")
    folder.write_bytes("scores/programmatic.jsonl", b"{}\n")
    folder.write_bytes("scores/similarity.jsonl", b"{}\n")
    folder.write_json("result.json", {"of": name})
    return desk


LORA = Trial("a", "org/a", "lora", {"rank": 8}, "f", 0)


def test_a_later_run_takes_over_what_an_earlier_one_has_finished(storage: Storage) -> None:
    finished(storage, "run-1", experiment(), LORA, "training", "answers")
    desk = Desk(storage, "run-2")
    Earlier(experiment(), desk, "f").adopt(LORA)
    folder = desk.folder(LORA)
    assert folder.read_bytes("adapter/nested/adapter_model.safetensors") == b"weights"
    assert folder.at("scores").names() == ["programmatic.jsonl", "similarity.jsonl"]
    assert all(folder.exists(f"{name}.json") for name in ("answers", "reference", "parity"))
    assert not folder.exists("result.json")
    assert source(folder) == "run-1"
    assert folders.read_spec(folder) == LORA


def test_of_a_run_that_only_trained_the_adapter_is_taken(storage: Storage) -> None:
    finished(storage, "run-1", experiment(), LORA, "training")
    desk = Desk(storage, "run-2")
    Earlier(experiment(), desk, "f").adopt(LORA)
    folder = desk.folder(LORA)
    left = ["completions", "parity.json", "reference.json", "training.json"]
    assert [name for name in left if folder.exists(name)] == left[2:]


def test_another_judge_judges_anew(storage: Storage) -> None:
    finished(storage, "run-1", experiment(), LORA, "training", "answers")
    desk = Desk(storage, "run-2")
    Earlier(experiment(judge={"floor": 0.5}), desk, "f").adopt(LORA)
    assert desk.folder(LORA).at("scores").names() == ["programmatic.jsonl"]


@pytest.mark.parametrize(("kind", "taken"), [("asha", True), ("none", False), ("median", False)])
def test_what_was_stopped_stays_stopped_under_the_same_scheduler(
    storage: Storage, kind: str, taken: bool
) -> None:
    finished(storage, "run-1", experiment(), LORA, "stopped")
    desk = Desk(storage, "run-2")
    rule = {"algorithm": "optuna", "scheduler": {"kind": kind}}
    Earlier(experiment(search=rule), desk, "f").adopt(LORA)
    assert (folders.stopped(desk.folder(LORA)) is not None) is taken


def test_another_dataset_or_an_unknown_trial_gives_nothing(storage: Storage) -> None:
    finished(storage, "run-1", experiment(), LORA, "training", "answers")
    desk = Desk(storage, "run-2")
    Earlier(experiment(), desk, "g").adopt(LORA)
    other = Trial("a", "org/a", "lora", {"rank": 16}, "f", 0)
    Earlier(experiment(), desk, "f").adopt(other)
    assert desk.trials.names() == []


def test_a_suggestion_that_an_earlier_run_finished_is_learned_from_and_not_started(
    storage: Storage,
) -> None:
    one = experiment(candidates=[{"model": "org/a"}])
    first = Desk(storage, "run-1")
    feed = guided(first, one)
    for trial in drawn(feed):
        trained(first, trial)
        feed.ended(trial)
    first.run.write_json("run.json", {"run": "run-1", "dataset": "f", "status": "succeeded"})
    desk = Desk(storage, "run-2")
    again = guided(desk, one, adopt=Earlier(one, desk, "f").adopt)
    assert list(drawn(again)) == []
    assert list(again.trials) == list(feed.trials)
