"""What a run shows while it works: one bar per stage on a terminal, one line per stage in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from flywheel.logs import fields, log


class Display(Protocol):
    """Where a run says what it is doing."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is; a stage unheard of begins. ``total`` 0 means unknown."""

    def close(self) -> None:
        """End the display."""


class Silent:
    """Shows nothing."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Count(MofNCompleteColumn):
    """``3/10``; nothing while it is not known of how many."""

    def render(self, task: Task) -> Text:
        """The column's text for one bar."""
        return Text() if task.total is None else super().render(task)


class Bars:
    """Bars that stay, each with its time, as a record of the run."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def update(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar; beginning a stage ends the ones before it."""
        if stage not in self._tasks:
            for task in self._progress.tasks:
                if not task.finished:
                    reached = task.completed or 1
                    self._progress.update(task.id, total=reached, completed=reached)
            self._tasks[stage] = self._progress.add_task(stage, total=None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


class _Sparing:
    """Says something when a stage begins, every ten seconds, and when it ends."""

    def __init__(self, say: Callable[[str, int, int, float], None]) -> None:
        """Say it by ``say``: stage, done, total, seconds since the stage began."""
        self._say = say
        self._stage = ""
        self._began = self._said = time.monotonic()

    def update(self, stage: str, done: int, total: int) -> None:
        """Say it if there is something new to say."""
        now = time.monotonic()
        new = stage != self._stage
        if new:
            self._stage, self._began = stage, now
        if new or now - self._said >= 10 or (total and done >= total):
            self._said = now
            self._say(stage, done, total, now - self._began)

    def close(self) -> None:
        """Nothing to end."""


class Lines(_Sparing):
    """Lines for people, on a stream that is no terminal."""

    def __init__(self, console: Console) -> None:
        def say(stage: str, done: int, total: int, seconds: float) -> None:
            count = f" {done}/{total}" if total else ""
            text = f"{stage}{count} ({seconds:.0f} s)"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

        super().__init__(say)


class Logged(_Sparing):
    """Lines of the log."""

    def __init__(self) -> None:
        def say(stage: str, done: int, total: int, seconds: float) -> None:
            told = fields(stage=stage, done=done, total=total, seconds=round(seconds, 1))
            log.info("progress", extra=told)

        super().__init__(say)


def display(console: Console) -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)
