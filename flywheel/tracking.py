"""MLflow: one parent run per experiment run, one child per trial, written by the driver alone.

Everything goes through one `MlflowClient`, so nothing global is set. Runs are found again by their
tags, and points of metrics have the time of their run, so whatever is sent a second time is there
once. MLflow is a witness, not a part of the proof: when it does not answer, the run goes on and
`Tracker.warnings` says what is missing; `flywheel.recording` sends it later.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from flywheel.config import Experiment, dump
from flywheel.errors import ConfigError, StorageError, boundary
from flywheel.leaderboard import Leaderboard, to_markdown
from flywheel.storage import Storage
from flywheel.types import Completion, Json, Score, TrialResult

RUN_TAG = "flywheel.run_id"
TRIAL_TAG = "flywheel.trial_key"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
ENDINGS = {"succeeded": "FINISHED", "failed": "FAILED"} | dict.fromkeys(
    ("interrupted", "stopped"), "KILLED"
)
"""A run's or trial's status -> MLflow's."""
HEALTH_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"
_MAKING, _MAKING_S = ".mlflow-", 600.0
"""Folders in which databases are made, and seconds that this takes at most."""
BATCH = 1_000
"""Metrics that MLflow takes in one request."""
VALUE_LIMIT = 500
"""Characters of a parameter; MLflow refuses more than 6,000."""


