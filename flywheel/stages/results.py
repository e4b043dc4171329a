"""The fourth stage: what each trial came to, put together from its folder as ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel import costs, folders, loadtest, reuse
from flywheel.config import Experiment, LatencyConfig, SloConfig
from flywheel.inference import read as read_completions
from flywheel.scoring import References, classes, misses_by_kind
from flywheel.stages.session import Session
from flywheel.statistics import Groups, Power, estimates
from flywheel.storage import Storage
from flywheel.types import Cost, Json, Trial, TrialResult


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the trials of a run are held against."""

    groups: Groups
    """Eval records of one conversation."""
    power: Power
    """What so many eval records can show."""
    production: Cost
    """What production costs today."""
    references: References | None
    """What is right, where a ground-truth file says it."""


def collect(session: Session, yardstick: Yardstick, trial: Trial) -> TrialResult:
    """What a trial came to, written down."""
    folder = session.desk.folder(trial)
    error = folders.failure(folder)
    stop = folders.stopped(folder)
    if stop is not None:
        result = TrialResult(trial, "stopped", _told(stop), provenance=session.provenance)
    elif not folder.exists("answers.json"):
        error = error or "the trial left no answers"
        result = TrialResult(
            trial, "failed", error, parity=_parity(folder), provenance=session.provenance
        )
    else:
        result = _succeeded(session, yardstick, trial, folder)
    folder.write_json("result.json", result.to_json())
    session.monitor.moved(trial, result.status)
    return result


def incomplete(session: Session, results: Sequence[TrialResult]) -> list[str]:
    """A sentence for each trial whose answers stand, though what came after them failed."""
    answered = [result.trial for result in results if result.status == "succeeded"]
    errors = [(trial.label, folders.failure(session.desk.folder(trial))) for trial in answered]
    return [f"{label} was not measured in full: {error}" for label, error in errors if error]


def _succeeded(
    session: Session, yardstick: Yardstick, trial: Trial, folder: Storage
) -> TrialResult:
    experiment = session.experiment
    candidate = experiment.candidate(trial.candidate)
    completions = read_completions(folder.at("completions"))
    latency, wall_s = folders.read_latency(folder)
    reused = {"reused_from": reuse.source(folder)} if reuse.source(folder) else {}
    stop = folders.read_stop(folder)
    stopped = {"stopped": stop} if stop else {}
    trained = folder.exists("training.json")
    training = folder.read_json("training.json") if trained else {}
    scores = folders.read_scores(folder)
    judges = {score.metric: score.judge for score in scores if score.judge}
    wanted = experiment.latency
    load = loadtest.read(folder, wanted, _slo(experiment, wanted)) if wanted else None
    cost = costs.cost_of(candidate, completions, wall_s, load)
    dollars = costs.training_dollars(candidate, training)
    return TrialResult(
        trial,
        "succeeded",
        metrics=estimates(scores, yardstick.groups),
        latency=latency,
        cost=costs.compared(cost, yardstick.production, dollars),
        training=training,
        parity=_parity(folder),
        provenance={**session.provenance, "judges": judges, **reused, **stopped},
        misses=misses_by_kind(scores),
        classes=classes.tables(scores, yardstick.groups),
        load=load,
    )


def _slo(experiment: Experiment, latency: LatencyConfig) -> SloConfig:
    """A limit on the 95th percentile is one on 95 % of the answers."""
    slo, limit = latency.slo, experiment.ranking.max_p95_s
    return slo if slo.total_s else slo.model_copy(update={"total_s": limit})


def _parity(folder: Storage) -> Json:
    found: Json = folder.read_json("parity.json") if folder.exists("parity.json") else {}
    return found


def _told(stop: Json) -> str:
    done = f"{100 * stop['share']:.0f} % of its training"
    return f"by {stop['by']} after {done}, val loss {stop['val_loss']:.3g}"
