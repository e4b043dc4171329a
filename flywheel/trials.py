"""One trial, from its spec to scored completions on disk.

A trial has two steps that never hold resources together: `train` (methods with weights to learn)
and `answer` (ask an endpoint for every eval record, score what programs can score). Each step
writes its marker file last and does nothing when it is there, so a run that was killed goes on.
What lies in a trial's folder: ``spec.json``, ``adapter/`` or ``model/`` and ``training.json``
(before that a checkpoint), ``reference.json`` and ``parity.json``, ``completions/`` and ``scores/``
and ``answers.json``, ``failed.json`` where a step failed, ``result.json`` last.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from flywheel import adaptive, costs, curation, gate, inference, models, scoring
from flywheel.config import (
    CandidateConfig,
    Experiment,
    FullConfig,
    IclConfig,
    LoraConfig,
    ParityConfig,
    as_list,
)
from flywheel.errors import EngineError, FlywheelError, TrialStoppedError
from flywheel.inference import Ask
from flywheel.methods import base, icl
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.types import Json, Latency, Record, Score, Trial

PROGRAMMATIC = "programmatic.jsonl"
DEFAULT_MAX_TOKENS = 512
"""Answer tokens where neither the experiment nor the logged request sets a limit."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a run's trials work: the experiment's storage and the run's id. Picklable."""

    storage: Storage
    run_id: str

    @property
    def run(self) -> Storage:
        """The run's folder."""
        return self.storage.at("runs", self.run_id)

    @property
    def trials(self) -> Storage:
        """The folder of all trials."""
        return self.run.at("trials")

    def folder(self, trial: Trial) -> Storage:
        """One trial's folder."""
        return self.trials.at(trial.key)

    def records(self, trial: Trial, split: str) -> list[Record]:
        """A split of the trial's dataset."""
        return curation.load_split(self.storage, trial.dataset, split)

    def unseen(self, trial: Trial) -> list[Record]:
        """What parity is checked on: the validation split, or the train split if it is empty."""
        return self.records(trial, "val") or self.records(trial, "train")


def plan(experiment: Experiment, fingerprint: str) -> list[Trial]:
    """All trials of an experiment, in the order of candidates, methods and grids."""
    trials = []
    for candidate in experiment.candidates:
        for method, parameters, settings in _variants(experiment, candidate):
            trials.append(
                Trial(
                    candidate=candidate.title,
                    model=candidate.model,
                    method=method,
                    parameters=parameters,
                    dataset=fingerprint,
                    seed=experiment.seed,
                    settings={**_serving(experiment, candidate), **settings},
                )
            )
    return trials


def train(trial: Trial, desk: Desk, threads: int, progress: Progress) -> None:
    """Fine-tune the trial's weights and put them into the run's storage.

    A training that was killed goes on from its last checkpoint in the trial's folder.

    Raises:
        TrainingError: See `flywheel.methods.lora.train` and `flywheel.methods.full.train`.
        TrialStoppedError: ``progress`` ended the trial.
        ModelNotFoundError: The base model is nowhere to be had.
    """
    from flywheel.methods import checkpoints, full, lora

    folder = desk.folder(trial)
    if folder.exists("training.json"):
        return
    parameters = {**trial.settings["training"], **trial.parameters, "base_model": trial.model}
    with tempfile.TemporaryDirectory(prefix="flywheel-") as temporary:
        trainer = lora if trial.method == "lora" else full
        try:
            summary = trainer.train(
                models.fetch(trial.model),
                desk.records(trial, "train"),
                desk.records(trial, "val"),
                parameters,
                trial.seed,
                Path(temporary),
                threads,
                progress=lambda done, total, val_loss: progress(done, total),
                checkpoints=folder,
            )
        except TrialStoppedError:
            folder.remove(checkpoints.NAME)  # nobody goes on from it
            raise
        folder.upload(Path(temporary), trainer.FOLDER)
        if trial.method == "lora":
            unseen = desk.unseen(trial)
            gate.remember(trial, folder, unseen, Path(temporary), _limits(trial), threads)
    folder.write_json("training.json", summary)
    folder.remove(checkpoints.NAME)


