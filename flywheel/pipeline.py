"""One turn of the wheel, readable from top to bottom.

Logs become a dataset, the dataset's trials are trained and asked, answers are scored and judged,
results are ranked, recorded and reported. Every step finds what an earlier, interrupted run left
and does only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flywheel import (
    config,
    costs,
    curation,
    folders,
    forecast,
    logs,
    planning,
    preflight,
    recording,
    report,
    reuse,
)
from flywheel.budget import Budget
from flywheel.cluster import connect
from flywheel.config import Experiment
from flywheel.datasets import Manifest
from flywheel.errors import EngineError, FlywheelError, Interrupted, StorageError
from flywheel.folders import Desk
from flywheel.leaderboard import Leaderboard
from flywheel.monitor import Monitor
from flywheel.progress import Display, Silent
from flywheel.runs import Note
from flywheel.scoring import References
from flywheel.stages import answering, hosting, judging, ranking, results, training
from flywheel.stages.metering import Meter
from flywheel.stages.results import Yardstick
from flywheel.stages.session import Session
from flywheel.statistics import Power, conversations
from flywheel.storage import Storage
from flywheel.tracking import Tracker
from flywheel.types import Json, Trial, TrialResult

_RESUME = "the same command with --resume goes on from here"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run has to show."""

    run_id: str
    folder: Storage
    board: Leaderboard
    manifest: Json
    tracking_uri: str
    warnings: list[str]


def run(
    experiment: Experiment,
    run_id: str,
    address: str | None = None,
    display: Display | None = None,
    *,
    fresh: bool = False,
) -> Outcome:
    """Run an experiment to its leaderboard, going on where ``run_id`` was left.

    Args:
        experiment: What to run.
        run_id: A new name, or that of an interrupted run of the same experiment.
        address: A Ray cluster to join; default: ``RAY_ADDRESS``, else this machine.
        display: Shows progress.
        fresh: Run trials anew that an earlier run on the same dataset has finished.

    Raises:
        RequestError: The request cannot be met; nothing was trained or asked.
        FlywheelError: The run failed; what is finished stays for a resumed run.
        Interrupted: Ctrl-C or SIGTERM.
    """
    return _Run(experiment, run_id, display or Silent(), fresh=fresh).go(address)