class Tracker:
    """Writes one experiment run to MLflow."""

    def __init__(self, experiment: Experiment, run_id: str, storage: Storage) -> None:
        """Settle where to write; nothing is opened before `start`.

        Args:
            experiment: What is run.
            run_id: Names the parent run.
            storage: The experiment's storage folder.

        Raises:
            ConfigError: The storage is remote and no tracking URI is given.
        """
        self.uri = experiment.tracking.uri or _default_uri(storage)
        self.warnings: list[str] = []
        """What could not be recorded, one sentence each."""
        self._experiment, self._run_id, self._storage = experiment, run_id, storage
        self._manifest: Mapping[str, Any] = {}
        self._client: Any = None
        self._parent = ""
        self._down = False
        """Whether the server did not answer when it was last looked for."""

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Open the parent run, or the one that an interrupted run left; say what data it is on."""
        self._manifest = manifest
        self.reach()

    def reach(self) -> None:
        """Look for the server, again if need be: what could not be opened is opened now."""
        self.warnings.clear()
        with self._tolerate("opening the run"):
            self._open()

    def log_trial(
        self,
        result: TrialResult,
        completions: Sequence[Completion],
        scores: Sequence[Score],
        adapter_dir: Path | None = None,
    ) -> None:
        """Record one trial as a child run; one that is recorded already is left alone.

        Once the server has not answered, no further trial waits for it.
        """
        if self._down:
            return
        with self._tolerate(f"recording trial {result.trial.label}"):
            self._open()
            info = self._child(result)
            if info.status == "FINISHED":
                return
            run_id = info.run_id
            self._client.log_batch(run_id, params=_params(result))
            metrics = _metrics(result, info.start_time)
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            self._client.set_tag(run_id, NOTE_TAG, result.error)
            self._log_dataset(run_id)
            _log_table(self._client, run_id, completions, scores)
            self._client.log_dict(run_id, result.to_json(), "result.json")
            if adapter_dir is not None:
                self._client.log_artifacts(run_id, str(adapter_dir), "adapter")
            self._client.set_terminated(run_id, ENDINGS[result.status])

    def finish(self, board: Leaderboard | None, report: str | None, status: str) -> None:
        """Record leaderboard and report (HTML), and close the parent.

        Args:
            board: If it came to one.
            report: The HTML page.
            status: ``succeeded``, ``failed`` or ``interrupted``.
        """
        with self._tolerate("closing the run"):
            self._open()
            if board is not None:
                self._client.log_dict(self._parent, board.to_json(), "leaderboard.json")
                self._client.set_tag(self._parent, NOTE_TAG, to_markdown(board))
            if report is not None:
                self._client.log_text(self._parent, report, "report.html")
            self._client.set_terminated(self._parent, ENDINGS[status])

    @contextmanager
    def _tolerate(self, doing: str) -> Iterator[None]:
        """Turn any failure of MLflow into a warning; the run does not depend on it."""
        try:
            with boundary(StorageError, f"{doing} in MLflow at {self.uri}"), _quiet():
                yield
        except StorageError as error:
            self.warnings.append(str(error))

    def _open(self) -> None:
        """Reach the server and find or create the parent; cheap when that is done."""
        self._down = True
        _check_health(self.uri)
        self._down = False
        if self._parent:
            return
        if self.uri.startswith(_SQLITE):
            _make_tables(Path(self.uri.removeprefix(_SQLITE)))
        self._client = self._client or _client(self.uri)
        home = self._home()
        found = self._client.search_runs([home], f"tags.`{RUN_TAG}` = '{self._run_id}'")
        tops = [run for run in found if PARENT_TAG not in run.data.tags]
        if tops:
            parent = tops[0]
            self._client.update_run(parent.info.run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: self._run_id, "flywheel.experiment": self._experiment.name}
            parent = self._client.create_run(home, tags=tags, run_name=self._run_id)
        if not parent.data.params:  # they come last: without them it was cut off
            self._log_parent(parent.info.run_id)
        self._parent = parent.info.run_id

    def _home(self) -> str:
        """The MLflow experiment's id. A server decides by itself where artifacts live."""
        name = self._experiment.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None if _is_server(self.uri) else _artifact_uri(self._storage)
        return str(self._client.create_experiment(name, artifact_location=place))

    def _log_parent(self, run_id: str) -> None:
        experiment = self._experiment
        values = {
            "experiment": experiment.name,
            "workload": experiment.workload,
            "dataset": self._manifest.get("fingerprint", ""),
            "seed": experiment.seed,
        }
        self._client.log_text(run_id, dump(experiment), "experiment.yaml")
        self._client.log_dict(run_id, dict(self._manifest), "manifest.json")
        self._log_dataset(run_id)
        self._client.log_batch(run_id, params=_as_params(values))

    def _log_dataset(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        fingerprint = str(self._manifest.get("fingerprint", ""))
        kind = "local" if self._storage.local else self._storage.url.split(":", 1)[0]
        dataset = Dataset(
            name=self._experiment.workload,
            digest=fingerprint[:36],
            source_type=kind,
            source=json.dumps({"uri": self._storage.at("datasets", fingerprint).url}),
            profile=json.dumps(self._manifest, default=str),
        )
        tags = [InputTag("mlflow.data.context", "eval")]
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _child(self, result: TrialResult) -> Any:
        """The trial's run (MLflow's ``RunInfo``); all but a finished one is written again."""
        home = self._home()
        mine = f"tags.`{TRIAL_TAG}` = '{result.key}' AND tags.`{PARENT_TAG}` = '{self._parent}'"
        for run in self._client.search_runs([home], mine):
            return run.info
        tags = {PARENT_TAG: self._parent, TRIAL_TAG: result.key, RUN_TAG: self._run_id}
        return self._client.create_run(home, tags=tags, run_name=result.trial.label).info


def _default_uri(storage: Storage) -> str:
    if not storage.local:
        message = "tracking.uri: name an MLflow server; its default needs a local folder"
        raise ConfigError(f"{message} and storage is {storage.url}")
    Path(storage.url).mkdir(parents=True, exist_ok=True)
    return f"{_SQLITE}{storage.url}/mlflow.db"


def _make_tables(database: Path) -> None:
    """Put a database with MLflow's tables there, whole or not at all, if there is none.

    MLflow makes them one by one, and never opens a database again in which it was killed at it.
    """
    for left in database.parent.glob(f"{_MAKING}*"):
        if time.time() - left.stat().st_mtime > _MAKING_S:  # whoever made it was killed
            shutil.rmtree(left, ignore_errors=True)
    if database.exists():
        return
    with TemporaryDirectory(dir=database.parent, prefix=_MAKING) as folder:
        made = Path(folder, database.name)
        _client(f"{_SQLITE}{made}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another run was quicker
            os.link(made, database)


def _artifact_uri(storage: Storage) -> str:
    place = storage.at("mlartifacts").url
    return Path(place).as_uri() if storage.local else place


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _check_health(uri: str) -> None:
    """Ask whether the server is there; MLflow itself would retry for minutes."""
    if _is_server(uri):
        reply = httpx.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S)
        if reply.is_server_error:  # what stands before a server that is away
            reply.raise_for_status()


def _client(uri: str) -> Any:
    """A client of our own; it sends no usage statistics and does not wait long, unless told to."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep database migration's progress and other libraries' deprecations off the screen."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # failures become `Tracker.warnings`
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _params(result: TrialResult) -> list[Any]:
    trial = result.trial
    values = {
        "candidate": trial.candidate,
        "model": trial.model,
        "method": trial.method,
        "dataset": trial.dataset,
        "seed": trial.seed,
        **{f"settings.{name}": value for name, value in trial.settings.items()},
        **trial.parameters,
    }
    return _as_params(values)


def _as_params(values: Json) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)[:VALUE_LIMIT]) for name, value in values.items()]


def _metrics(result: TrialResult, at: int) -> list[Any]:
    """All points, as of ``at`` (milliseconds): MLflow takes the same point again for the same."""
    from mlflow.entities import Metric

    values = {**_figures(result), **_numbers(result.training, "train_")}
    points = [Metric(name, value, at, 0) for name, value in values.items()]
    for name, series in result.training.items():
        if isinstance(series, list):
            steps = enumerate(v for v in series if isinstance(v, int | float))
            points += [Metric(f"train_{name}", float(v), at, step) for step, v in steps]
    return points


def _figures(result: TrialResult) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, figure in result.metrics.items():
        values |= _numbers({"": figure.value}, name)
        parts = {"low": figure.low, "high": figure.high, "n": figure.n}
        parts |= {"unscored": figure.unscored, "failed": figure.failed}
        values |= _numbers(parts, f"{name}_")
    if result.latency is not None:
        values |= _numbers(asdict(result.latency), "latency_")
    if result.load is not None and result.load.borne is not None:
        values |= _numbers(asdict(result.load.borne), "at_slo_")
    if result.cost is not None:
        values |= _numbers(asdict(result.cost), "cost_")
    return values


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _log_table(
    client: Any, run_id: str, completions: Sequence[Completion], scores: Sequence[Score]
) -> None:
    """Completions with their scores as a table that MLflow's page compares side by side.

    `MlflowClient.log_table` would append to the file of an interrupted run; this replaces it.
    """
    metrics = sorted({score.metric for score in scores})
    values = {(score.record_id, score.metric): score.value for score in scores}
    fields = ["record_id", "message", "finish_reason", "latency_s", "completion_tokens", "error"]
    rows = [
        [*_cells(c, fields), *(values.get((c.record_id, metric)) for metric in metrics)]
        for c in completions
    ]
    name = "completions.json"
    client.log_dict(run_id, {"columns": [*fields, *metrics], "data": rows}, name)
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))


def _cells(completion: Completion, fields: Sequence[str]) -> list[Any]:
    values = (getattr(completion, name) for name in fields)
    return [json.dumps(v, ensure_ascii=False) if isinstance(v, dict) else v for v in values]
