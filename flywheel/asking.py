"""Which trial is asked next, where several engines answer at once.

Trials that one engine can serve, or one endpoint, wait in a `Queue`. Each queue holds its engine
from the first of its trials to the last; engines of different models run side by side as far as
the cluster holds them. A queue asks as many trials at once as its engine has replicas, an endpoint
one: latencies then are a trial's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Event, Thread
from types import TracebackType
from typing import Any

from flywheel.budget import Budget
from flywheel.errors import EngineError
from flywheel.folders import Desk, write_failure, write_spec
from flywheel.types import Trial

_LOOK_S = 0.05
_MOST_OPEN = 128
"""Threads that wait for engines."""


@dataclass(slots=True)
class Queue:
    """Trials that wait for one engine or endpoint."""

    trials: deque[Trial]
    hold: Callable[[], AbstractContextManager[Any]]
    """Holds what answers while its block lasts; may take minutes to enter."""
    places: int = 1
    """How many of its trials are asked at once."""
    running: int = 0
    open: bool = False
    """Whether what answers is there."""
    done: Event = field(default_factory=Event)
    error: BaseException | None = None

    @property
    def free(self) -> bool:
        """Whether a trial of it could start now."""
        return self.open and bool(self.trials) and self.running < self.places


class Asked:
    """A feed of `flywheel.fanout` whose trials start when what they ask is there.

    Used in a ``with`` block, at whose end nothing is held any more.
    """

    def __init__(
        self, queues: Sequence[Queue], desk: Desk, budget: Budget, spent: Callable[[Trial], None]
    ) -> None:
        """Take the queues in the order in which they should get engines."""
        self.queues = list(queues)
        self.expected = sum(len(queue.trials) for queue in queues)
        self.places = sum(queue.places for queue in queues)
        self.desk, self.budget, self.spent = desk, budget, spent
        self.home: dict[str, Queue] = {}
        """Where the running trials belong."""
        self._unopened = deque(self.queues)
        self._threads: list[Thread] = []

    def __enter__(self) -> Asked:
        """Begin to get engines, and wait for the first."""
        for _ in range(min(_MOST_OPEN, len(self.queues))):
            self._threads.append(Thread(target=self._hold_each, daemon=True))
            self._threads[-1].start()
        while not self.ready:
            time.sleep(_LOOK_S)
        if not any(queue.open for queue in self.queues):
            self._raise()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let everything go; raises what no trial can help."""
        self._unopened.clear()
        for queue in self.queues:
            queue.done.set()
        if error is not None:
            return  # who was interrupted does not wait for engines
        for thread in self._threads:
            thread.join()
        self._raise()

    def _raise(self) -> None:
        for error in (queue.error for queue in self.queues if queue.error):
            raise error

    @property
    def ready(self) -> bool:
        """Whether a trial could start now, or none is left to start."""
        return any(queue.free for queue in self.queues) or not any(q.trials for q in self.queues)

    def next(self) -> Trial | None:
        """The next trial that can start; the queue with most to do comes first."""
        self._refuse()
        queue = max(
            (queue for queue in self.queues if queue.free),
            key=lambda queue: len(queue.trials) / queue.places,
            default=None,
        )
        if queue is None:
            return None
        trial = queue.trials.popleft()
        queue.running += 1
        self.home[trial.key] = queue
        return trial

    def ended(self, trial: Trial) -> None:
        """Its place is free; the last one lets the engine go."""
        queue = self.home.pop(trial.key)
        queue.running -= 1
        self._end_if_empty(queue)
        self.spent(trial)

    def _refuse(self) -> None:
        """Once a budget is reached, only what has begun is still finished."""
        why = self.budget.reached()
        for queue in self.queues if why else ():
            begun = [t for t in queue.trials if self.desk.folder(t).exists("spec.json")]
            self.budget.refuse(why, len(queue.trials) - len(begun))
            queue.trials = deque(begun)
            self._end_if_empty(queue)

    def _end_if_empty(self, queue: Queue) -> None:
        if not queue.trials and not queue.running:
            queue.done.set()

    def _hold_each(self) -> None:
        """Body of a thread: hold one queue's engine until that is done, then the next one's."""
        while True:
            try:
                queue = self._unopened.popleft()
            except IndexError:
                return
            if queue.done.is_set():
                continue
            try:
                self._hold(queue)
            except BaseException as error:  # noqa: BLE001 -- raised where the feed is used
                queue.error = error
                queue.trials.clear()

    def _hold(self, queue: Queue) -> None:
        """Hold its engine until all is done; where that does not start, its trials have failed."""
        try:
            with queue.hold():
                queue.open = True
                queue.done.wait()
        except EngineError as error:
            if queue.open or queue.done.is_set():
                raise
            for trial in queue.trials:
                folder = self.desk.folder(trial)
                write_spec(folder, trial)
                write_failure(folder, error)
            queue.trials.clear()