class _Run:
    """The state of one run: where it works and what it has to tell so far."""

    def __init__(
        self, experiment: Experiment, run_id: str, display: Display, *, fresh: bool
    ) -> None:
        self.experiment = experiment
        self.run_id = run_id
        self.desk = Desk(Storage(experiment.storage), run_id)
        self.tracker = Tracker(experiment, run_id, self.desk.storage)
        self.recording = False
        """Whether MLflow knows of the run."""
        self.warnings: list[str] = []
        self.note = Note(self.desk, experiment.seed, fresh=fresh)
        self.budget = Budget(experiment.budget)
        self.monitor = Monitor(self.desk, display, self.budget)
        self.show = self.monitor.update

    def go(self, address: str | None) -> Outcome:
        """Do everything, and leave word of how it ended."""
        with logs.about(run=self.run_id):
            return self._go(address)

    def _go(self, address: str | None) -> Outcome:
        experiment, desk = self.experiment, self.desk
        self.show("starting Ray", 0, 0)
        try:
            with connect(address) as cluster:
                self.show("checking the request", 0, 0)
                passed = preflight.check(
                    experiment, cluster, desk.storage, self.show, accepted=self.note.accepted
                )
                self.warnings += passed.warnings
                desk.run.write_bytes("experiment.yaml", config.dump(experiment).encode())
                self._note("running")
                session = Session(
                    experiment,
                    desk,
                    passed.cluster,
                    self.budget,
                    self.monitor,
                    self.note.provenance,
                )
                with self.monitor:
                    return self._turn(session, passed.references)
        except KeyboardInterrupt:
            self._end("interrupted", "stopped by the user")
            raise Interrupted(f"stopped; {_RESUME}") from None
        except StorageError as error:  # no result: when the storage is back, the run goes on
            self._end("interrupted", str(error))
            raise StorageError(f"{error}; {_RESUME}") from error
        except FlywheelError as error:
            if not self._end("failed", str(error)):
                raise StorageError(f"{error}; {_RESUME}") from error
            if isinstance(error, EngineError):  # a judge's; what was answered is kept
                raise EngineError(f"{error}; {_RESUME}") from error
            raise

    def _turn(self, session: Session, references: References | None) -> Outcome:
        experiment, desk = self.experiment, self.desk
        manifest, power = self._dataset(references)
        fingerprint = manifest.fingerprint
        planned, samples = self.budget.within(
            planning.plan(experiment, fingerprint), planning.suggestions(experiment)
        )
        longest = planning.longest(experiment, fingerprint)
        self._note("running", trials=len(planned) + samples, **_identity(manifest, references))
        self.tracker.start(manifest.to_json())
        self.recording = True

        with hosting.engines(session, self.note.engine_starts) as engines:
            meter = Meter(session)
            earlier = self._earlier(session, meter, planned, manifest, references)
            self.monitor.plan(planned)
            self._foretell(session, [*planned, *longest[:samples]], manifest)
            planned += training.train(session, meter, planned, samples, earlier)
            answering.answer(session, meter, engines, planned)
            calibration = judging.judge(session, engines, planned, fingerprint, references)

        records = curation.load_split(desk.storage, fingerprint, "eval")
        groups = conversations(records, experiment.dataset.group_by)
        price = experiment.production.price
        production = costs.production_cost(manifest.production, price)
        yardstick = Yardstick(groups, power, production, references)
        begun = [trial for trial in planned if desk.folder(trial).exists("spec.json")]
        found = [results.collect(session, yardstick, trial) for trial in begun]
        if not found:
            raise FlywheelError("; ".join(self.budget.sentences()))
        self.warnings += results.incomplete(session, found)
        board, notes = ranking.rank(session, yardstick, found, fingerprint, calibration)
        self.warnings += notes
        self._report()
        self._track(found)
        return self._conclude(found, board, manifest, references)

    def _dataset(self, references: References | None) -> tuple[Manifest, Power]:
        """The dataset, and what its eval records can show; refuses one that shows too little."""
        experiment, storage = self.experiment, self.desk.storage
        manifest = curation.curate(experiment, storage, self.show)
        power = preflight.require_power(experiment, manifest.splits["eval"])
        if manifest.splits["eval"] < experiment.dataset.eval_size:
            self.warnings += preflight.power_warning(experiment, power)
        if references:  # put where trials find them
            records = curation.load_split(storage, manifest.fingerprint, "eval")
            fingerprint = manifest.fingerprint
            self.warnings += preflight.require_references(
                experiment, references, records, fingerprint
            )
            self.desk.run.write_lines(folders.REFERENCES, references.rows())
        return manifest, power

    def _earlier(
        self,
        session: Session,
        meter: Meter,
        planned: Sequence[Trial],
        manifest: Manifest,
        references: References | None,
    ) -> reuse.Earlier:
        """Take over what earlier runs have finished, and count what this one has taken before."""
        expected = references.identity if references else ""
        earlier = reuse.Earlier(self.experiment, self.desk, manifest.fingerprint, expected)
        if self.note.fresh:
            earlier.runs.clear()
        for folder in map(self.desk.trials.at, self.desk.trials.names()):  # of earlier sessions
            if folder.exists("spec.json") and not reuse.source(folder):
                meter.trained(folders.read_spec(folder))
                for asking in answering.askings(session, meter):
                    asking.ended(folders.read_spec(folder))
        for trial in planned:
            earlier.adopt(trial)
        earlier.calibration()
        return earlier

    def _foretell(self, session: Session, planned: Sequence[Trial], manifest: Manifest) -> None:
        """Say how long the plan may take, where something like it was measured before."""
        runs, cluster = self.desk.storage.at("runs"), session.cluster
        lora = self.experiment.methods.lora
        room = cluster.room(cluster.trainer_needs(lora)) if lora else 1
        found = forecast.forecast(
            planned,
            self._unfinished,
            forecast.speeds(runs.at(name) for name in reversed(runs.names())),
            train_records=manifest.splits["train"],
            eval_records=manifest.splits["eval"],
            together=self.experiment.search.max_concurrent or room,
        )
        if found.sentence:
            self.show(f"{len(planned)} trials: {found.sentence}", 0, 0)

    def _unfinished(self, trial: Trial, step: str) -> bool:
        folder = self.desk.folder(trial)
        marker = "training.json" if step == "train" else "answers.json"
        return not folder.exists(marker) and folders.stopped(folder) is None

    def _report(self) -> None:
        page = report.render(report.read(self.desk))
        self.desk.run.write_bytes("report.html", page.encode("utf-8", "replace"))

    def _track(self, found: Sequence[TrialResult]) -> None:
        succeeded = any(result.status == "succeeded" for result in found)
        status = "succeeded" if succeeded else "failed"
        show = partial(self.show, "recording in MLflow")
        recording.send(self.desk, self.tracker, status, show)

    def _conclude(
        self,
        found: Sequence[TrialResult],
        board: Leaderboard,
        manifest: Manifest,
        references: References | None,
    ) -> Outcome:
        """Note the good end of a run, unless all its trials failed."""
        if not any(result.status == "succeeded" for result in found):
            raise FlywheelError(f"all {len(found)} trials failed; the first: {found[0].error}")
        limits = self.budget.sentences()
        failed = sum(result.status == "failed" for result in found)
        ended: Json = {"trials": len(found), "failed": failed, "limits": limits}
        self._note("succeeded", **ended, **_identity(manifest, references))
        return Outcome(
            self.run_id,
            self.desk.run,
            board,
            manifest.to_json(),
            self.tracker.uri,
            [*self.warnings, *limits, *recording.advice(self.run_id, self.tracker.warnings)],
        )

    def _note(self, status: str, error: str = "", **facts: Any) -> None:
        """Write ``run.json``: what this run is and how far it came."""
        sent: Json = {"tracking_uri": self.tracker.uri, "unsent": self.tracker.warnings}
        self.note.write(status, error, **sent, **facts)

    def _end(self, status: str, error: str) -> bool:
        """Leave word of a bad end, if the storage takes it, and say whether it did.

        A request refused before any work leaves nothing.
        """
        facts = logs.fields({"error": error}, status=status, folder=self.desk.run.url)
        logs.log.error("run ended", extra=facts)
        if self.recording:
            self.tracker.finish(None, None, status)
        try:
            if self.note.written:
                self._note(status, error)
        except StorageError as fault:  # then its state stays as it was, and it can be resumed
            logs.log.error("run.json not written", extra=logs.fields(error=str(fault)))
            return False
        return True


def _identity(manifest: Manifest, references: References | None) -> Json:
    """What a run's figures are about."""
    expected = {"references": references.identity} if references else {}
    return {"dataset": manifest.fingerprint, **expected}
