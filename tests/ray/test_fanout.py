"""Trials on a real Ray Tune: how many at once, where they run, what stops them, what they leave."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from recovery import told

from flywheel import fanout, folders
from flywheel.budget import Budget
from flywheel.cluster import Needs
from flywheel.config import BudgetConfig, SchedulerConfig
from flywheel.errors import StorageError
from flywheel.fanout import Step
from flywheel.folders import Desk
from flywheel.storage import Storage
from flywheel.sweep import Listed
from flywheel.trials import Progress
from flywheel.types import Json, Trial

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

TASK = Needs(1.0, 0)


@pytest.fixture(scope="module", autouse=True)
def steps_travel(ray_session: None) -> Iterator[None]:
    """Workers cannot import this module, so its functions travel by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(Storage(str(tmp_path)), "run")


def some(count: int) -> list[Trial]:
    return [Trial("c", "m", "lora", {"n": n}, "f", 0) for n in range(count)]


def sweep(
    step: Step,
    desk: Desk,
    planned: Sequence[Trial],
    together: int = 2,
    needs: Needs | None = TASK,
    scheduler: SchedulerConfig | None = None,
    budget: Budget | None = None,
) -> list[tuple[int, int]]:
    """Run the trials and give what progress was told."""
    heard: list[tuple[int, int]] = []
    ended: list[Trial] = []
    feed = Listed(planned, desk, budget or Budget(BudgetConfig()), ended.append)
    fanout.map_over(
        step,
        feed,
        desk,
        together,
        lambda done, total: heard.append((done, total)),
        needs,
        scheduler or SchedulerConfig(),
    )
    assert len(ended) == len({trial.key for trial in ended})
    return heard


def mark(trial: Trial, progress: Progress, desk: Desk, seconds: float = 0.2) -> None:
    """Leave word of when and where the step ran."""
    began = time.time()
    time.sleep(seconds)
    progress(3, 3, None)
    facts = {"began": began, "ended": time.time(), "beside": desk.run.names()}
    desk.folder(trial).write_json("training.json", facts)


def facts(desk: Desk, planned: Sequence[Trial]) -> list[Json]:
    return [desk.folder(trial).read_json("training.json") for trial in planned]


@pytest.mark.parametrize("needs", [None, TASK], ids=["in the trial", "in a task of its own"])
def test_every_trial_runs_once_no_more_together_than_allowed(
    desk: Desk, needs: Needs | None
) -> None:
    planned = some(6)
    heard = sweep(partial(mark, desk=desk), desk, planned, needs=needs)
    spans = [(one["began"], one["ended"]) for one in facts(desk, planned)]
    assert max(sum(a <= began < b for a, b in spans) for began, _ in spans) <= 2
    assert heard[-1] == (18, 18)
    beside = [one["beside"] for one in facts(desk, planned)]
    assert beside == [["trials"]] * len(planned)  # no state of Tune's is in the storage


def test_a_storage_that_takes_nothing_is_told_in_a_sentence_whatever_tune_makes_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "storage").touch()
    desk = Desk(Storage(str(tmp_path / "storage")), "run")
    with pytest.raises(StorageError, match=r"while writing .*/spec\.json") as raised:
        sweep(partial(mark, desk=desk), desk, some(1))
    assert "\n" not in str(raised.value)


