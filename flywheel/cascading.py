"""The cascades of a run: of each trial that has answered val and eval, what `cascades` makes.

They are rows of the leaderboard and no trials: nothing is asked for them, nothing spent. What each
rests on lies in ``cascades/<key>/`` as a trial's does: ``completions/``, ``scores/``,
``result.json``; and, which a trial has not, ``handed_over.jsonl``: the records that production
answered, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress

from flywheel import cascades, costs, folders, inference
from flywheel.cascades import Answered, Rule
from flywheel.config import Experiment
from flywheel.folders import Desk
from flywheel.scoring import METRICS, misses_by_kind
from flywheel.statistics import Groups, conversations, estimates, percentile
from flywheel.storage import Storage
from flywheel.types import Completion, Cost, Json, Latency, Record, Score, Trial, TrialResult

_HANDED_OVER = "handed_over.jsonl"


@dataclass(frozen=True, slots=True)
class Cascade:
    """A row of the leaderboard, and what it rests on."""

    result: TrialResult
    scores: list[Score]
    completions: list[Completion]
    """The model's own where they stand, production's where it hands over."""
    handed_over: Mapping[str, str]
    """Why, by the record that production answers."""


@dataclass(frozen=True, slots=True)
class Production:
    """What is known of the model that cascades hand over to."""

    cost: Cost
    scores: Mapping[str, Sequence[Score]]
    """By record, of production asked again; empty where it was not, as its logged answers are right
    by definition."""
    completions: Mapping[str, Completion]


class Cascades:
    """Makes the cascades of one run."""

    def __init__(
        self, experiment: Experiment, desk: Desk, metric: str, groups: Groups, cost: Cost
    ) -> None:
        """Take what all cascades share.

        Args:
            experiment: One with a section ``cascades``.
            desk: Where its trials worked.
            metric: What the board is ranked by.
            groups: Eval records that belong together.
            cost: Production's.
        """
        self.experiment, self.desk, self.metric = experiment, desk, metric
        self.groups, self.cost = groups, cost
        self.notes: list[str] = []
        """Why there is no cascade where one could be expected, one sentence each."""

    def of(self, results: Sequence[TrialResult]) -> list[Cascade]:
        """The cascades of these trials, written down; trials that cannot begin one are left."""
        if self.metric not in METRICS:
            self.notes.append(f"no cascades: {self.metric} is not told by a program")
            return []
        production = self._production(results)
        found = [self._cascade(r, production) for r in results if self._can_begin(r)]
        made = [cascade for cascade in found if cascade]
        for cascade in made:
            _write(self.desk.of(cascade.result), cascade)
        return made

    def _can_begin(self, result: TrialResult) -> bool:
        folder = self.desk.folder(result.trial)
        whole = result.status == "succeeded" and not folders.read_stop(folder)
        borne = result.load is None or result.load.borne is not None
        mine = result.trial.candidate == self.experiment.ranking.baseline
        return whole and borne and not mine and folder.exists("val.json")

    def _production(self, results: Sequence[TrialResult]) -> Production:
        wanted = (self.experiment.ranking.baseline, "base")
        for result in results:
            if (result.trial.candidate, result.trial.method) == wanted:
                folder, told = self.desk.folder(result.trial), dict[str, list[Score]]()
                for score in folders.read_scores(folder):
                    if score.metric in METRICS:
                        told.setdefault(score.record_id, []).append(score)
                answers = inference.read(folder.at("completions"))
                return Production(self.cost, told, {c.record_id: c for c in answers})
        return Production(self.cost, {}, {})

    def _cascade(self, result: TrialResult, production: Production) -> Cascade | None:
        trial, ranking = result.trial, self.experiment.ranking
        val = self._answered(trial, "val", "val")
        groups = conversations([a.record for a in val], self.experiment.dataset.group_by)
        order = self.experiment.scoring.call_order
        rule = cascades.choose(val, self.metric, order, ranking.margin, groups) if val else None
        if rule is None:
            self.notes.append(
                f"no cascade of {trial.label}: on {len(val)} validation records none is within the "
                "margin that keeps some answers"
            )
            return None
        answered = self._answered(trial, "eval", "completions")
        if not any(map(rule.reason, answered)):
            self.notes.append(f"no cascade of {trial.label}: it would hand over nothing")
            return None
        return self._made(result, rule, answered, production)

    def _answered(self, trial: Trial, split: str, folder: str) -> list[Answered]:
        answers = inference.read(self.desk.folder(trial).at(folder))
        by_id = {completion.record_id: completion for completion in answers}
        records = [r for r in self.desk.records(trial, split) if r.id in by_id]
        return [Answered.of(record, by_id[record.id]) for record in records]

    def _made(
        self, result: TrialResult, rule: Rule, answered: list[Answered], production: Production
    ) -> Cascade:
        reasons = [rule.reason(one) for one in answered]
        handed = [one.record for one in compress(answered, reasons)]
        scores = [
            score
            for one, why in zip(answered, reasons, strict=True)
            for score in self._scores(one, why, production)
        ]
        completions = [
            _completion(one, production) if why else one.completion
            for one, why in zip(answered, reasons, strict=True)
        ]
        told: Json = {
            **rule.to_json(),
            "of": result.key,
            "of_label": result.trial.label,
            "handed_over": len(handed) / len(answered),
            "reasons": dict(sorted(Counter(filter(None, reasons)).items())),
            "latency_known": bool(production.completions),
        }
        price = self.experiment.production.price
        own = result.cost or costs.NO_PRICE
        cost = costs.cascade_cost(own, handed, len(answered), price, production.cost)
        return Cascade(
            TrialResult(
                _named(result.trial, rule),
                "succeeded",
                metrics=estimates(scores, self.groups),
                latency=_latency(result, completions) if told["latency_known"] else None,
                cost=costs.compared(cost, production.cost, own.training_dollars),
                provenance=result.provenance,
                misses=misses_by_kind(scores),
                cascade=told,
            ),
            scores,
            completions,
            {one.record.id: why for one, why in zip(answered, reasons, strict=True) if why},
        )

    def _scores(self, one: Answered, why: str, production: Production) -> Sequence[Score]:
        if why and production.scores:
            return production.scores.get(one.record.id, [])
        return cascades.scores(one, bool(why), self.experiment.scoring.call_order)


def read_handed_over(folder: Storage) -> dict[str, str]:
    """Why, by the record that production answered; nothing in a trial's folder."""
    if not folder.exists(_HANDED_OVER):
        return {}
    return {row["record_id"]: row["reason"] for row in folder.read_lines(_HANDED_OVER)}


