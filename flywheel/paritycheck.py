"""Parity on request: candidates of an experiment, or base models and adapters of a run.

Every model is asked twice with the same records: by transformers and PEFT, then in its engine. An
experiment's candidates are asked as they are; a run's also with every adapter it trained, one after
another in one process that loads the model once, then in one engine. An adapter that one side
cannot load fails alone. Remote endpoints are left out: their weights are not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flywheel import config, curation, folders, gate, models, nodes, trials, versions
from flywheel.cluster import Cluster, connect, own_errors
from flywheel.config import CandidateConfig, Experiment, LoraConfig, ParityConfig
from flywheel.errors import FlywheelError, RequestError, TrainingError, boundary
from flywheel.folders import Desk
from flywheel.methods.reference import Base
from flywheel.parity import Parity
from flywheel.progress import Display, Silent
from flywheel.serving import Endpoint, engine, options
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.types import Trial


@dataclass(frozen=True, slots=True)
class Subject:
    """One model to check: a candidate, and the adapter a trial made of it, if any."""

    candidate: CandidateConfig
    trial: Trial
    adapted: bool
    folder: Storage
    """Where ``reference.json`` and ``parity.json`` go; the adapter's trial's own."""


def of_experiment(
    experiment: Experiment, address: str | None = None, display: Display | None = None
) -> dict[str, Parity]:
    """Curate the experiment's dataset and check its candidates as they are.

    Returns:
        What was found, by label.

    Raises:
        RequestError: No candidate is served here, or the request cannot be met.
        FlywheelError: A model could not be loaded or served.
    """
    shown = display or Silent()
    with connect(address) as cluster:
        storage = Storage(experiment.storage)
        _check(experiment, cluster, storage)
        fingerprint = curation.curate(experiment, storage, shown.update).fingerprint
        subjects = _bases(experiment, storage.at("parity"), fingerprint)
        return _check_all(subjects, Desk(storage, ""), experiment, cluster, shown)


def of_run(
    storage: Storage, run_id: str, address: str | None = None, display: Display | None = None
) -> dict[str, Parity]:
    """Check a run's candidates and all adapters it trained; renews their ``parity.json``.

    Raises:
        RequestError: There is no such run, or nothing in it was served here.
        FlywheelError: A model could not be loaded or served.
    """
    desk = Desk(storage, run_id)
    if not desk.run.exists("experiment.yaml"):
        raise RequestError(f"no run {run_id} in {storage.at('runs').url}")
    with TemporaryDirectory(prefix="flywheel-") as temporary:
        file = Path(temporary) / "experiment.yaml"
        file.write_bytes(desk.run.read_bytes("experiment.yaml"))
        experiment = config.load(file)
    with connect(address) as cluster:
        _check(experiment, cluster, storage)
        fingerprint = desk.run.read_json("run.json").get("dataset", "")
        bases = _bases(experiment, storage.at("parity"), fingerprint)
        subjects = [*bases, *_adapters(bases, desk)]
        return _check_all(subjects, desk, experiment, cluster, display or Silent())


def _check(experiment: Experiment, cluster: Cluster, storage: Storage) -> None:
    """Refuse what cannot end well before anything starts."""
    nodes.check(cluster, storage)
    for candidate in experiment.candidates:
        if not candidate.remote:
            models.available(candidate.model)
            needs = cluster.engine_needs(candidate)
            cluster.require(needs, f"the engine of {candidate.model}", candidate.min_replicas)
    options.check(config.engines(experiment))


def _bases(experiment: Experiment, place: Storage, fingerprint: str) -> list[Subject]:
    local = [candidate for candidate in experiment.candidates if not candidate.remote]
    if not local:
        raise RequestError("every candidate is a remote endpoint: its weights are not here")
    subjects = []
    for one in local:
        settings = {"engine": one.engine, "timeout_s": one.timeout_s}
        trial = Trial(one.title, one.model, "base", {}, fingerprint, experiment.seed, settings)
        subjects.append(Subject(one, trial, adapted=False, folder=place.at(trial.key)))
    return subjects


def _adapters(bases: Sequence[Subject], desk: Desk) -> Iterator[Subject]:
    by_title = {subject.candidate.title: subject.candidate for subject in bases}
    for key in desk.trials.names():
        folder = desk.trials.at(key)
        if not (folder.exists("training.json") and folder.exists("spec.json")):
            continue
        trial = folders.read_spec(folder)
        if trial.method == "lora" and trial.candidate in by_title:
            yield Subject(by_title[trial.candidate], trial, adapted=True, folder=folder)


def _check_all(
    subjects: Sequence[Subject],
    desk: Desk,
    experiment: Experiment,
    cluster: Cluster,
    shown: Display,
) -> dict[str, Parity]:
    limits = experiment.parity
    groups = _by_candidate(subjects)
    broken = outside_the_engine(groups, desk, limits, cluster, shown)
    found: dict[str, Parity] = {}
    with ExitStack() as cleanup:
        if not cluster.ours:
            cleanup.callback(engine.stop_if_idle)
        for group in groups:
            spec = _engine(group, desk, cluster)
            shown.update(f"starting the engine of {spec.config.model}", 0, 0)
            with engine.serve(spec, local=cluster.ours) as running:
                for subject in group:
                    key = subject.trial.key
                    endpoint = running.endpoint(key if subject.adapted else "")
                    found[subject.trial.label] = (
                        _fail(subject, broken[key])
                        if key in broken
                        else compared(subject, desk, endpoint, limits)
                    )
    return found


def _by_candidate(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """A candidate as it is first, then its adapters."""
    groups: dict[str, list[Subject]] = {}
    for subject in sorted(subjects, key=lambda subject: subject.adapted):
        groups.setdefault(subject.candidate.title, []).append(subject)
    return list(groups.values())


def _engine(group: Sequence[Subject], desk: Desk, cluster: Cluster) -> EngineSpec:
    model = group[0].candidate
    ranks = [s.trial.parameters["rank"] for s in group if s.adapted]
    adapters = desk.trials.url if ranks else ""
    needs = cluster.engine_needs(model)
    return EngineSpec.of(model, needs, "parity", adapters, max(ranks, default=0))


def compared(subject: Subject, desk: Desk, endpoint: Endpoint, limits: ParityConfig) -> Parity:
    """Ask the served model what was asked outside the engine, and compare.

    Raises:
        EngineError: The endpoint does not answer for the base model; of an adapter, that is what is
            found.
    """
    trial = subject.trial
    try:
        return gate.check(trial, subject.folder, trials.unseen(trial, desk), endpoint, limits)
    except FlywheelError as error:
        if not subject.adapted:
            raise
        return _fail(subject, str(error))


def _fail(subject: Subject, why: str) -> Parity:
    found = Parity.broken(why)
    subject.folder.write_json("parity.json", found.to_json())
    return found


def outside_the_engine(
    groups: Sequence[Sequence[Subject]],
    desk: Desk,
    limits: ParityConfig,
    cluster: Cluster,
    shown: Display,
) -> dict[str, str]:
    """Let every subject answer outside the engine, those of one base model in one task.

    Args:
        groups: Subjects of one base model each, the model as it is first.
        desk: Where the run's trials worked.
        limits: How many records to answer, and how far.
        cluster: Where tasks run, each with what a LoRA trainer holds.
        shown: Told how many have answered.

    Returns:
        Why an adapter could not be asked, by its trial's key.

    Raises:
        TrainingError: A base model could not be loaded, or no record fits it.
        ClusterError: A node that joined late has other versions than this process.
    """
    import ray

    needs, broken = cluster.trainer_needs(LoraConfig()), dict[str, str]()
    task = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_calls=1)(_answers)
    done, total = 0, sum(map(len, groups))
    for group in groups:
        with boundary(TrainingError, f"answering with {group[0].candidate.model}"), own_errors():
            reports = task.options(num_returns="streaming").remote(
                group, desk, limits, math.ceil(needs.cpus), versions.installed()
            )
            for subject, report in zip(group, reports, strict=True):
                shown.update("answering outside the engine", done, total)
                why = ray.get(report)
                broken |= {subject.trial.key: why} if why else {}
                done += 1
    shown.update("answering outside the engine", total, total)
    return broken


def _answers(
    group: Sequence[Subject],
    desk: Desk,
    limits: ParityConfig,
    threads: int,
    driver: Mapping[str, str],
) -> Iterator[str]:
    """Body of the task: of each subject what broke, or nothing."""
    nodes.require_here(driver)
    base = gate.outside(group[0].trial, threads)
    for subject in group:
        try:
            _answer(subject, desk, limits, base)
        except FlywheelError as error:
            if not subject.adapted:
                raise
            yield str(error)
        else:
            yield ""


def _answer(subject: Subject, desk: Desk, limits: ParityConfig, base: Base) -> None:
    records = trials.unseen(subject.trial, desk)
    with TemporaryDirectory(prefix="flywheel-") as temporary:
        adapter = subject.folder.download("adapter", Path(temporary)) if subject.adapted else None
        gate.remember(subject.trial, subject.folder, records, adapter, limits, base)
