"""From an experiment to its trials: each candidate, by each method, at each point of its spaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flywheel import adaptive, search
from flywheel.config import LEARNING, CandidateConfig, Experiment, IclConfig, TrainerConfig
from flywheel.errors import ConfigError
from flywheel.scoring import chosen, references
from flywheel.spaces import Searched, extremes
from flywheel.types import Json, Trial

SCHEDULED_VALIDATIONS = 9
"""Validations of a training where a scheduler goes by them and the experiment says nothing else."""
MAX_PROMPT_BYTES = 100_000
_LENGTHS = ("max_train_records", "epochs", "steps")
"""Fields of a trainer that decide how long it takes."""


def plan(experiment: Experiment, fingerprint: str) -> list[Trial]:
    """The trials known before any has ended, in the order of candidates, methods and points.

    What Optuna is to suggest is not among them; two points that come to the same are one trial.

    Raises:
        ConfigError: A system prompt or a ground-truth file cannot be read, or a metric is none.
    """
    found = [
        of(experiment, candidate, method, point, fingerprint)
        for candidate in experiment.candidates
        for method in experiment.methods.chosen
        if candidate.can_try(method) and not (method == "lora" and guided(experiment))
        for point in _points(experiment, method)
    ]
    return list({trial.key: trial for trial in found}.values())


def guided(experiment: Experiment) -> bool:
    """Whether fine-tunings are suggested one by one, each by those before."""
    lora = experiment.methods.lora
    return lora is not None and search.guided(lora, experiment.search.algorithm)


def suggestions(experiment: Experiment) -> int:
    """How many fine-tunings Optuna is to suggest, for all candidates together."""
    able = sum(candidate.can_try("lora") for candidate in experiment.candidates)
    return experiment.search.samples * able if guided(experiment) else 0


def longest(experiment: Experiment, fingerprint: str) -> list[Trial]:
    """Stand-ins for the fine-tunings to be suggested: for each the longest that there may be."""
    lora = experiment.methods.lora
    if lora is None or not guided(experiment):
        return []
    point = next(search.points(lora, "random", 1, experiment.seed))
    lengths = {name: extremes(getattr(lora, name)) for name in _LENGTHS}
    point |= {name: max(values) for name, values in lengths.items() if None not in values}
    able = [candidate for candidate in experiment.candidates if candidate.can_try("lora")]
    return [
        of(experiment, candidate, "lora", point, fingerprint)
        for candidate in able
        for _ in range(experiment.search.samples)
    ]


def of(
    experiment: Experiment, candidate: CandidateConfig, method: str, point: Json, fingerprint: str
) -> Trial:
    """The trial at one point of a method's spaces.

    Raises:
        ConfigError: Its system prompt cannot be read.
    """
    config = getattr(experiment.methods, method).model_copy(update=point)
    parameters, settings = _chosen(config, candidate)
    if config.system_prompt is not None:
        parameters["prompt"] = Path(config.system_prompt).stem
        settings["system_prompt"] = _prompt(config.system_prompt)
    if method in LEARNING:
        settings["training"]["validations"] = _validations(experiment, config)
    if method == "lora":
        settings["parity"] = experiment.parity.model_dump()
    return Trial(
        candidate=candidate.title,
        model=candidate.model,
        method=method,
        parameters=parameters,
        dataset=fingerprint,
        seed=experiment.seed,
        settings={**_serving(experiment, candidate), **settings},
    )


def _points(experiment: Experiment, method: str) -> Iterator[Json]:
    config, how = getattr(experiment.methods, method), experiment.search
    return search.points(config, how.algorithm, how.samples, experiment.seed)


def _chosen(config: Searched, candidate: CandidateConfig) -> tuple[Json, Json]:
    """Parameters and settings: what tells trials apart for people, and what else decides.

    Neither depends on what the file searches: the same trial of another file has the same key.
    """
    if isinstance(config, IclConfig):
        return _icl_choice(config, "system" if candidate.remote else "turns")
    if isinstance(config, TrainerConfig):
        return _trained_choice(config)
    return {}, {}


def _icl_choice(config: IclConfig, style: str) -> tuple[Json, Json]:
    """Of what is rarely changed, people see what is not the default."""
    selection, ratio, order = config.selection, config.relevance_ratio, config.order
    if selection == "semantic_similarity" and config.embedding_model is None:
        selection = "lexical"
    parameters: Json = {"examples": config.examples}
    if selection != "semantic_similarity":
        parameters["selection"] = selection
    if ratio != 1 and selection != "uniform_distribution":
        parameters["relevance_ratio"] = ratio
    if order != "nearest_last":
        parameters["order"] = order
    semantic = selection == "semantic_similarity"
    return parameters, {
        "style": style,
        "embedding_model": config.embedding_model if semantic else None,
        "min_examples": config.min_examples,
        "max_context_tokens": config.max_context_tokens,
    }


def _trained_choice(config: TrainerConfig) -> tuple[Json, Json]:
    """People see rank, rate, length, and what else can be searched and is not the default."""
    values = config.model_dump(exclude={"cpus", "gpus", "accelerator", "system_prompt"})
    default = type(config)().model_dump()
    length = "epochs" if values["steps"] is None else "steps"
    changed = [n for n in config.searchable() if n in values and values[n] != default[n]]
    shown = [n for n in ("rank", "learning_rate", length) if n in values]
    parameters = {name: values.pop(name) for name in dict.fromkeys([*shown, *changed])}
    return parameters, {"training": values}


def _validations(experiment: Experiment, config: TrainerConfig) -> int:
    """How often to validate; a scheduler decides at validations, so it gets more of them."""
    default: int = TrainerConfig.model_fields["validations"].default
    scheduled = experiment.search.scheduler.kind != "none" and config.validations == default
    return SCHEDULED_VALIDATIONS if scheduled else config.validations


def _prompt(path: str) -> str:
    """The text of a system prompt's file; trials carry it to wherever they run."""
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"system_prompt: {path} cannot be read ({error})") from None
    if not text or len(data) > MAX_PROMPT_BYTES:
        allowed = f"allowed: 1 to {MAX_PROMPT_BYTES:,} bytes"
        raise ConfigError(f"system_prompt: {path} has {len(data):,} bytes; {allowed}")
    return text


def _serving(experiment: Experiment, candidate: CandidateConfig) -> Json:
    """What decides a candidate's answers and scores besides method and data."""
    kept = {"endpoint", "engine", "tool_parser", "concurrency", "timeout_s"}
    stopping = adaptive.rule(experiment)  # nothing where it is off: keys stay what they were
    sampling = experiment.model_dump(include={"sampling"})
    scored = {"scoring": _scoring(experiment)}
    sure = experiment.cascades is not None and experiment.cascades.logprobs
    extra: Json = {"logprobs": {"logprobs": True}} if sure else {}
    return {**candidate.model_dump(include=kept), **sampling, **scored, **stopping, **extra}


def _scoring(experiment: Experiment) -> Json:
    """What decides scores: of what is left at its default nothing, so that keys stay."""
    config = experiment.scoring
    rule: Json = {"call_order": config.call_order}
    if config.metrics is not None:
        rule["metrics"] = chosen.asked(config.metrics)
    if config.references is not None:
        rule["references"] = references.read(config.references, experiment.dataset.masking).identity
    return rule