def _write(folder: Storage, cascade: Cascade) -> None:
    folder.at("completions").write_lines("00000.jsonl", map(asdict, cascade.completions))
    folder.at("scores").write_lines(folders.PROGRAMMATIC, map(asdict, cascade.scores))
    handed = cascade.handed_over.items()
    folder.write_lines(_HANDED_OVER, [{"record_id": r, "reason": why} for r, why in handed])
    folder.write_json("result.json", cascade.result.to_json())


def _named(trial: Trial, rule: Rule) -> Trial:
    """What a board and its pairs call the cascade by."""
    sure = {} if rule.threshold is None else {"logprob": round(rule.threshold, 4)}
    of = trial.label.removeprefix(f"{trial.candidate} ")
    settings = {"of": trial.key, "threshold": rule.threshold}
    return replace(trial, method="cascade", parameters={"of": of, **sure}, settings=settings)


def _completion(one: Answered, production: Production) -> Completion:
    """Production's answer, after the time that the model took."""
    logged = _logged(one.record)
    again = production.completions.get(one.record.id, logged)
    return replace(again, latency_s=one.completion.latency_s + again.latency_s)


def _logged(record: Record) -> Completion:
    return Completion(record.id, record.answer)


def _latency(result: TrialResult, completions: Sequence[Completion]) -> Latency | None:
    """Percentiles of what callers wait; throughput is that of the model, which is asked all."""
    seconds = [c.latency_s for c in completions if not c.error]
    if result.latency is None or not seconds:
        return None
    return replace(result.latency, p50_s=percentile(seconds, 50), p95_s=percentile(seconds, 95))
