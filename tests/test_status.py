"""How a run stands, from the two files it leaves, and what the monitor writes into one of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.console import Console

from flywheel import metrics, monitor, status
from flywheel.budget import Budget
from flywheel.config import BudgetConfig
from flywheel.folders import Desk
from flywheel.monitor import Monitor
from flywheel.progress import Silent
from flywheel.storage import Storage
from flywheel.sweep import Listed
from flywheel.types import Json, Trial

NOTE: Json = {
    "run": "demo-1",
    "status": "running",
    "error": "",
    "started_at": "2026-11-28T16:00:00+00:00",
    "finished_at": None,
    "engine_starts": {"tiny": 1},
}
TRIALS = [Trial("a", "a", "base", {}, "f", seed) for seed in range(4)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(Storage(str(tmp_path)), "demo-1")
    desk.run.write_json("run.json", NOTE)
    return desk


def a_monitor(desk: Desk, budget: Budget | None = None) -> Monitor:
    return Monitor(desk, Silent(), budget or Budget(BudgetConfig()))


def printed(one: status.Status) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(status.view(one))
        return console.export_text()


def test_what_a_run_does_is_read_while_it_does_it(desk: Desk) -> None:
    budget = Budget(BudgetConfig())
    with a_monitor(desk, budget) as mine:
        mine.plan(TRIALS)
        mine.update("reading logs", 4, 4)
        mine.update("answering with a", 0, 0)
        mine.update("answering with a", 10, 40)
        feed = mine.watch(Listed(TRIALS, desk, budget, lambda trial: None), "answering")
        first, second = feed.next(), feed.next()
        assert first == TRIALS[0]
        assert second == TRIALS[1]
        desk.folder(first).write_json("answers.json", {})
        feed.ended(first)
        budget.spend(0.5, 1.25)
        time.sleep(0.05)
        mine.update("answering with a", 20, 40)
        with mine.engine("tiny"):
            mine.engine_up("tiny")
            deadline = time.monotonic() + 20
            while (now := status.read(desk.run)).dollars == 0 or not now.engines:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert now.status == "running"
    assert not now.over
    assert {state: n for state, n in now.trials.items() if n} == {
        "waiting": 2,
        "answering": 1,
        "answered": 1,
    }
    assert now.engines == {"tiny": "up"}
    assert (now.gpu_hours, now.dollars) == (0.5, 1.25)
    reading, answering = now.stages
    assert reading.ended
    assert (answering.done, answering.total, answering.ended) == (20, 40, False)
    assert answering.per_s is not None
    assert answering.per_s == pytest.approx(10 / answering.seconds, rel=0.2)  # 10 were there before
    assert answering.left_s == pytest.approx(20 / answering.per_s)
    told = printed(now)
    for part in ("demo-1", "running", "20/40", "2 waiting, 1 answering, 1 answered", "tiny up"):
        assert part in told
    assert "$1.25, 0.50 GPU-hours" in told


def test_a_run_that_falls_silent_is_said_to_be(desk: Desk) -> None:
    with a_monitor(desk):
        pass
    assert monitor.goes_on(desk.run)
    facts = desk.run.read_json(monitor.FILE)
    facts["updated_at"] -= monitor.SILENT_S + 15
    desk.run.write_json(monitor.FILE, facts)
    one = status.read(desk.run)
    assert one.status == "silent"
    assert one.over
    assert not monitor.goes_on(desk.run)
    assert "nothing heard for 1:15" in printed(one)


def test_a_run_of_before_or_one_just_begun_has_a_status_too(desk: Desk) -> None:
    one = status.read(desk.run)
    assert (one.status, one.stages, one.trials, one.silent_s) == ("running", [], {}, None)
    done = {"status": "succeeded", "finished_at": "2026-11-28T17:06:40+00:00"}
    desk.run.write_json("run.json", {**NOTE, **done, "unsent": ["opening the run"]})
    one = status.read(desk.run)
    assert (one.over, one.seconds) == (True, 4000)
    told = printed(one)
    assert "1:06:40" in told
    assert "flywheel sync demo-1" in told


def test_text_of_others_is_no_markup(desk: Desk) -> None:
    with a_monitor(desk) as mine:
        mine.update("answering with [red]a[/nope]", 1, 2)
    desk.run.write_json("run.json", {**NOTE, "error": "[bold]x[/]", "status": "failed"})
    told = printed(status.read(desk.run))
    assert "answering with [red]a[/nope]" in told
    assert "[bold]x[/]" in told


def test_a_storage_that_takes_nothing_disturbs_no_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with a_monitor(Desk(Storage(str(tmp_path)), "demo-1")) as mine:
        mine.update("reading logs", 1, 2)


def test_outside_of_ray_metrics_are_told_to_nobody() -> None:
    for metric in metrics.ALL:
        metric.tell(1.0, **dict.fromkeys(metric.tags, "x"))
