"""Several engines answer at once: who starts when, and that nothing is held at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.asking import Asked, Queue
from flywheel.budget import Budget
from flywheel.config import BudgetConfig
from flywheel.errors import ClusterError, EngineError, FlywheelError
from flywheel.folders import Desk, failure, read_spec
from flywheel.storage import Storage
from flywheel.types import Trial


def some(candidate: str, count: int) -> deque[Trial]:
    return deque(Trial(candidate, candidate, "base", {"n": n}, "f", 0) for n in range(count))


class Site:
    """Engines that come and go, and who is there."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.begun: list[str] = []

    @contextmanager
    def hold(self, name: str, when: Event | None = None) -> Iterator[None]:
        if when:
            assert when.wait(5)
        self.held.add(name)
        self.begun.append(name)
        yield
        self.held.remove(name)


def asked(
    folder: Path,
    *queues: Queue,
    limits: BudgetConfig | None = None,
    ended: list[Trial] | None = None,
) -> Asked:
    desk = Desk(Storage(str(folder)), "run")
    spent = (ended if ended is not None else []).append
    return Asked(queues, desk, Budget(limits or BudgetConfig(), lambda: 9.0), spent)


def finish(feed: Asked) -> list[Trial]:
    """Ask everything, each trial ending before the next begins."""
    found = []
    while (trial := feed.next()) is not None:
        found.append(trial)
        feed.ended(trial)
    return found


def test_a_slow_engine_holds_up_no_other(tmp_path: Path) -> None:
    site, when = Site(), Event()
    slow = Queue(some("slow", 2), lambda: site.hold("slow", when))
    quick = Queue(some("quick", 2), lambda: site.hold("quick"))
    with asked(tmp_path, slow, quick) as feed:
        first = finish(feed)
        assert [trial.candidate for trial in first] == ["quick", "quick"]
        assert not feed.ready
        when.set()
        while not feed.ready:
            Event().wait(0.01)
        assert [trial.candidate for trial in finish(feed)] == ["slow", "slow"]
    assert site.held == set()


def test_an_engine_is_let_go_with_its_last_trial_while_others_go_on(tmp_path: Path) -> None:
    site = Site()
    one = Queue(some("one", 1), lambda: site.hold("one"))
    two = Queue(some("two", 2), lambda: site.hold("two"))
    with asked(tmp_path, one, two) as feed:
        while site.held != {"one", "two"}:
            Event().wait(0.01)
        running = [feed.next(), feed.next()]
        (mine,) = [trial for trial in running if trial and trial.candidate == "one"]
        feed.ended(mine)
        while "one" in site.held:
            Event().wait(0.01)
        assert site.held == {"two"}


def test_an_engine_answers_as_many_trials_at_once_as_it_has_places(tmp_path: Path) -> None:
    site = Site()
    with asked(tmp_path, Queue(some("m", 5), lambda: site.hold("m"), places=2)) as feed:
        first, second = feed.next(), feed.next()
        assert first is not None
        assert second is not None
        assert feed.next() is None
        assert not feed.ready
        feed.ended(first)
        assert feed.ready
        feed.ended(second)
        assert len(finish(feed)) == 3


@contextmanager
def broken(error: FlywheelError) -> Iterator[None]:
    raise error
    yield


NO_MEMORY = EngineError("no memory")


def test_an_engine_that_does_not_start_fails_its_trials_and_no_others(tmp_path: Path) -> None:
    site = Site()
    bad = Queue(some("bad", 2), partial(broken, NO_MEMORY))
    victims = list(bad.trials)
    good = Queue(some("good", 2), lambda: site.hold("good"))
    with asked(tmp_path, bad, good) as feed:
        while not feed.ready or bad.trials:
            Event().wait(0.01)
        done = finish(feed)
    assert [trial.candidate for trial in done] == ["good", "good"]
    folders = [feed.desk.folder(trial) for trial in victims]
    assert [failure(folder) for folder in folders] == ["no memory", "no memory"]
    assert [read_spec(folder) for folder in folders] == victims


def test_what_no_trial_can_help_ends_the_run_when_the_others_are_done(tmp_path: Path) -> None:
    site = Site()
    bad = Queue(some("bad", 1), partial(broken, ClusterError("too small")))
    (victim,) = bad.trials
    good = Queue(some("good", 2), lambda: site.hold("good"))
    done: list[Trial] = []
    feed = asked(tmp_path, bad, good)

    def run() -> None:
        with feed:
            while not feed.ready or bad.trials:
                Event().wait(0.01)
            done.extend(finish(feed))

    with pytest.raises(ClusterError, match="too small"):
        run()
    assert [trial.candidate for trial in done] == ["good", "good"]
    assert not feed.desk.folder(victim).exists("failed.json")


def test_if_no_engine_starts_nothing_begins(tmp_path: Path) -> None:
    with asked(tmp_path, Queue(some("m", 1), partial(broken, NO_MEMORY))) as feed:
        assert feed.next() is None
    feed = asked(tmp_path, Queue(some("m", 1), partial(broken, ClusterError("too small"))))
    with pytest.raises(ClusterError, match="too small"), feed:
        pytest.fail("there is nothing to ask")


def test_an_engine_that_fails_because_the_run_is_stopped_fails_no_trial(tmp_path: Path) -> None:
    stopped = Event()

    @contextmanager
    def given_up() -> Iterator[None]:
        assert stopped.wait(5)
        raise EngineError("the run is being stopped")
        yield

    site = Site()
    late = Queue(some("late", 1), given_up)
    (victim,) = late.trials
    feed = asked(tmp_path, late, Queue(some("good", 1), lambda: site.hold("good")))

    def interrupted() -> None:
        with feed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stopped.set()
    while late.error is None:
        Event().wait(0.01)
    assert not feed.desk.folder(victim).exists("failed.json")


def test_a_reached_budget_starts_nothing_but_finishes_what_was_begun(tmp_path: Path) -> None:
    site = Site()
    queue = Queue(some("m", 4), lambda: site.hold("m"))
    feed = asked(tmp_path, queue, limits=BudgetConfig(dollars=1))
    begun = queue.trials[2]
    feed.desk.folder(begun).write_json("spec.json", {})
    feed.budget.spend(0, 2.0)
    with feed:
        assert finish(feed) == [begun]
    assert feed.budget.sentences() == [
        "budget reached: dollars (2 of 1); 3 trials were not started"
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=5), st.data())
def test_every_trial_is_asked_once_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, int]], data: st.DataObject
) -> None:
    site = Site()
    ended: list[Trial] = []
    queues = [
        Queue(some(str(n), count), partial(site.hold, str(n)), places)
        for n, (count, places) in enumerate(shape)
    ]
    total = sum(count for count, _ in shape)
    with asked(tmp_path_factory.getbasetemp(), *queues, ended=ended) as feed:
        running: list[Trial] = []
        while len(ended) < total:
            trial = feed.next()
            if trial is not None:
                running.append(trial)
            assert all(queue.running <= queue.places for queue in queues)
            if trial is None and running:
                feed.ended(running.pop(data.draw(st.integers(0, len(running) - 1))))
    assert len({trial.key for trial in ended}) == total
    assert site.held == set()
