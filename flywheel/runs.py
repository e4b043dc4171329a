"""The runs of a storage: how they are named and found, and what each notes of itself.

A run is a folder with ``run.json``: its state, when it began and ended, what its figures rest on.
The note is there from the first work on, and is written anew whenever the state changes.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from flywheel import config, provenance
from flywheel.config import Experiment
from flywheel.errors import RequestError
from flywheel.folders import Desk
from flywheel.storage import Storage
from flywheel.types import Json

FILE = "run.json"


def new_id(experiment: Experiment) -> str:
    """Name a run by experiment and time (UTC): names sort as the runs began."""
    return f"{experiment.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def unfinished(experiment: Experiment) -> str | None:
    """The latest run of this very experiment, unless it ended well."""
    runs = Storage(experiment.storage).at("runs")
    for name in reversed(runs.names()):
        folder = runs.at(name)
        if not (folder.exists(FILE) and folder.exists("experiment.yaml")):
            continue
        same = folder.read_bytes("experiment.yaml").decode() == config.dump(experiment)
        if same:
            return None if _ended_well(folder.read_json(FILE)) else name
    return None


def find(storage: Storage, run_id: str | None) -> Storage:
    """The folder of a run; without an id, of the one that was started last.

    Raises:
        RequestError: There is none; names some that there are.
    """
    runs = storage.at("runs")
    names = [name for name in runs.names() if runs.at(name).exists(FILE)]
    if not names:
        raise RequestError(f"{runs.url}: holds no runs")
    if run_id is None:
        return max((runs.at(n) for n in names), key=lambda f: f.read_json(FILE)["started_at"])
    if run_id not in names:
        raise RequestError(f"no run {run_id} in {runs.url}; there are: {', '.join(names[-5:])}")
    return runs.at(run_id)


class Note:
    """What a run notes of itself. A resumed run goes on with what an earlier session noted."""

    def __init__(self, desk: Desk, seed: int, *, fresh: bool) -> None:
        """Nothing is written yet.

        Args:
            desk: The run.
            seed: The experiment's.
            fresh: Whether the run takes nothing over from others; what it was begun with holds.
        """
        run = desk.run
        earlier: Json = run.read_json(FILE) if run.exists(FILE) else {}
        self.fresh = fresh or bool(earlier.get("fresh"))
        self.engine_starts = Counter[str](earlier.get("engine_starts", {}))
        """How often engines were started, by model; whoever starts one counts it here."""
        self.started = _now()
        self.provenance = provenance.of(self.started, seed)
        self.accepted = earlier.get("versions") == self.provenance["versions"]
        """Whether an earlier session passed all checks before its work, with these packages."""
        self._desk, self._facts = desk, dict[str, Any]()

    @property
    def written(self) -> bool:
        """Whether the run has a note: a request refused before any work leaves none."""
        return self._desk.run.exists(FILE)

    def write(self, status: str, error: str = "", **facts: Any) -> None:
        """Say what the run is and how far it came.

        Args:
            status: ``running``, ``succeeded``, ``failed`` or ``interrupted``.
            error: What ended it.
            facts: Beside the state; those of earlier calls stay.
        """
        self._facts |= facts
        state = {
            "run": self._desk.run_id,
            "status": status,
            "error": error,
            "started_at": self.started,
            "finished_at": None if status == "running" else _now(),
            "engine_starts": dict(self.engine_starts),
            "fresh": self.fresh,
        }
        self._desk.run.write_json(FILE, {**state, **self._facts, **self.provenance})


def _ended_well(note: Json) -> bool:
    """Whether a run has nothing left to do: a trial that failed is tried again when asked to."""
    return note["status"] == "succeeded" and not note.get("failed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