def answer(trial: Trial, desk: Desk, endpoint: Endpoint, progress: Progress) -> None:
    """Ask for every eval record's answer, score what programs can score, measure latency.

    Raises:
        EngineError: Not one request was answered, so there is nothing to compare.
        ParityError: The endpoint does not serve what was trained.
    """
    folder = desk.folder(trial)
    if folder.exists("answers.json"):
        return
    if folder.exists("training.json") and trial.method == "lora":
        gate.require(trial, folder, desk.unseen(trial), endpoint, _limits(trial))
    settings = trial.settings
    records, answers, told = _ask(trial, desk, endpoint, progress)
    if all(completion.error for completion in answers.completions):
        first = answers.completions[0].error
        raise EngineError(f"none of {len(records)} requests was answered; the first: {first}")
    pairs = zip(records, answers.completions, strict=True)
    order = settings["scoring"]["call_order"]
    scores = [score for record, got in pairs for score in scoring.score(record, got, order)]
    folder.at("scores").write_lines(PROGRAMMATIC, [asdict(score) for score in scores])
    wall = answers.wall_s * len(records) / answers.asked if answers.asked else _busy(answers, trial)
    latency = costs.latency_of(answers.completions, wall, settings["concurrency"])
    measured = asdict(latency) if latency else None
    folder.write_json("answers.json", {"wall_s": wall, "latency": measured, **told})


def read_scores(folder: Storage) -> list[Score]:
    """All scores a trial has so far."""
    scores = folder.at("scores")
    rows = (row for name in scores.names(".jsonl") for row in scores.read_lines(name))
    return [Score.from_row(row) for row in rows]


def read_latency(folder: Storage) -> tuple[Latency | None, float]:
    """A trial's latency (none when no request was answered), and the seconds it asked for."""
    data = folder.read_json("answers.json")
    return Latency(**data["latency"]) if data["latency"] else None, data["wall_s"]


def read_stop(folder: Storage) -> Json:
    """How many records a trial stopped early was ``asked``, ``of`` how many; else nothing."""
    stopped: Json = folder.read_json("answers.json").get("stopped", {})
    return stopped


def write_failure(folder: Storage, error: BaseException) -> None:
    """Leave word of why a trial failed, in one bounded sentence."""
    kind = "" if isinstance(error, FlywheelError) else f"{type(error).__name__}: "
    folder.write_json("failed.json", {"error": f"{kind}{error}"[:2000]})


def failure(folder: Storage) -> str:
    """Why a trial failed, or the empty string."""
    return str(folder.read_json("failed.json")["error"]) if folder.exists("failed.json") else ""


def _limits(trial: Trial) -> ParityConfig:
    return ParityConfig(**trial.settings["parity"])


def _variants(experiment: Experiment, candidate: CandidateConfig) -> list[tuple[str, Json, Json]]:
    """Method, parameters and settings of each of a candidate's trials."""
    methods = experiment.methods
    variants: list[tuple[str, Json, Json]] = []
    if methods.base and candidate.can_try("base"):
        variants.append(("base", {}, {}))
    if methods.icl and candidate.can_try("icl"):
        style = "system" if candidate.remote else "turns"
        variants += [("icl", *point) for point in _icl_variants(methods.icl, style)]
    if methods.lora and candidate.can_try("lora"):
        parity = {"parity": experiment.parity.model_dump()}
        for point in _grid(methods.lora):
            parameters, settings = _trained_variant(point)
            variants.append(("lora", parameters, {**settings, **parity}))
    if methods.full and candidate.can_try("full"):
        variants += [("full", *_trained_variant(point)) for point in _grid(methods.full)]
    return variants


def _icl_variants(config: IclConfig, style: str) -> Iterator[tuple[Json, Json]]:
    """Parameters and settings; a ratio is a parameter where it is not the plain nearest."""
    semantic = config.chosen_by == "semantic_similarity"
    settings = {
        "style": style,
        "selection": config.chosen_by,
        "embedding_model": config.embedding_model if semantic else None,
        "min_examples": config.min_examples,
        "max_context_tokens": config.max_context_tokens,
    }
    for examples, ratio in itertools.product(
        as_list(config.examples), as_list(config.relevance_ratio)
    ):
        relevance = {"relevance_ratio": ratio} if ratio < 1 else {}
        yield {"examples": examples, **relevance}, settings


def _grid(config: LoraConfig | FullConfig) -> list[Json]:
    values = config.model_dump(exclude={"cpus", "gpus"})
    lists = [as_list(value) for value in values.values()]
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*lists)]


