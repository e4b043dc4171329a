"""Parity on request: candidates of an experiment, or base models and adapters of a run.

Every model is asked twice with the same records: by transformers and PEFT, then in its engine. An
experiment's candidates are asked as they are; a run's also with every adapter it trained. Remote
endpoints are left out: their weights are not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flywheel import config, curation, gate, models, nodes, trials
from flywheel.cluster import Cluster, connect
from flywheel.config import CandidateConfig, Experiment, LoraConfig, ParityConfig
from flywheel.errors import RequestError, TrainingError, boundary
from flywheel.parity import Parity
from flywheel.progress import Display, Silent
from flywheel.serving import engine, options
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.trials import Desk
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
        trial = trials.read(folder)
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
    for done, subject in enumerate(subjects):
        shown.update("answering outside the engine", done, len(subjects))
        _remember(subject, desk, limits, cluster)
    shown.update("answering outside the engine", len(subjects), len(subjects))
    found: dict[str, Parity] = {}
    with ExitStack() as cleanup:
        if not cluster.ours:
            cleanup.callback(engine.stop_if_idle)
        for spec, served in _by_engine(subjects, desk, cluster):
            shown.update(f"starting the engine of {spec.config.model}", 0, 0)
            with engine.serve(spec, local=cluster.ours) as running:
                for subject in served:
                    endpoint = running.endpoint(subject.trial.key if subject.adapted else "")
                    records = desk.unseen(subject.trial)
                    trial, folder = subject.trial, subject.folder
                    found[trial.label] = gate.check(trial, folder, records, endpoint, limits)
    return found


def _by_engine(
    subjects: Sequence[Subject], desk: Desk, cluster: Cluster
) -> Iterator[tuple[EngineSpec, list[Subject]]]:
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.candidate.title, []).append(subject)
    for group in groups.values():
        model = group[0].candidate
        ranks = [s.trial.parameters["rank"] for s in group if s.adapted]
        adapters = desk.trials.url if ranks else ""
        needs = cluster.engine_needs(model)
        yield EngineSpec.of(model, needs, "parity", adapters, max(ranks, default=0)), group


def _remember(subject: Subject, desk: Desk, limits: ParityConfig, cluster: Cluster) -> None:
    import ray

    needs = cluster.trainer_needs(LoraConfig())
    task = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_calls=1)(_outside_the_engine)
    with boundary(TrainingError, f"answering with {subject.trial.label}"):
        ray.get(task.remote(subject, desk, limits, math.ceil(needs.cpus)))


def _outside_the_engine(subject: Subject, desk: Desk, limits: ParityConfig, threads: int) -> None:
    records = desk.unseen(subject.trial)
    with TemporaryDirectory(prefix="flywheel-") as temporary:
        adapter = subject.folder.download("adapter", Path(temporary)) if subject.adapted else None
        gate.remember(subject.trial, subject.folder, records, adapter, limits, threads)
