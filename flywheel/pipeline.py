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
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flywheel import (
    config,
    costs,
    curation,
    fanout,
    forecast,
    judging,
    leaderboard,
    loadtest,
    logs,
    metrics,
    models,
    nodes,
    planning,
    recording,
    report,
    reuse,
    sizing,
    steps,
    sweep,
    trials,
    versions,
)
from flywheel.asking import Asked, Queue
from flywheel.budget import Budget
from flywheel.cascading import Cascade, Cascades
from flywheel.cluster import Want, connect
from flywheel.config import (
    LEARNING,
    CandidateConfig,
    Experiment,
    JudgeConfig,
    LatencyConfig,
    LoraConfig,
    ModelConfig,
    SloConfig,
)
from flywheel.datasets import Manifest
from flywheel.errors import ConfigError, FlywheelError, Interrupted, RequestError, StorageError
from flywheel.inference import read as read_completions
from flywheel.leaderboard import Leaderboard
from flywheel.methods import full
from flywheel.monitor import Monitor
from flywheel.progress import Display, Silent
from flywheel.scoring import References, chosen, classes, misses_by_kind, references
from flywheel.serving import Endpoint, engine, options, remote
from flywheel.serving.engine import EngineSpec
from flywheel.serving.pool import Pool
from flywheel.spaces import extremes
from flywheel.statistics import Groups, Power, conversations, estimates, plan
from flywheel.storage import Storage
from flywheel.tracking import Tracker
from flywheel.trials import Desk
from flywheel.types import Completion, Json, Record, Score, ScoreStatus, Trial, TrialResult

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
    again = ranking.baseline is not None or experiment.scoring.references is not None
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
        self.desk = Desk(Storage(experiment.storage), run_id)
        self.tracker = Tracker(experiment, run_id, self.desk.storage)
        self.recording = False
        """Whether MLflow knows of the run."""
        self.warnings: list[str] = []
        self.references: References | None = None
        """What is right, where a ground-truth file says it."""
        self.groups: Groups = {}
        """Eval records of one conversation."""
        self.power: Power | None = None
        self.production = costs.NO_PRICE
        """What production costs today."""
        self.session = f"{run_id}-{uuid.uuid4().hex}"
        """Owns the engines: those of a session that was killed are no longer ours."""
        self.pool = Pool(self._start_engine, self._fit, engine.give_up)
        self.starts = _engine_starts(self.desk.run)
        """How often earlier sessions of the run started engines, by model."""
        self.fresh = fresh or self._was_fresh()
        self.budget = Budget(experiment.budget)
        self.monitor = Monitor(self.desk, display, self.budget)
        self.show = self.monitor.update
        self.facts: Json = {}
        """What ``run.json`` says beside the run's state."""
        self.started = _now()
        self.commit = _commit()

    def go(self, address: str | None) -> Outcome:
        """Do everything, and leave word of how it ended."""
        with logs.about(run=self.run_id):
            return self._go(address)

    def _go(self, address: str | None) -> Outcome:
        self.show("starting Ray", 0, 0)
        try:
            with connect(address) as self.cluster:
                self._check()
                self.desk.run.write_bytes("experiment.yaml", config.dump(self.experiment).encode())
                self._note("running")
                with self.monitor:
                    return self._turn()
        except KeyboardInterrupt:
            self._end("interrupted", "stopped by the user")
            raise Interrupted(f"stopped; {_RESUME}") from None
        except StorageError as error:  # no result: when the storage is back, the run goes on
            self._end("interrupted", str(error))
            raise StorageError(f"{error}; {_RESUME}") from error
        except FlywheelError as error:
            if not self._end("failed", str(error)):
                raise StorageError(f"{error}; {_RESUME}") from error
            raise

    def _turn(self) -> Outcome:
        experiment, desk = self.experiment, self.desk
        fanout.clear(desk)  # of a session that was killed
        manifest = curation.curate(experiment, desk.storage, self.show)
        price = experiment.production.price
        self.production = costs.production_cost(manifest.production, price)
        self.power = self._power(manifest.splits["eval"])
        if manifest.splits["eval"] < experiment.dataset.eval_size:
            self.warnings += power_warning(experiment, self.power)
        planned, samples = self.budget.within(
            planning.plan(experiment, manifest.fingerprint), planning.suggestions(experiment)
        )
        longest = planning.longest(experiment, manifest.fingerprint)
        self._expect(manifest)
        self._note("running", trials=len(planned) + samples, **self._identity(manifest))
        self.tracker.start(manifest.to_json())
        self.recording = True

        with ExitStack() as cleanup:
            if not self.cluster.ours:  # a Ray of our own takes Serve down with it
                cleanup.callback(engine.stop_if_idle)
            cleanup.callback(self.pool.close)
            earlier = self._earlier(planned, manifest)
            self.monitor.plan(planned)
            self._foretell([*planned, *longest[:samples]], manifest)
            planned += self._train(planned, samples, earlier)
            self._answer(planned)
            calibration = self._judge(planned, manifest)

        self.groups = conversations(self._records(manifest), experiment.dataset.group_by)
        begun = [trial for trial in planned if desk.folder(trial).exists("spec.json")]
        results = [self._result(trial) for trial in begun]
        if not results:
            raise FlywheelError("; ".join(self.budget.sentences()))
        cascades = self._cascades(results, calibration)
        board = self._rank(results, cascades, manifest, calibration)
        self._report()
        self._track(results)
        if not any(result.status == "succeeded" for result in results):
            raise FlywheelError(f"all {len(results)} trials failed; the first: {results[0].error}")
        limits = self.budget.sentences()
        failed = sum(result.status == "failed" for result in results)
        ended: Json = {"trials": len(begun), "failed": failed, "limits": limits}
        self._note("succeeded", **ended, **self._identity(manifest))
        return Outcome(
            self.run_id,
            desk.run,
            board,
            manifest.to_json(),
            self.tracker.uri,
            [*self.warnings, *limits, *recording.advice(self.run_id, self.tracker.warnings)],
        )

    # -- before any work ---------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what cannot end well: no room, no weights, no key."""
        self.show("checking the request", 0, 0)
        experiment = self.experiment
        self.warnings += nodes.check(self.cluster, self.desk.storage)
        self._power(experiment.dataset.eval_size)
        judging.check_prompts([judge.prompt for judge in judging.judges(experiment)])
        for model in [*experiment.candidates, *experiment.judges]:
            if model.remote:
                config.secret(model.api_key_env)
                if isinstance(model, CandidateConfig):  # workers ask them, the pipeline asks judges
                    self.cluster.require_key(model.api_key_env)
                continue
            models.available(model.model)
            self._check_engine(model)
        options.check(config.engines(experiment))
        planning.plan(experiment, "")  # reads what it names
        self._check_scoring()
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

    def _check_scoring(self) -> None:
        """Refuse metrics that cannot work, and read what is expected."""
        scoring, masking = self.experiment.scoring, self.experiment.dataset.masking
        asked = chosen.asked(scoring.metrics or [])
        for model in chosen.models(asked):
            models.available(model)
        self.cluster.require_metrics(chosen.own(asked))
        if scoring.references is not None:
            self.references = references.read(scoring.references, masking)

    def _expect(self, manifest: Manifest) -> None:
        """Put what is expected where trials find it; refuse a file that is about other records."""
        if self.references is None:
            return
        records = curation.load_split(self.desk.storage, manifest.fingerprint, "eval")
        known = sum(record.id in self.references.messages for record in records)
        where = f"scoring.references: {self.experiment.scoring.references} names"
        if not known:
            raise RequestError(
                f"{where} none of the {len(records)} eval records of dataset "
                f"{manifest.fingerprint}, such as {records[0].id}"
            )
        if known < len(records):
            self.warnings.append(
                f"{where} {known} of {len(records)} eval records; the others stay unscored"
            )
        self.desk.run.write_lines(trials.REFERENCES, self.references.rows())

    def _identity(self, manifest: Manifest) -> Json:
        """What a run's figures are about."""
        expected = {"references": self.references.identity} if self.references else {}
        return {"dataset": manifest.fingerprint, **expected}

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

    def _earlier(self, planned: Sequence[Trial], manifest: Manifest) -> reuse.Earlier:
        """Take over what earlier runs have finished, and count what this one has taken before."""
        expected = self.references.identity if self.references else ""
        earlier = reuse.Earlier(self.experiment, self.desk, manifest.fingerprint, expected)
        if self.fresh:
            earlier.runs.clear()
        for folder in map(self.desk.trials.at, self.desk.trials.names()):  # of earlier sessions
            if folder.exists("spec.json") and not reuse.source(folder):
                self._trained(trials.read(folder))
                for asking in self._askings():
                    asking.ended(trials.read(folder))
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
                if not self.budget.bounds_work:  # else what is cheap should not be left out
                    manifest = curation.load_manifest(self.desk.storage, earlier.fingerprint)
                    records = manifest.splits["train"]
                    waiting = forecast.longest_first(waiting, records, self._weight)
                listed = sweep.Listed(waiting, self.desk, self.budget, self._trained)
                self._train_all(method, listed)
        return suggested

    def _train_all(self, method: str, feed: sweep.Feed) -> None:
        if not feed.expected:
            return
        search = self.experiment.search
        needs = self.cluster.trainer_needs(getattr(self.experiment.methods, method))
        step = partial(steps.train, desk=self.desk, threads=math.ceil(needs.cpus))
        what = "adapters" if method == "lora" else "models"
        show = partial(self.show, f"training {feed.expected} {what}")
        show(0, 0)
        together = search.max_concurrent or min(self.cluster.room(needs), feed.expected)
        feed = self.monitor.watch(feed, "training")
        fanout.map_over(step, feed, self.desk, together, show, needs, search.scheduler)

    def _answer(self, planned: Sequence[Trial]) -> None:
        """Ask what is trained: as many trials at once as have an engine's replica to themselves."""
        askings = list(self._askings())
        due = {
            trial.key: [asking for asking in askings if asking.due(self.desk.folder(trial))]
            for trial in planned
            if not self._failed(trial)
        }
        waiting = [trial for trial in planned if due.get(trial.key)]
        if not waiting:
            return
        endpoints: dict[str, Endpoint] = {}
        queues = self._queues(waiting, endpoints)
        asks = [(asking.marker, asking.ask) for asking in askings]
        step = partial(steps.ask, asks=asks, desk=self.desk, endpoints=endpoints)
        titles = list(dict.fromkeys(trial.candidate for trial in waiting))
        whom = titles[0] if len(titles) == 1 else f"{len(titles)} candidates"

        def spent(trial: Trial) -> None:
            for asking in due[trial.key]:
                asking.ended(trial)

        with Asked(queues, self.desk, self.budget, spent) as feed:
            show = partial(self.show, f"answering with {whom}")
            show(0, 0)
            watched = self.monitor.watch(feed, "answering")
            fanout.map_over(step, watched, self.desk, feed.places, show)

    def _askings(self) -> Iterator[steps.Asking]:
        """What is done while a trial's engine is held, in this order."""
        latency, cascades = self.experiment.latency, self.experiment.cascades
        yield steps.Asking(steps.ANSWERS, trials.answer, self._answered)
        if cascades:
            ask = partial(steps.ask_val, most=cascades.val_records)
            yield steps.Asking("val.json", ask, self._answered_val)
        if latency:
            ask = partial(steps.ask_under_load, config=latency)
            yield steps.Asking(loadtest.MARKER, ask, self._load_tested)

    def _queues(self, waiting: Sequence[Trial], endpoints: dict[str, Endpoint]) -> list[Queue]:
        """What is to be asked, by engine or endpoint; fills in where each trial is."""
        remotes: dict[str, Queue] = {}
        served: dict[str, tuple[EngineSpec, list[Trial]]] = {}
        for candidate, mine in self._by_weights(waiting):
            if candidate.remote and mine:
                there = remote(candidate)
                endpoints |= {trial.key: there for trial in mine}
                remotes.setdefault(there.url, Queue(deque(), nullcontext)).trials.extend(mine)
            elif mine:
                spec = self._spec(candidate, waiting)
                served.setdefault(spec.name, (spec, []))[1].extend(mine)
        queues = []
        replicas = self.cluster.share([self._want(*one) for one in served.values()])
        for (spec, mine), copies in zip(served.values(), replicas, strict=True):
            placed = engine.located(spec.times(copies), local=self.cluster.ours)
            endpoints |= {trial.key: placed.endpoint(_adapter(trial)) for trial in mine}
            self.pool.expect(placed)
            queues.append(Queue(deque(mine), partial(self._lease, placed), copies))
        return [*remotes.values(), *queues]

    def _want(self, spec: EngineSpec, mine: Sequence[Trial]) -> Want:
        """At most a replica for each trial; what an answer takes grows with the weights."""
        least = spec.config.min_replicas
        most = max(least, min(spec.config.max_replicas or least, len(mine)))
        work = len(mine) * sizing.token_bytes(self._weight(spec.config.model), spec.gpus)
        return Want(spec.needs[0], least, most, work)

    def _weight(self, model: str) -> float:
        """How large a model is beside the others; all alike where one is still to be downloaded."""
        local = [c.model for c in self.experiment.candidates if not c.remote]
        sizes = [models.size(name) for name in (model, *local)]
        return float(sizes[0].weight_bytes) if sizes[0] and all(sizes) else 1.0

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

    @contextmanager
    def _lease(self, spec: EngineSpec) -> Iterator[EngineSpec]:
        """An engine, for as long as the block lasts."""
        asked = time.monotonic()
        with self.pool.lease(spec) as served:
            metrics.QUEUE_SECONDS.tell(time.monotonic() - asked, what="engine")
            yield served

    @contextmanager
    def _start_engine(self, spec: EngineSpec) -> Iterator[EngineSpec]:
        model = spec.config.model
        self.show(f"starting the engine of {model}", 0, 0)
        with self.monitor.engine(model), engine.serve(spec, local=self.cluster.ours) as served:
            self.monitor.engine_up(model)
            yield served

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
        folder = self.desk.folder(trial)
        if folder.exists("answers.json"):
            _, wall_s = trials.read_latency(folder)
            self._spend(trial, read_completions(folder.at("completions")), wall_s)

    def _answered_val(self, trial: Trial) -> None:
        folder = self.desk.folder(trial)
        if folder.exists("val.json"):
            wall_s = folder.read_json("val.json")["wall_s"]
            self._spend(trial, read_completions(folder.at("val")), wall_s)

    def _load_tested(self, trial: Trial) -> None:
        for timings in loadtest.timings(self.desk.folder(trial)).values():
            wall_s = max(timing.sent_s + timing.total_s for timing in timings)
            self._spend(trial, [timing.completion for timing in timings], wall_s)

    def _spend(self, trial: Trial, completions: Sequence[Completion], wall_s: float) -> None:
        candidate = self._candidate(trial)
        gpus = 0 if candidate.remote else self.cluster.engine_needs(candidate).gpus
        answered = sum(not completion.error for completion in completions)
        per_1k = costs.cost_of(candidate, completions, wall_s).per_1k_requests or 0.0
        self.budget.spend(gpus * wall_s / 3600, per_1k * answered / 1000)

    def _candidate(self, trial: Trial) -> CandidateConfig:
        return next(c for c in self.experiment.candidates if c.title == trial.candidate)

    # -- judging -----------------------------------------------------------------------------

    def _judge(self, planned: Sequence[Trial], manifest: Manifest) -> Json | None:
        """Calibrate the judges and let them score every trial that has answers."""
        answered = [t for t in planned if self.desk.folder(t).exists("answers.json")]
        if not answered or not self.experiment.judges:
            return None
        labels = judging.Labels(self.desk.storage, manifest.fingerprint)
        kept = self.desk.storage.at("responses")
        records = self._expected(manifest)
        session = judging.Session(self.experiment, self.desk.run, records, labels, kept)
        folders = {trial.key: self.desk.folder(trial) for trial in answered}
        waiting = [trial for trial in answered if not session.judged(folders[trial.key])]
        if waiting or not session.calibrated:
            for judge in session.judges:
                if not judge.config.remote:  # one engine for all prompts of a model
                    self.pool.expect(self._spec(judge.config))
            for judge in session.judges:
                with self._judges_endpoint(judge.config) as endpoint:
                    if not session.calibrated:
                        session.ask_probes(judge, endpoint, self.show)
                    for trial in waiting:
                        show = partial(self.show, f"judging {trial.label}")
                        session.ask(judge, endpoint, folders[trial.key], show)
            for trial in waiting:
                session.write(folders[trial.key])
                self._count_judge_errors(folders[trial.key])
        return session.close(folders)

    @contextmanager
    def _judges_endpoint(self, judge: JudgeConfig) -> Iterator[Endpoint]:
        if judge.remote:
            yield remote(judge)
            return
        with self._lease(self._spec(judge)) as served:
            yield served.endpoint()

    def _count_judge_errors(self, folder: Storage) -> None:
        unscored = (s for s in trials.read_scores(folder) if s.status == ScoreStatus.UNSCORED)
        for judge, count in Counter(s.judge for s in unscored if s.judge).items():
            metrics.JUDGE_ERRORS.tell(count, judge=judge)

    # -- results -----------------------------------------------------------------------------

    def _result(self, trial: Trial) -> TrialResult:
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
            result = self._succeeded(trial, folder)
        folder.write_json("result.json", result.to_json())
        self.monitor.moved(trial, result.status)
        return result

    def _succeeded(self, trial: Trial, folder: Storage) -> TrialResult:
        candidate = self._candidate(trial)
        completions = read_completions(folder.at("completions"))
        latency, wall_s = trials.read_latency(folder)
        reused = {"reused_from": reuse.source(folder)} if reuse.source(folder) else {}
        stop = trials.read_stop(folder)
        stopped = {"stopped": stop} if stop else {}
        trained = folder.exists("training.json")
        training = folder.read_json("training.json") if trained else {}
        scores = trials.read_scores(folder)
        judges = {score.metric: score.judge for score in scores if score.judge}
        wanted = self.experiment.latency
        load = loadtest.read(folder, wanted, self._slo(wanted)) if wanted else None
        if error := trials.failure(folder):  # its answers stand, what came after them failed
            self.warnings.append(f"{trial.label} was not measured in full: {error}")
        cost = costs.cost_of(candidate, completions, wall_s, load)
        dollars = costs.training_dollars(candidate, training)
        return TrialResult(
            trial,
            "succeeded",
            metrics=estimates(scores, self.groups),
            latency=latency,
            cost=costs.compared(cost, self.production, dollars),
            training=training,
            parity=_parity(folder),
            provenance={**self._provenance(), "judges": judges, **reused, **stopped},
            misses=misses_by_kind(scores),
            classes=classes.tables(scores, self.groups),
            load=load,
        )

    def _slo(self, latency: LatencyConfig) -> SloConfig:
        """A limit on the 95th percentile is one on 95 % of the answers."""
        slo, limit = latency.slo, self.experiment.ranking.max_p95_s
        return slo if slo.total_s else slo.model_copy(update={"total_s": limit})

    def _cascades(self, results: Sequence[TrialResult], calibration: Json | None) -> list[Cascade]:
        experiment = self.experiment
        if experiment.cascades is None:
            return []
        metric, _ = leaderboard.choose_metric(results, experiment.ranking, calibration)
        maker = Cascades(experiment, self.desk, metric, self.groups, self.production)
        made = maker.of(results)
        self.warnings += maker.notes
        return made

    def _rank(
        self,
        results: Sequence[TrialResult],
        cascades: Sequence[Cascade],
        manifest: Manifest,
        calibration: Json | None,
    ) -> Leaderboard:
        board = leaderboard.rank(
            [*results, *(cascade.result for cascade in cascades)],
            self._scores(results, cascades),
            self.experiment.ranking,
            groups=self.groups,
            power=self.power.to_json() if self.power else None,
            logged=self._logged(results),
            calibration=calibration,
            production=self.production,
            provenance={"run": self.run_id, "dataset": manifest.fingerprint, **self._provenance()},
        )
        self.desk.run.write_json("leaderboard.json", board.to_json())
        return board

    def _report(self) -> None:
        page = report.render(report.read(self.desk))
        self.desk.run.write_bytes("report.html", page.encode("utf-8", "replace"))

    def _track(self, results: Sequence[TrialResult]) -> None:
        succeeded = any(result.status == "succeeded" for result in results)
        status = "succeeded" if succeeded else "failed"
        show = partial(self.show, "recording in MLflow")
        recording.send(self.desk, self.tracker, status, show)

    def _records(self, manifest: Manifest) -> list[Record]:
        return curation.load_split(self.desk.storage, manifest.fingerprint, "eval")

    def _expected(self, manifest: Manifest) -> list[Record]:
        """Eval records with what is expected as their answer, as far as that is known."""
        records = self._records(manifest)
        if self.references is None:
            return records
        return [expected for r in records if (expected := self.references.of(r)) is not None]

    def _logged(self, results: Sequence[TrialResult]) -> list[Score] | None:
        """How production's own answers score, where they are not right by definition."""
        done = [result.trial for result in results if result.status == "succeeded"]
        if self.references is None or not done:
            return None
        return trials.production_scores(done[0], self.desk)

    def _completions(self, trial: Trial) -> list[Completion]:
        return read_completions(self.desk.folder(trial).at("completions"))

    def _scores(
        self, results: Sequence[TrialResult], cascades: Sequence[Cascade]
    ) -> dict[str, list[Score]]:
        own = {r.key: trials.read_scores(self.desk.folder(r.trial)) for r in results}
        return own | {cascade.result.key: cascade.scores for cascade in cascades}

    # -- bookkeeping -------------------------------------------------------------------------

    def _provenance(self) -> Json:
        return {
            "date": self.started[:10],
            "commit": self.commit,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": versions.installed(),
            "seed": self.experiment.seed,
        }

    def _note(self, status: str, error: str = "", **facts: Any) -> None:
        """Write ``run.json``: what this run is and how far it came."""
        finished = None if status == "running" else _now()
        self.facts |= facts
        note = {"run": self.run_id, "status": status, "error": error, "started_at": self.started}
        self.desk.run.write_json(
            "run.json",
            {
                **note,
                "finished_at": finished,
                "tracking_uri": self.tracker.uri,
                "engine_starts": dict(self.starts + self.pool.starts),
                "fresh": self.fresh,
                "unsent": self.tracker.warnings,
                **self.facts,
                **self._provenance(),
            },
        )

    def _was_fresh(self) -> bool:
        """What the run was begun with holds when it is resumed."""
        run = self.desk.run
        return run.exists("run.json") and bool(run.read_json("run.json").get("fresh"))

    def _end(self, status: str, error: str) -> bool:
        """Leave word of a bad end, if the storage takes it, and say whether it did.

        A request refused before any work leaves nothing.
        """
        facts = logs.fields({"error": error}, status=status, folder=self.desk.run.url)
        logs.log.error("run ended", extra=facts)
        if self.recording:
            self.tracker.finish(None, None, status)
        try:
            if self.desk.run.exists("run.json"):
                self._note(status, error)
        except StorageError as fault:  # then its state stays as it was, and it can be resumed
            logs.log.error("run.json not written", extra=logs.fields(error=str(fault)))
            return False
        return True


def _ended_well(note: Json) -> bool:
    """Whether a run has nothing left to do: a trial that failed is tried again when asked to."""
    return note["status"] == "succeeded" and not note.get("failed")


def _adapter(trial: Trial) -> str:
    """The adapter that a trial asks the engine for; none is the base model."""
    return trial.key if trial.method == "lora" else ""


def _parity(folder: Storage) -> Json:
    found: Json = folder.read_json("parity.json") if folder.exists("parity.json") else {}
    return found


def _engine_starts(folder: Storage) -> Counter[str]:
    note = folder.read_json("run.json") if folder.exists("run.json") else {}
    return Counter(note.get("engine_starts", {}))


def _told(stop: Json) -> str:
    done = f"{100 * stop['share']:.0f} % of its training"
    return f"by {stop['by']} after {done}, val loss {stop['val_loss']:.3g}"


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