def _trained_variant(point: Json) -> tuple[Json, Json]:
    """Rank, rate and epochs tell trained trials apart for people; the rest are settings."""
    length = "epochs" if point["steps"] is None else "steps"
    names = [name for name in ("rank", "learning_rate", length) if name in point]
    rest = {name: value for name, value in point.items() if name not in names}
    return {name: point[name] for name in names}, {"training": rest}


def _serving(experiment: Experiment, candidate: CandidateConfig) -> Json:
    """What decides a candidate's answers and scores besides method and data."""
    kept = {"endpoint", "engine", "tool_parser", "concurrency", "timeout_s"}
    stopping = adaptive.rule(experiment)  # nothing where it is off: keys stay what they were
    whole = experiment.model_dump(include={"sampling", "scoring"})
    return {**candidate.model_dump(include=kept), **whole, **stopping}


def _ask(
    trial: Trial, desk: Desk, endpoint: Endpoint, progress: Progress
) -> tuple[list[Record], inference.Answers, Json]:
    """The records that were asked, all or as many as it took, their answers, and what to tell."""
    records, settings = desk.records(trial, "eval"), trial.settings
    rule, rounds = settings.get("adaptive"), [len(records)]
    if rule:
        records, rounds = adaptive.order(records, rule, settings["concurrency"])
    asks, told = _asks(trial, desk, records)
    answers = inference.Answers([], 0.0, 0)
    for upto in rounds:
        more = inference.answer_all(
            endpoint,
            asks[:upto],
            desk.folder(trial).at("completions"),
            settings["concurrency"],
            settings["timeout_s"],
            lambda done, _: progress(done, len(asks)),
            cache=desk.storage.at("responses"),
        )
        answers = answers.then(more)
        if rule and upto < len(asks) and adaptive.stops(rule, records, answers.completions):
            told["stopped"] = {"asked": upto, "of": len(asks)}
            return records[:upto], answers, told
    return records, answers, told


def _asks(trial: Trial, desk: Desk, records: Sequence[Record]) -> tuple[list[Ask], Json]:
    """What to ask, and what there is to tell of how it came about."""
    told: Json = {}
    if trial.method == "icl":
        bodies, told["icl"] = _few_shot(trial, desk, records)
    else:
        bodies = [base.request(record) for record in records]
    sampling = trial.settings["sampling"]
    asks = [Ask(r.id, _sampled(b, sampling)) for r, b in zip(records, bodies, strict=True)]
    return asks, told


def _few_shot(trial: Trial, desk: Desk, records: Sequence[Record]) -> tuple[list[Json], Json]:
    settings = trial.settings
    names = ("selection", "style", "min_examples")
    rule = icl.Rule(**trial.parameters, **{name: settings[name] for name in names})
    pool = icl.Pool.read(desk.storage.at("datasets", trial.dataset))
    budget = _budget(trial)
    reserved = [_answer_tokens(base.request(record), settings["sampling"]) for record in records]
    orders = icl.orders(records, pool, rule, trial.seed, partial(_embed, trial, desk))
    chosen = icl.choose(records, pool, rule, orders, budget, reserved)
    bodies = [icl.request(r, e, rule.style) for r, e in zip(records, chosen, strict=True)]
    return bodies, icl.account(chosen, rule, budget)


def _budget(trial: Trial) -> icl.Budget:
    most = trial.settings["max_context_tokens"]
    if trial.settings["endpoint"]:
        return icl.of_endpoint(most)
    return icl.of_weights(models.fetch(trial.model), trial.settings["engine"], most)


def _embed(trial: Trial, desk: Desk, texts: Sequence[str]) -> icl.Vectors:
    model = trial.settings["embedding_model"]
    return icl.embed(texts, model, models.fetch(model), desk.storage)


def _sampled(body: Json, sampling: Json) -> Json:
    limit = _answer_tokens(body, sampling)
    return {**body, "temperature": sampling["temperature"], "max_tokens": limit}


def _answer_tokens(body: Json, sampling: Json) -> int:
    limit: int = sampling["max_tokens"] or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    return limit


def _busy(answers: inference.Answers, trial: Trial) -> float:
    """Seconds for answers that an earlier, killed session got, had it kept all places busy."""
    places: int = min(trial.settings["concurrency"], len(answers.completions))
    return sum(completion.latency_s for completion in answers.completions) / places
