"""What is checked before anything is spent: whether a run can end well.

First the request, with nothing but the cluster there (`check`), which may have to grow for it;
then, once the dataset is known, what holds only for its records. What cannot end well is refused in
a sentence; what the user should know all the same comes back as warnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel import arrivals, config, judging, models, nodes, planning
from flywheel.cluster import Cluster
from flywheel.config import CandidateConfig, Experiment, LoraConfig, ModelConfig
from flywheel.errors import ConfigError, RequestError
from flywheel.scoring import References, chosen, references
from flywheel.serving import options
from flywheel.spaces import extremes
from flywheel.statistics import Power, plan
from flywheel.storage import Storage
from flywheel.types import Record


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that can be met."""

    cluster: Cluster
    """As it is now that the nodes have come which the run waited for."""
    warnings: list[str]
    references: References | None
    """What is right, where a ground-truth file says it."""


def check(
    experiment: Experiment,
    cluster: Cluster,
    storage: Storage,
    show: arrivals.Show,
    *,
    accepted: bool = False,
) -> Passed:
    """Refuse what cannot end well: no room, no weights, no key.

    Args:
        experiment: The request.
        cluster: The nodes that are up.
        storage: Where the run is to be kept.
        show: Shows how waiting for nodes goes on.
        accepted: Whether the same request passed before, with the same packages: vLLM takes seconds
            to import, and would say of the engines' arguments what it said then.

    Raises:
        FlywheelError: Says what is missing.
    """
    warnings = nodes.check(cluster, storage)
    require_power(experiment, experiment.dataset.eval_size)
    judging.check_prompts([judge.prompt for judge in judging.judges(experiment)])
    for model in [*experiment.candidates, *experiment.judges]:
        if model.remote:
            config.secret(model.api_key_env)
            if isinstance(model, CandidateConfig):  # workers ask them, the pipeline asks judges
                cluster.require_key(model.api_key_env)
        else:
            models.available(model.model)
    if not accepted:
        options.check(config.engines(experiment))
    planning.plan(experiment, "")  # reads what it names
    found = _check_scoring(experiment, cluster)
    icl = experiment.methods.icl
    if icl and icl.semantic and icl.embedding_model:
        models.available(icl.embedding_model)
    if experiment.methods.full and not storage.local:
        raise ConfigError(
            f"storage: {storage.url}: engines load fully fine-tuned models from "
            "a folder; name one that every node reaches"
        )
    arrived = arrivals.await_nodes(experiment, cluster, show)
    if arrived is not cluster:
        warnings = nodes.check(arrived, storage)
    _check_room(experiment, arrived)
    return Passed(arrived, warnings, found)


def power(experiment: Experiment, records: int) -> Power:
    """What a run of so many eval records can show."""
    ranking = experiment.ranking
    again = ranking.baseline is not None or experiment.scoring.references is not None
    return plan(records, ranking.margin, ranking.expected_disagreement, asked_again=again)


def power_warning(experiment: Experiment, power: Power) -> list[str]:
    """What the experiment wants to be told of its power: a sentence, or nothing."""
    wanted = experiment.ranking.underpowered == "warn" and not power.enough
    return [power.sentence] if wanted else []


def require_power(experiment: Experiment, records: int) -> Power:
    """What so many eval records can show.

    Raises:
        RequestError: It is too little, and the experiment wishes that to be refused.
    """
    found = power(experiment, records)
    if not found.enough and experiment.ranking.underpowered == "refuse":
        raise RequestError(f"ranking.underpowered is refuse, and {found.sentence}")
    return found


def require_references(
    experiment: Experiment, references: References, records: Sequence[Record], fingerprint: str
) -> list[str]:
    """See that what is expected is expected of these eval records, and warn where of some only.

    Raises:
        RequestError: The ground-truth file is about other records.
    """
    known = sum(record.id in references.messages for record in records)
    where = f"scoring.references: {experiment.scoring.references} names"
    if not known:
        raise RequestError(
            f"{where} none of the {len(records)} eval records of dataset "
            f"{fingerprint}, such as {records[0].id}"
        )
    if known < len(records):
        return [f"{where} {known} of {len(records)} eval records; the others stay unscored"]
    return []


def _check_scoring(experiment: Experiment, cluster: Cluster) -> References | None:
    """Refuse metrics that cannot work, and read what is expected."""
    scoring, masking = experiment.scoring, experiment.dataset.masking
    asked = chosen.asked(scoring.metrics or [])
    for model in chosen.models(asked):
        models.available(model)
    cluster.require_metrics(chosen.own(asked))
    return None if scoring.references is None else references.read(scoring.references, masking)


def _check_room(experiment: Experiment, cluster: Cluster) -> None:
    """Refuse engines and trainers that fit on no node."""
    for model in [*experiment.candidates, *experiment.judges]:
        if not model.remote:
            _check_engine(experiment, cluster, model)
    if experiment.methods.lora:
        _check_trainers(experiment, cluster, experiment.methods.lora)
    if experiment.methods.full:
        needs = cluster.trainer_needs(experiment.methods.full)
        cluster.require(needs, "a trainer of whole models")


def _check_engine(experiment: Experiment, cluster: Cluster, model: ModelConfig) -> None:
    needs, what = cluster.engine_needs(model), f"the engine of {model.model}"
    cluster.require(needs, what, model.min_replicas)
    size, lora = models.size(model.model), experiment.methods.lora
    if size is None or model.engine.get("quantization"):
        return  # what quantised weights take is vLLM's to know
    rank = max(map(int, extremes(lora.rank))) if lora else 0
    parts = size.engine(model.engine.get("max_model_len"), int(lora is not None), rank)
    cluster.require_memory(needs, parts, what)


def _check_trainers(experiment: Experiment, cluster: Cluster, lora: LoraConfig) -> None:
    needs = cluster.trainer_needs(lora)
    cluster.require(needs, "a LoRA trainer")
    for candidate in experiment.candidates:
        size = models.size(candidate.model) if candidate.can_try("lora") else None
        if size is not None:
            parts = size.trainer(max(map(int, extremes(lora.rank))))
            cluster.require_memory(needs, parts, f"a LoRA trainer of {candidate.title}")
