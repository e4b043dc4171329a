"""One trial, from its spec to scored completions on disk.

A trial has two steps that never hold resources together: `train` (methods with weights to learn)
and `answer` (ask an endpoint for every eval record, score what programs can score). Each step
writes its marker file last and does nothing when it is there, so a run that was killed goes on.
What lies in a trial's folder: `flywheel.folders`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from flywheel import adaptive, costs, gate, inference, models, scoring
from flywheel.config import (
    ParityConfig,
)
from flywheel.datasets.training import training_rows
from flywheel.errors import EngineError, StorageError, TrialStoppedError
from flywheel.folders import PROGRAMMATIC, REFERENCES, Desk, stopped
from flywheel.inference import Ask
from flywheel.methods import base, icl
from flywheel.scoring import References, Scorer
from flywheel.serving import Endpoint
from flywheel.types import Completion, Json, Record, Score, Trial

DEFAULT_MAX_TOKENS = 512
"""Answer tokens where neither the experiment nor the logged request sets a limit."""


class Progress(Protocol):
    """Told how far a step is."""

    def __call__(self, done: int, total: int, val_loss: float | None = None, /) -> None:
        """Steps or records done, in all, and the latest validation loss of a training."""


def train(trial: Trial, desk: Desk, threads: int, progress: Progress) -> None:
    """Fine-tune the trial's weights and put them into the run's storage.

    A training that was killed goes on from its last checkpoint in the trial's folder.

    Args:
        trial: One of a method with weights to learn.
        desk: Where it works.
        threads: CPU threads to compute with.
        progress: Told after each step, and of the last when all is saved; may raise
            `TrialStoppedError`.

    Raises:
        TrainingError: See `flywheel.methods.lora.train` and `flywheel.methods.full.train`.
        TrialStoppedError: ``progress`` ended the trial.
        ModelNotFoundError: The base model is nowhere to be had.
    """
    from flywheel.methods import checkpoints, full, lora, ranks

    folder = desk.folder(trial)
    if folder.exists("training.json"):
        return
    parameters = {**trial.settings["training"], **trial.parameters, "base_model": trial.model}
    pool = icl.Pool.read(desk.storage.at("datasets", trial.dataset))
    rows = training_rows(pool.classes, parameters["max_train_records"], parameters["class_balance"])
    with tempfile.TemporaryDirectory(prefix="flywheel-") as temporary:
        trainer = lora if trial.method == "lora" else full
        learn = partial(
            trainer.train,
            models.fetch(trial.model),
            prompted(trial, [pool.records[row] for row in rows]),
            prompted(trial, desk.records(trial, "val")),
            parameters,
            trial.seed,
            Path(temporary),
            threads,
            checkpoints=folder,
        )
        try:
            with ranks.helped(learn, ranks.devices()):
                summary = learn(progress=partial(_before_the_end, progress))
        except TrialStoppedError:
            folder.remove(checkpoints.NAME)  # nobody goes on from it
            raise
        folder.upload(Path(temporary), trainer.FOLDER)
        if trial.method == "lora":
            records = unseen(trial, desk)
            outside = gate.outside(trial, threads)
            gate.remember(trial, folder, records, Path(temporary), _limits(trial), outside)
    if stopped(folder) is not None:  # before this trainer heard of it
        folder.remove(checkpoints.NAME)
        raise TrialStoppedError("others of this search do better")
    folder.write_json("training.json", summary)
    folder.remove(checkpoints.NAME)
    progress(summary["steps"], summary["steps"], summary["val_loss"])


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
        gate.require(trial, folder, unseen(trial, desk), endpoint, _limits(trial))
    settings = trial.settings
    records = desk.records(trial, "eval")
    scorer = _scorer(trial, desk, records)
    records, answers, told = _ask(trial, desk, endpoint, records, scorer, progress)
    if all(completion.error for completion in answers.completions):
        first = answers.completions[0].error
        raise EngineError(f"none of {len(records)} requests was answered; the first: {first}")
    scores = scorer.score_all(records, answers.completions, partial(_embed, desk))
    folder.at("scores").write_lines(PROGRAMMATIC, [asdict(score) for score in scores])
    wall = answers.wall_s * len(records) / answers.asked if answers.asked else _busy(answers, trial)
    latency = costs.latency_of(answers.completions, wall, settings["concurrency"])
    measured = asdict(latency) if latency else None
    folder.write_json("answers.json", {"wall_s": wall, "latency": measured, **told})


def answer_val(trial: Trial, desk: Desk, endpoint: Endpoint, most: int, progress: Progress) -> None:
    """Ask for the answers to validation records, which cascades choose their thresholds by.

    Args:
        trial: One that has answered eval.
        desk: Where it works.
        endpoint: Where to ask.
        most: Records to ask for at most, the first by their ids.
        progress: Told how many have answers.

    Raises:
        EngineError: The endpoint is down.
    """
    folder = desk.folder(trial)
    if folder.exists("val.json"):
        return
    records = desk.records(trial, "val")[:most]
    asks, _ = asks_of(trial, desk, records)
    answers = inference.answer_all(
        endpoint,
        asks,
        folder.at("val"),
        trial.settings["concurrency"],
        trial.settings["timeout_s"],
        progress,
        cache=desk.storage.at("responses"),
    )
    folder.write_json("val.json", {"most": most, "wall_s": answers.wall_s})


def unseen(trial: Trial, desk: Desk) -> list[Record]:
    """What parity is checked on: the validation split, or the train split if it is empty."""
    return prompted(trial, desk.records(trial, "val") or desk.records(trial, "train"))


def prompted(trial: Trial, records: Sequence[Record]) -> list[Record]:
    """The records with the trial's own system prompt, where it has one; ids stay."""
    text = trial.settings.get("system_prompt")
    return [_with_system(record, text) for record in records] if text else list(records)


