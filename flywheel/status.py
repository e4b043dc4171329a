"""How a run stands, read from the storage alone: from any machine, while it works or long after.

``run.json`` says what became of the run, ``progress.json`` (`flywheel.monitor`) what it is doing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flywheel import monitor
from flywheel.storage import Storage
from flywheel.types import Json

_EVERY_S = 1.0
_COLOURS = {"succeeded": "green", "failed": "red", "interrupted": "yellow", "silent": "yellow"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run's last session."""

    name: str
    done: int
    total: int
    """0 where nobody knows."""
    seconds: float
    per_s: float | None
    """What the stage does a second: records, steps, trials."""
    left_s: float | None
    """Seconds until it ends, if it goes on like this."""
    ended: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A run at a moment."""

    run: str
    status: str
    """``running``, ``succeeded``, ``failed``, ``interrupted``; ``silent``: it says that it is
    running, but has said nothing for a minute."""
    error: str
    folder: str
    started_at: str
    seconds: float
    """Since it was started; until its end where it has ended."""
    silent_s: float | None
    """Since it last said something; none where it never did."""
    stages: list[Stage]
    trials: dict[str, int]
    """How many are in each state, `monitor.STATES`."""
    engines: dict[str, str]
    """``starting`` or ``up``, by model."""
    engine_starts: dict[str, int]
    gpu_hours: float
    dollars: float
    """What ended trials took."""
    unsent: list[str]
    """What MLflow did not take, one sentence each."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status != "running"

    def to_json(self) -> Json:
        """What ``--json`` prints."""
        return asdict(self)


def read(run: Storage) -> Status:
    """How a run stands now.

    Raises:
        StorageError: The storage does not answer.
    """
    note, facts = run.read_json("run.json"), monitor.read(run)
    silent = None if facts is None else monitor.silent_for(facts)
    status = note["status"]
    if status == "running" and silent is not None and silent >= monitor.SILENT_S:
        status = "silent"
    # By the clock of the run's machine; it writes nothing while nothing changes.
    now = facts["updated_at"] + min(silent or 0.0, monitor.SIGN_OF_LIFE_S) if facts else 0.0
    began = datetime.fromisoformat(note["started_at"])
    ended = datetime.fromisoformat(note["finished_at"]) if note["finished_at"] else None
    facts = facts or {}
    return Status(
        run=note["run"],
        status=status,
        error=note["error"],
        folder=run.url,
        started_at=note["started_at"],
        seconds=((ended or datetime.now(UTC)) - began).total_seconds(),
        silent_s=silent,
        stages=[_stage(stage, now) for stage in facts.get("stages", [])],
        trials=facts.get("trials", {}),
        engines=facts.get("engines", {}),
        engine_starts=note["engine_starts"],
        gpu_hours=facts.get("gpu_hours", 0.0),
        dollars=facts.get("dollars", 0.0),
        unsent=note.get("unsent", []),
    )


def watch(run: Storage) -> Iterator[Status]:
    """How a run stands, once a second until it is over."""
    while True:
        status = read(run)
        yield status
        if status.over:
            return
        time.sleep(_EVERY_S)


def show(run: Storage, console: Console) -> None:
    """Keep a run's `view` on a terminal current until it is over."""
    with Live(console=console, auto_refresh=False) as live:
        for status in watch(run):
            live.update(view(status), refresh=True)


def view(status: Status) -> RenderableType:
    """A run as people read it."""
    return Group(*_lines(status))


def _lines(status: Status) -> Iterator[RenderableType]:
    colour = _COLOURS.get(status.status, "cyan")
    head = f"run [bold]{escape(status.run)}[/]  [{colour}]{status.status}[/]"
    yield Text.from_markup(f"{head}  {span(status.seconds)}")
    if status.status == "silent":
        said = span(status.silent_s or 0)
        yield Text(f"nothing heard for {said}: if its process has ended, --resume goes on with it")
    if status.error:
        yield Text(status.error)
    yield _stages(status)
    named = [f"{count} {state}" for state, count in status.trials.items() if count]
    yield Text(f"trials   {', '.join(named) or 'none yet'}")
    if status.engines:
        up = ", ".join(f"{model} {state}" for model, state in status.engines.items())
        yield Text(f"engines  {up}")
    spent = [f"${status.dollars:.2f}"]
    if status.gpu_hours:
        spent.append(f"{status.gpu_hours:.2f} GPU-hours")
    yield Text(f"spent    {', '.join(spent)} by the trials that ended")
    if status.unsent:
        yield Text(f"mlflow   lacks a part; `flywheel sync {status.run}` sends it")


def _stages(status: Status) -> Table:
    broken = status.status in {"failed", "interrupted", "silent"}
    table = Table("", "stage", "done", "time", "a second", "left", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for stage in status.stages:
        mark = "[green]✓[/]" if stage.ended else "[cyan]▸[/]"
        if broken and stage is status.stages[-1]:
            mark = "[red]✗[/]"
        count = f"{stage.done}/{stage.total}" if stage.total else ""
        rate = "" if stage.per_s is None else f"{stage.per_s:.3g}"
        left = "" if stage.left_s is None else span(stage.left_s)
        table.add_row(mark, escape(stage.name), count, span(stage.seconds), rate, left)
    return table


def _stage(facts: Json, now: float) -> Stage:
    """What follows from a stage's raw facts at that time."""
    ended = facts["ended"] is not None
    seconds = max(0.0, (facts["ended"] if ended else now) - facts["began"])
    done, total = facts["done"], facts["total"]
    fresh = done - facts["before"]
    rate = fresh / seconds if total and fresh > 0 and seconds > 0 else None
    left = max(0, total - done) / rate if rate and not ended else None
    return Stage(facts["name"], done, total, round(seconds, 1), rate, left, ended)


def span(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
