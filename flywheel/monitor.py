"""What a run is doing, told to whoever watches: its own terminal, ``progress.json``, Ray's metrics.

Facts come in as the run works: stages, trials changing state, engines. A thread of its own writes
them into the run's folder once a second as long as something changes, else as a sign of life every
few seconds, so that `flywheel status` needs nothing but the storage. A storage that does not take
them does not disturb the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass
from threading import Event, RLock, Thread
from types import TracebackType

from flywheel import folders, metrics
from flywheel.budget import Budget
from flywheel.errors import StorageError
from flywheel.folders import Desk
from flywheel.logs import fields, log
from flywheel.progress import Display
from flywheel.storage import Storage
from flywheel.sweep import Feed
from flywheel.types import Json, Trial

FILE = "progress.json"
STATES = (
    "waiting", "training", "trained", "answering", "answered", "succeeded", "failed", "stopped"
)  # fmt: skip
"""Of a trial; the last three are its end."""
SILENT_S = 60.0
"""Of saying nothing, after which a run counts as dead: clocks differ, and storages stall."""
SIGN_OF_LIFE_S = 10.0
"""Between two writes at most."""
_WRITE_S = 1.0


@dataclass(slots=True)
class Stage:
    """One stage of this session; times are seconds since the epoch."""

    name: str
    began: float
    done: int = 0
    total: int = 0
    """0 while unknown."""
    before: int = 0
    """What was done already when the stage began: no part of its rate."""
    ended: float | None = None


class Monitor:
    """Takes the facts of one run in many threads. Writes while its ``with`` block lasts."""

    def __init__(self, desk: Desk, display: Display, budget: Budget) -> None:
        """Nothing is written yet.

        Args:
            desk: The run.
            display: Told each stage, too.
            budget: What is spent is read from it.
        """
        self._desk, self._display, self._budget = desk, display, budget
        self._stages: list[Stage] = []
        self._trials: dict[str, str] = {}
        self._engines: dict[str, str] = {}
        self._changed, self._over = False, Event()
        self._lock = RLock()

    def __enter__(self) -> Monitor:
        self._write()
        within = copy_context()  # for what is logged
        self._thread = Thread(target=within.run, args=(self._write_on,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._end_stage()
        self._write()

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is; see `Display`."""
        self._display.update(stage, done, total)
        with self._lock:
            if not self._stages or self._stages[-1].name != stage:
                self._end_stage()
                self._stages.append(Stage(stage, time.time(), before=done))
            now = self._stages[-1]
            if not now.total and total:  # the first that is known of how far it is
                now.before = done
            now.done, now.total = done, total
            self._changed = True

    def plan(self, planned: Sequence[Trial]) -> None:
        """Take in the trials there are, each as far as its folder says."""
        for trial in planned:
            self._set(trial.key, _reached(self._desk.folder(trial)))

    def watch(self, feed: Feed, doing: str) -> Feed:
        """A feed whose trials are seen to begin and to end; ``doing`` is their state in between."""
        return _Watched(feed, self, doing)

    def moved(self, trial: Trial, state: str) -> None:
        """Say what state a trial is in now."""
        self._set(trial.key, state)

    @contextmanager
    def engine(self, model: str) -> Iterator[None]:
        """Show an engine as starting, until `engine_up`, and as gone when the block ends."""
        metrics.ENGINE_STARTS.tell(1, model=model)
        log.info("engine starts", extra=fields(model=model))
        with self._lock:
            self._engines[model] = "starting"
            self._changed = True
        try:
            yield
        finally:
            with self._lock:
                self._engines.pop(model, None)
                self._changed = True

    def engine_up(self, model: str) -> None:
        """Say that an engine answers."""
        with self._lock:
            self._engines[model] = "up"
            self._changed = True

    def facts(self) -> Json:
        """The content of ``progress.json``."""
        with self._lock:
            counts = Counter(self._trials.values())
            return {
                "updated_at": time.time(),
                "stages": [asdict(stage) for stage in self._stages],
                "trials": {state: counts[state] for state in STATES},
                "engines": dict(self._engines),
                "gpu_hours": self._budget.gpu_hours,
                "dollars": self._budget.dollars,
            }

    def _set(self, key: str, state: str) -> None:
        with self._lock:
            if self._trials.get(key) != state:
                self._trials[key] = state
                self._changed = True
                log.info("trial", extra=fields(trial=key, state=state))

    def _end_stage(self) -> None:
        if self._stages and self._stages[-1].ended is None:
            self._stages[-1].ended = time.time()

    def _write_on(self) -> None:
        written = time.monotonic()
        while not self._over.wait(_WRITE_S):
            if self._changed or time.monotonic() - written >= SIGN_OF_LIFE_S:
                written = time.monotonic()
                self._write()

    def _write(self) -> None:
        self._changed = False
        facts, run = self.facts(), self._desk.run_id
        metrics.trials(run, facts["trials"])
        metrics.GPU_SECONDS.tell(3600 * facts["gpu_hours"], run=run)
        metrics.DOLLARS.tell(facts["dollars"], run=run)
        try:
            self._desk.run.write_json(FILE, facts)
        except StorageError as error:  # what matters more will be told by whoever needs it
            log.warning("progress not written", extra=fields(error=str(error)))


class _Watched:
    """A feed that tells the monitor."""

    def __init__(self, feed: Feed, monitor: Monitor, doing: str) -> None:
        self._feed, self._monitor, self._doing = feed, monitor, doing

    @property
    def expected(self) -> int:
        """The feed's."""
        return self._feed.expected

    @property
    def ready(self) -> bool:
        """The feed's."""
        return self._feed.ready

    def next(self) -> Trial | None:
        """The feed's next."""
        trial = self._feed.next()
        if trial is not None:
            self._monitor.moved(trial, self._doing)
        return trial

    def ended(self, trial: Trial) -> None:
        """Pass it on."""
        self._feed.ended(trial)
        self._monitor.plan([trial])


def read(run: Storage) -> Json | None:
    """What a run last said of itself; none if it has not yet."""
    found: Json | None = run.read_json(FILE) if run.exists(FILE) else None
    return found


def silent_for(facts: Json) -> float:
    """Seconds since a run last said something, by this machine's clock."""
    return max(0.0, time.time() - float(facts["updated_at"]))


def goes_on(run: Storage) -> bool:
    """Whether a process still works on a run, as far as its folder tells."""
    facts = read(run)
    running = run.read_json("run.json")["status"] == "running"
    return running and facts is not None and silent_for(facts) < SILENT_S


def _reached(folder: Storage) -> str:
    """A trial's state as its folder has it."""
    if folders.stopped(folder) is not None:
        return "stopped"
    for marker, state in (("failed", "failed"), ("answers", "answered"), ("training", "trained")):
        if folder.exists(f"{marker}.json"):
            return state
    return "waiting"
