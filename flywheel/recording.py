"""What MLflow gets of a run, read from the run's own folder: when the run ends, or whenever asked.

Nothing is sent that does not lie there, so an outage of MLflow loses nothing. `sync` sends it
again; what MLflow has already stays as it is, so it may be repeated at will.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flywheel import config, folders, monitor
from flywheel.errors import RequestError, StorageError
from flywheel.folders import Desk
from flywheel.inference import read as read_completions
from flywheel.leaderboard import Leaderboard
from flywheel.storage import Storage
from flywheel.tracking import Tracker
from flywheel.types import TrialResult


def send(
    desk: Desk,
    tracker: Tracker,
    status: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Record every trial that has a result, then close the run with what it came to.

    Args:
        desk: The run.
        tracker: Started; says in its ``warnings`` what could not be recorded.
        status: ``succeeded``, ``failed`` or ``interrupted``.
        progress: Told how many trials are done.
    """
    folders = [desk.trials.at(key) for key in desk.trials.names()]
    ended = [folder for folder in folders if folder.exists("result.json")]
    progress(0, len(ended))
    tracker.reach()
    for done, folder in enumerate(ended, start=1):
        _send_trial(folder, tracker)
        progress(done, len(ended))
    board = report = None
    if desk.run.exists("leaderboard.json"):
        board = Leaderboard.from_json(desk.run.read_json("leaderboard.json"))
    if desk.run.exists("report.html"):
        report = desk.run.read_bytes("report.html").decode()
    tracker.finish(board, report, status)


def sync(
    storage: Storage, run_id: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Send MLflow what it lacks of a run, and say where to.

    A run whose process was killed ends as interrupted, until it is resumed.

    Raises:
        RequestError: There is no such run, it still goes on, or it has nothing to record.
        StorageError: MLflow did not take everything; what it has is kept.
    """
    desk = Desk(storage, run_id)
    if not desk.run.exists("run.json"):
        raise RequestError(f"no run {run_id} in {storage.at('runs').url}")
    note = desk.run.read_json("run.json")
    if monitor.goes_on(desk.run):
        raise RequestError(f"run {run_id} still goes on; it records itself when it ends")
    if "dataset" not in note:
        raise RequestError(f"run {run_id} ended before it had a dataset: there is nothing to send")
    stored = yaml.safe_load(desk.run.read_bytes("experiment.yaml"))
    tracker = Tracker(config.validate(stored, f"{desk.run.url}/experiment.yaml"), run_id, storage)
    tracker.start(storage.at("datasets", note["dataset"]).read_json("manifest.json"))
    send(desk, tracker, "interrupted" if note["status"] == "running" else note["status"], progress)
    if tracker.warnings:
        raise StorageError(tracker.warnings[0])
    desk.run.write_json("run.json", {**note, "unsent": []})
    return tracker.uri


def advice(run_id: str, unsent: list[str]) -> list[str]:
    """What a run says at its end where MLflow did not take everything: a sentence, or nothing."""
    command = f"nothing is lost, `flywheel sync {run_id}` sends it"
    return [f"MLflow lacks a part of this run: {command} ({unsent[0]})"] if unsent else []


def _send_trial(folder: Storage, tracker: Tracker) -> None:
    result: Any = TrialResult.from_json(folder.read_json("result.json"))
    with tempfile.TemporaryDirectory(prefix="flywheel-") as temporary:
        has_adapter = folder.exists("adapter")
        adapter = folder.download("adapter", Path(temporary)) if has_adapter else None
        completions = read_completions(folder.at("completions"))
        tracker.log_trial(result, completions, folders.read_scores(folder), adapter)