def production_scores(trial: Trial, desk: Desk) -> list[Score]:
    """How production's logged answers score where a ground-truth file says what is right."""
    records = desk.records(trial, "eval")
    logged = [Completion(record.id, record.answer) for record in records]
    return _scorer(trial, desk, records).score_all(records, logged, partial(_embed, desk))


def _limits(trial: Trial) -> ParityConfig:
    return ParityConfig(**trial.settings["parity"])


def _before_the_end(
    progress: Progress, done: int, total: int, val_loss: float | None = None
) -> None:
    """Pass on all but the last step: what is complete must be saved before a scheduler sees it."""
    if done < total:
        progress(done, total, val_loss)


def _scorer(trial: Trial, desk: Desk, records: Sequence[Record]) -> Scorer:
    """What scores a trial's answers to the eval records."""
    rule, dataset = trial.settings["scoring"], desk.storage.at("datasets", trial.dataset)
    mix = dataset.read_json("manifest.json")["class_mix"] if dataset.exists("manifest.json") else {}
    labels = scoring.answers_labels(mix.get("curated", {}), records)
    truth = _references(desk, rule["references"]) if "references" in rule else None
    return Scorer.of(rule, labels=labels, references=truth)


def _references(desk: Desk, identity: str) -> References:
    found = References.of_rows(desk.run.read_lines(REFERENCES))
    if found.identity != identity:
        raise StorageError(f"{desk.run.url}/{REFERENCES} is not what the run began with; resume it")
    return found


def _ask(
    trial: Trial,
    desk: Desk,
    endpoint: Endpoint,
    records: list[Record],
    scorer: Scorer,
    progress: Progress,
) -> tuple[list[Record], inference.Answers, Json]:
    """The records that were asked, all or as many as it took, their answers, and what to tell."""
    settings = trial.settings
    rule, rounds = settings.get("adaptive"), [len(records)]
    if rule:
        records, rounds = adaptive.order(records, rule, settings["concurrency"])
        deciding = scorer.only(rule["metric"])
    asks, told = asks_of(trial, desk, records)
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
        if rule and upto < len(asks):
            asked = records[:upto]
            scores = deciding.score_all(asked, answers.completions, partial(_embed, desk))
            if adaptive.stops(rule, records, scores):
                told["stopped"] = {"asked": upto, "of": len(asks)}
                return asked, answers, told
    return records, answers, told


def asks_of(trial: Trial, desk: Desk, records: Sequence[Record]) -> tuple[list[Ask], Json]:
    """What to ask for the answers to records, and what there is to tell of how it came about."""
    told: Json = {}
    records = prompted(trial, records)
    if trial.method == "icl":
        bodies, told["icl"] = _few_shot(trial, desk, records)
    else:
        bodies = [base.request(record) for record in records]
    sampling, extra = trial.settings["sampling"], trial.settings.get("logprobs", {})
    pairs = zip(records, bodies, strict=True)
    return [Ask(r.id, {**_sampled(b, sampling), **extra}) for r, b in pairs], told


def _few_shot(trial: Trial, desk: Desk, records: Sequence[Record]) -> tuple[list[Json], Json]:
    settings = trial.settings
    rule = icl.Rule(
        **{"selection": "semantic_similarity", **_without_prompt(trial.parameters)},
        style=settings["style"],
        min_examples=settings["min_examples"],
    )
    pool = icl.Pool.read(desk.storage.at("datasets", trial.dataset))
    budget = _budget(trial)
    reserved = [_answer_tokens(base.request(record), settings["sampling"]) for record in records]
    embed = partial(_embed, desk, model=settings["embedding_model"])
    orders = icl.orders(records, pool, rule, trial.seed, embed)
    chosen = icl.choose(records, pool, rule, orders, budget, reserved)
    bodies = [
        icl.request(r, e, rule.style, rule.order) for r, e in zip(records, chosen, strict=True)
    ]
    return bodies, icl.account(chosen, rule, budget)


def _with_system(record: Record, text: str) -> Record:
    spoken = record.messages
    rest = spoken[1:] if spoken[:1] and spoken[0]["role"] in {"system", "developer"} else spoken
    messages = [{"role": "system", "content": text}, *rest]
    return replace(record, request={**record.request, "messages": messages})


def _without_prompt(parameters: Json) -> Json:
    return {name: value for name, value in parameters.items() if name != "prompt"}


def _budget(trial: Trial) -> icl.Budget:
    most = trial.settings["max_context_tokens"]
    if trial.settings["endpoint"]:
        return icl.of_endpoint(most)
    return icl.of_weights(models.fetch(trial.model), trial.settings["engine"], most)


def _embed(desk: Desk, texts: Sequence[str], model: str) -> icl.Vectors:
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
