"""Judges that sit together: those of one metric, their verdicts combined into one.

``mean`` is the mean value, and needs every judge: a mean over others would be another figure.
``majority`` is 1 where more than half of the judges are at or above the threshold, 0 where more
than half are below; a judge without a verdict is on neither side.

Where programs have the first word (`settling`), judges are asked about the rest alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from flywheel.config import JudgingConfig
from flywheel.judging.judge import Judge
from flywheel.judging.pairs import Pair, pair_of
from flywheel.judging.prompts import PLAIN
from flywheel.judging.settling import METRIC, Programs
from flywheel.judging.verdicts import Verdict
from flywheel.scoring import CONTEXT_LENGTH, too_long
from flywheel.scoring.references import MISSING
from flywheel.statistics import krippendorff_alpha
from flywheel.types import Completion, Json, Record, Score, ScoreStatus, content_hash


@dataclass(frozen=True, slots=True)
class Rating:
    """What the judges make of one pair together."""

    value: float | None
    reason: str
    verdicts: dict[str, Verdict]
    """Of each judge, by its identity; none where a program settled it."""

    @property
    def plain(self) -> float | None:
        """The mean of the scores as they were written; ``None`` where one is missing."""
        if not self.verdicts:
            return self.value
        plain = [v.plain for v in self.verdicts.values() if v.plain is not None]
        return math.fsum(plain) / len(plain) if len(plain) == len(self.verdicts) else None

    def to_json(self) -> Json:
        """For ``verdicts/<metric>.jsonl``."""
        return {
            "value": self.value,
            "plain": self.plain,
            "reason": self.reason,
            "judges": {name: asdict(verdict) for name, verdict in self.verdicts.items()},
        }


@dataclass(frozen=True, slots=True)
class Panel:
    """The judges of one metric, at least one."""

    judges: Sequence[Judge]
    config: JudgingConfig
    programs: Programs | None = None
    """What settles answers that need no judge."""

    @property
    def metric(self) -> str:
        """What they judge."""
        return self.judges[0].metric

    @property
    def identity(self) -> str:
        """That of the only judge, or the hash of all of theirs and how they are combined.

        The rule by which programs settle answers is part of it.
        """
        names = sorted(judge.identity for judge in self.judges)
        judges = names[0] if len(names) == 1 else content_hash([self._combined, *names])
        return content_hash([judges, self.programs.identity]) if self.programs else judges

    @property
    def floor(self) -> float:
        """The strictest of their floors."""
        return max(judge.config.floor for judge in self.judges)

    def ratings(self, pairs: Sequence[Pair]) -> list[Rating]:
        """What they said of these pairs, asking nobody."""
        columns = [judge.verdicts(pairs) for judge in self.judges]
        names = [judge.identity for judge in self.judges]
        return [
            self._combine(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)
        ]

    def pairs(
        self, records: Mapping[str, Record], completions: Iterable[Completion]
    ) -> dict[str, Pair]:
        """What is there for the judges to say, by record id."""
        answers = self._answers(records, completions)
        return {name: pair for name, (pair, settled) in answers.items() if settled is None}

    def score(
        self, records: Mapping[str, Record], completions: Sequence[Completion]
    ) -> tuple[list[Score], list[Json]]:
        """The scores of a trial's completions, in their order, and the verdicts behind them.

        Failed completions stay failed; those of records not given, which nobody knows the right
        answer of, are unscored. Where any value is an expected score, those as written
        follow, in a metric of their own.
        """
        answers = self._answers(records, completions)
        judged = iter(self.ratings([pair for pair, settled in answers.values() if settled is None]))
        rated = {name: settled or next(judged) for name, (_, settled) in answers.items()}
        lost = [c.record_id for c in completions if c.record_id not in records]
        known = [c for c in completions if c.record_id in records]
        due = [c for c in known if self._rates(records[c.record_id])]
        scores = [self._score(c, self.metric, rated.get(c.record_id)) for c in due]
        if any(rating.plain != rating.value for rating in rated.values()) and not self._votes:
            written = {name: Rating(r.plain, r.reason, {}) for name, r in rated.items()}
            scores += [self._score(c, self.metric + PLAIN, written.get(c.record_id)) for c in due]
        unknown = None, ScoreStatus.UNSCORED, MISSING
        scores += [Score(name, self.metric, *unknown, judge=self.identity) for name in lost]
        rows = [
            {"record_id": name, "pair": answers[name][0].key, **rating.to_json()}
            for name, rating in rated.items()
        ]
        return scores, rows

    def alpha(self, rows: Sequence[Json]) -> float | None:
        """How far judges agree beyond chance: Krippendorff's alpha over these verdicts.

        Of values for a mean, of sides for a majority; ``None`` for one judge, or where all agree
        for want of anything to differ in.
        """
        names = [judge.identity for judge in self.judges]
        values = [[row["judges"][name]["value"] for name in names] for row in rows]
        if self._votes:
            values = [[self._side(value) for value in row] for row in values]
        return krippendorff_alpha(values, "nominal" if self._votes else "interval")

    def _answers(
        self, records: Mapping[str, Record], completions: Iterable[Completion]
    ) -> dict[str, tuple[Pair, Rating | None]]:
        """By record id an answer that is due, and what programs make of it if they can."""
        found = {}
        for completion in completions:
            record, message = records.get(completion.record_id), completion.message
            if record is not None and message is not None and self._rates(record):
                pair = pair_of(record, message)
                found[record.id] = pair, self._settled(record, message, pair)
        return found

    def _settled(self, record: Record, message: Json, pair: Pair) -> Rating | None:
        said = self.programs.settle(record, message, pair) if self.programs else None
        return Rating(said.value, said.reason, {}) if said else None

    @property
    def _votes(self) -> bool:
        return len(self.judges) > 1 and self.config.combine == "majority"

    @property
    def _combined(self) -> list[object]:
        return ["majority", self.config.threshold] if self._votes else ["mean"]

    def _rates(self, record: Record) -> bool:
        return self.judges[0].rates(record)

    def _side(self, value: float | None) -> float | None:
        return None if value is None else float(value >= self.config.threshold)

    def _combine(self, verdicts: dict[str, Verdict]) -> Rating:
        values = [v.value for v in verdicts.values() if v.value is not None]
        reason = "; ".join(dict.fromkeys(v.reason for v in verdicts.values() if v.reason))
        if self._votes:
            good = sum(value >= self.config.threshold for value in values)
            for side, count in ((1.0, good), (0.0, len(values) - good)):
                if 2 * count > len(verdicts):
                    return Rating(side, reason, verdicts)
            return Rating(None, reason or "judge: no majority", verdicts)
        if len(values) < len(verdicts):
            return Rating(None, reason, verdicts)
        return Rating(math.fsum(values) / len(values), reason, verdicts)

    def _score(self, completion: Completion, metric: str, rating: Rating | None) -> Score:
        name, identity = completion.record_id, self.identity
        if rating is None:
            unscored = too_long(completion)
            status = ScoreStatus.UNSCORED if unscored else ScoreStatus.FAILED
            reason = CONTEXT_LENGTH if unscored else completion.error
            return Score(name, metric, None, status, reason, judge=identity)
        status = ScoreStatus.UNSCORED if rating.value is None else ScoreStatus.SCORED
        return Score(name, metric, rating.value, status, rating.reason, judge=identity)


def panels(
    judges: Iterable[Judge], config: JudgingConfig, programs: Programs | None = None
) -> list[Panel]:
    """Put the judges of each metric together, and ``programs`` beside those of tool calls."""
    by_metric: dict[str, list[Judge]] = {}
    for judge in judges:
        by_metric.setdefault(judge.metric, []).append(judge)
    return [
        Panel(together, config, programs if metric == METRIC else None)
        for metric, together in by_metric.items()
    ]
