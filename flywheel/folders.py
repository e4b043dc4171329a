"""What lies in the folders of a run and of its trials, and how it is written and read.

A trial's folder: ``spec.json``, ``adapter/`` or ``model/`` and ``training.json`` (before that a
checkpoint), ``reference.json`` and ``parity.json``, ``completions/`` and ``scores/`` and
``answers.json``, where the experiment wants them ``val/`` and ``val.json``, ``latency/`` and
``latency.json``, ``failed.json`` where a step failed, ``stopped.json`` where a scheduler ended a
training, ``result.json`` last.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from flywheel import curation
from flywheel.errors import FlywheelError
from flywheel.storage import Storage
from flywheel.types import Json, Latency, Record, Score, Trial, TrialResult

PROGRAMMATIC = "programmatic.jsonl"
"""Among a trial's scores: those that programs gave."""
REFERENCES = "references.jsonl"
"""In a run's folder: what is expected of its eval records, where a ground-truth file says it."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a run's trials work: the experiment's storage and the run's id. Picklable."""

    storage: Storage
    run_id: str

    @property
    def run(self) -> Storage:
        """The run's folder."""
        return self.storage.at("runs", self.run_id)

    @property
    def trials(self) -> Storage:
        """The folder of all trials."""
        return self.run.at("trials")

    def folder(self, trial: Trial) -> Storage:
        """One trial's folder."""
        return self.trials.at(trial.key)

    def of(self, result: TrialResult) -> Storage:
        """What a row of the leaderboard rests on: a trial's folder, or a cascade's."""
        if result.cascade:
            return self.run.at("cascades", result.key)
        return self.folder(result.trial)

    def records(self, trial: Trial, split: str) -> list[Record]:
        """A split of the trial's dataset."""
        return curation.load_split(self.storage, trial.dataset, split)


def write_spec(folder: Storage, trial: Trial) -> None:
    """Leave word of what is tried here."""
    folder.write_json("spec.json", {"key": trial.key, "label": trial.label, **asdict(trial)})


def read_spec(folder: Storage) -> Trial:
    """The trial whose folder it is."""
    spec = folder.read_json("spec.json")
    return Trial(**{field.name: spec[field.name] for field in fields(Trial)})


def write_failure(folder: Storage, error: BaseException) -> None:
    """Leave word of why a trial failed, in one bounded sentence."""
    kind = "" if isinstance(error, FlywheelError) else f"{type(error).__name__}: "
    folder.write_json("failed.json", {"error": f"{kind}{error}"[:2000]})


def failure(folder: Storage) -> str:
    """Why a trial failed, or the empty string."""
    return str(folder.read_json("failed.json")["error"]) if folder.exists("failed.json") else ""


def write_stop(folder: Storage, facts: Json) -> None:
    """Leave word that a scheduler ended this training, and how far it was."""
    folder.write_json("stopped.json", facts)


def stopped(folder: Storage) -> Json | None:
    """How far a training was that a scheduler ended; none where none did.

    What a scheduler has ended counts as that, even if the trainer had saved it before it heard.
    """
    if not folder.exists("stopped.json"):
        return None
    facts: Json = folder.read_json("stopped.json")
    return facts


def read_scores(folder: Storage) -> list[Score]:
    """All scores a trial has so far."""
    scores = folder.at("scores")
    rows = (row for name in scores.names(".jsonl") for row in scores.read_lines(name))
    return [Score.from_row(row) for row in rows]


def read_latency(folder: Storage) -> tuple[Latency | None, float]:
    """A trial's latency (none when no request was answered), and the seconds it asked for."""
    data = folder.read_json("answers.json")
    return Latency(**data["latency"]) if data["latency"] else None, data["wall_s"]


def read_stop(folder: Storage) -> Json:
    """How many records a trial stopped early was ``asked``, ``of`` how many; else nothing."""
    stopped: Json = folder.read_json("answers.json").get("stopped", {})
    return stopped
