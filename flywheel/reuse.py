"""Take over what an earlier run of the same storage has finished: the same trial is not run twice.

A trial's key is the hash of all that decides its outcome, the dataset included, so what lies under
that key in another run is what this one would make: weights, completions, scores, latency. Scores
of a judge are taken only where the earlier run was judged alike.
"""

from __future__ import annotations

import yaml

from flywheel import loadtest
from flywheel.config import Experiment
from flywheel.folders import PROGRAMMATIC, Desk, stopped
from flywheel.storage import Storage
from flywheel.types import Json, Trial

_STEPS = {
    "training.json": ["adapter", "model", "reference.json"],
    "answers.json": ["parity.json", "completions", f"scores/{PROGRAMMATIC}"],
    "val.json": ["val"],
    loadtest.MARKER: ["latency"],
}
"""What a step leaves besides the marker that it writes last."""


class Earlier:
    """The runs of a dataset before this one, the newest first."""

    def __init__(
        self, experiment: Experiment, desk: Desk, fingerprint: str, references: str = ""
    ) -> None:
        """Look for runs of a dataset; ``references`` is the identity of the ground-truth file."""
        self.desk, self.fingerprint = desk, fingerprint
        self.latency, self.cascades = experiment.latency, experiment.cascades
        self.scheduler = experiment.search.scheduler.kind
        judged = _judging(experiment.model_dump(mode="json"), references)
        self.runs: list[tuple[Storage, frozenset[str], bool]] = []
        """Each run's folder, the keys of its trials, and whether it was judged like this one."""
        runs = desk.storage.at("runs")
        for name in reversed(runs.names()):
            run = runs.at(name)
            if name == desk.run_id or not run.exists("run.json"):
                continue
            if run.read_json("run.json").get("dataset") == fingerprint:
                keys = frozenset(run.at("trials").names())
                self.runs.append((run, keys, _judged(run) == judged))

    def adopt(self, trial: Trial) -> None:
        """Copy the steps of a trial that this run has not done and an earlier one has."""
        own = self.desk.folder(trial)
        for run, keys, judged_alike in self.runs:
            if trial.key not in keys:
                continue
            theirs = run.at("trials", trial.key)
            if self._adopt_stop(own, theirs):
                continue
            for marker, parts in _STEPS.items():
                if own.exists(marker) or not theirs.exists(marker):
                    continue
                if not self._asked_alike(marker, theirs):
                    continue
                scores = [f"scores/{name}" for name in theirs.at("scores").names()]
                judged = ["verdicts", *scores] if judged_alike else []
                for name in [*parts, *judged, "spec.json", marker]:
                    own.copy_from(theirs, name)
                own.write_json("reused.json", {"run": run.url.rsplit("/", 1)[-1]})

    def _asked_alike(self, marker: str, theirs: Storage) -> bool:
        """Whether what a trial's key does not decide was asked as this run would ask it."""
        if marker == "val.json":
            wanted = self.cascades
            return wanted is not None and theirs.read_json(marker)["most"] == wanted.val_records
        if marker == loadtest.MARKER:
            rule = loadtest.rule(self.latency) if self.latency else None
            return bool(theirs.read_json(marker) == rule)
        return True

    def _adopt_stop(self, own: Storage, theirs: Storage) -> bool:
        """What a scheduler has stopped would be stopped again, as long as there is the same one."""
        stop = stopped(theirs)
        if stop is None or stop["by"] != self.scheduler or own.exists("training.json"):
            return False
        for name in ("spec.json", "stopped.json"):
            own.copy_from(theirs, name)
        return True

    def calibration(self) -> None:
        """Take over the calibration of the same judge on the same dataset."""
        for run, _, judged_alike in self.runs:
            if judged_alike and not self.desk.run.exists("calibration.json"):
                self.desk.run.copy_from(run, "calibration.json")


def source(folder: Storage) -> str:
    """The run that a trial was taken from, or the empty string."""
    return str(folder.read_json("reused.json")["run"]) if folder.exists("reused.json") else ""


def _judged(run: Storage) -> Json | None:
    """What a run's judge compared with what, and how."""
    if not run.exists("experiment.yaml"):
        return None
    experiment: Json = yaml.safe_load(run.read_bytes("experiment.yaml"))
    return _judging(experiment, run.read_json("run.json").get("references", ""))


def _judging(experiment: Json, references: str) -> Json:
    """What decides judged scores; whether a prompt's file has changed the judges know."""
    free_text = experiment.get("scoring", {}).get("free_text")
    asked = {name: experiment.get(name) for name in ("judge", "judging")}
    return {**asked, "free_text": free_text, "references": references}