def test_a_task_holds_what_it_needs_while_its_trial_holds_a_sliver(desk: Desk) -> None:
    planned = some(3)
    sweep(partial(mark, desk=desk), desk, planned, together=3, needs=Needs(2.0, 0))
    spans = sorted((one["began"], one["ended"]) for one in facts(desk, planned))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def broken(trial: Trial, progress: Progress, desk: Desk) -> None:
    if trial.parameters["n"] == 1:
        raise ValueError("no such layer")
    if trial.parameters["n"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    mark(trial, progress, desk)


def test_a_failure_and_a_killed_trainer_are_data_and_disturb_no_other(desk: Desk) -> None:
    planned = some(5)
    sweep(partial(broken, desk=desk), desk, planned)
    errors = [folders.failure(desk.folder(trial)) for trial in planned]
    assert errors[1] == "ValueError: no such layer"
    assert "died" in errors[2] or "crashed" in errors[2]
    assert [errors[n] for n in (0, 3, 4)] == ["", "", ""]
    assert len(facts(desk, [planned[n] for n in (0, 3, 4)])) == 3


def dies_once(trial: Trial, progress: Progress, desk: Desk) -> None:
    folder = desk.folder(trial)
    if not folder.exists("seen.json"):
        folder.write_json("seen.json", {"killed": time.time()})
        os.kill(os.getpid(), signal.SIGKILL)
    mark(trial, progress, desk)


def again(desk: Desk, planned: Sequence[Trial]) -> list[float]:
    """Seconds from each trial's end to its second beginning."""
    killed = [desk.folder(trial).read_json("seen.json")["killed"] for trial in planned]
    began = [one["began"] for one in facts(desk, planned)]
    return [b - k for b, k in zip(began, killed, strict=True)]


@pytest.mark.parametrize(
    ("needs", "fault"),
    [(None, "The process that asks a trial's questions is killed"), (TASK, "A trainer is killed")],
    ids=["in the trial", "in a task of its own"],
)
def test_what_was_killed_once_is_started_again(desk: Desk, needs: Needs | None, fault: str) -> None:
    planned = some(2)
    sweep(partial(dies_once, desk=desk), desk, planned, needs=needs)
    assert [folders.failure(desk.folder(trial)) for trial in planned] == ["", ""]
    told(fault, "its second beginning", *again(desk, planned))


def kills_its_trial_once(trial: Trial, progress: Progress, desk: Desk) -> None:
    """Kill the Tune trial that watches over this task."""
    import psutil

    folder = desk.folder(trial)
    if not folder.exists("seen.json"):
        folder.write_json("seen.json", {"killed": time.time()})
        raylet = psutil.Process().parent()
        assert raylet is not None
        for process in raylet.children():
            if "ImplicitFunc" in process.cmdline()[0]:
                process.kill()
    mark(trial, progress, desk)


def test_a_tune_trial_that_was_killed_is_started_again_and_so_is_its_task(desk: Desk) -> None:
    planned = some(1)
    sweep(partial(kills_its_trial_once, desk=desk), desk, planned)
    assert folders.failure(desk.folder(planned[0])) == ""
    fault = "The process that watches over a trainer is killed"
    told(fault, "its second beginning", *again(desk, planned))


def always_dies(trial: Trial, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_killed_again_and_again_has_failed(desk: Desk) -> None:
    planned = some(1)
    sweep(always_dies, desk, planned, needs=None)
    assert folders.failure(desk.folder(planned[0])) == "the process that ran it ended"


def unwritable(trial: Trial, progress: Progress, desk: Desk) -> None:
    """Fail where nothing can be written about it."""
    desk.trials.remove(trial.key)
    Path(desk.trials.at(trial.key).url).touch()
    raise ValueError("no such layer")


@pytest.mark.parametrize("needs", [None, TASK], ids=["in the trial", "in a task of its own"])
def test_a_failure_that_cannot_be_written_down_ends_the_run_and_does_not_hang_it(
    desk: Desk, needs: Needs | None
) -> None:
    with pytest.raises(StorageError, match="while writing") as raised:
        sweep(partial(unwritable, desk=desk), desk, some(1), needs=needs)
    assert "\n" not in str(raised.value)


def learn(trial: Trial, progress: Progress, desk: Desk) -> None:
    """Twenty steps towards the trial's own loss."""
    loss = trial.parameters["n"] + 1.0
    for step in range(1, 21):
        time.sleep(0.15)
        progress(step, 20, loss + 1 / step)
    desk.folder(trial).write_json("training.json", {"val_loss": loss})


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_scheduler_stops_what_does_worse_and_leaves_word_of_how_far_it_came(
    desk: Desk, kind: str
) -> None:
    planned = some(6)
    rule = SchedulerConfig.model_validate({"kind": kind, "grace": 0.2, "reduction": 2})
    sweep(partial(learn, desk=desk), desk, planned, needs=Needs(0.5, 0), scheduler=rule)
    stops = [folders.stopped(desk.folder(trial)) for trial in planned]
    assert stops[0] is None
    assert desk.folder(planned[0]).exists("training.json")
    left = [stop for stop in stops if stop is not None]
    assert left
    assert all(stop["by"] == kind and 0.2 <= stop["share"] < 1 for stop in left)
    assert all(stop["val_loss"] > 2 and stop["seconds"] > 0 for stop in left)
    assert not any(folders.failure(desk.folder(trial)) for trial in planned)


def test_a_reached_budget_starts_nothing_and_finishes_what_runs(desk: Desk) -> None:
    planned = some(6)
    hours = iter([0.0, 0.0, 0.0, *[3600.0 * 9] * 9])
    budget = Budget(BudgetConfig(hours=8), lambda: next(hours))
    sweep(partial(mark, desk=desk), desk, planned, budget=budget)
    begun = [trial for trial in planned if desk.folder(trial).exists("spec.json")]
    assert begun == planned[:2]
    assert len(facts(desk, begun)) == 2
    assert budget.sentences() == ["budget reached: hours (9 of 8); 4 trials were not started"]
