"""Answers that are not the expected ones, side by side with them, and the kinds of their mistakes.

Expected is what production answered, or what a ground-truth file says.

A page holds a bounded number of them: the largest of each trial, and a few of every kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flywheel.leaderboard import Row
from flywheel.report.material import Material, featured
from flywheel.report.text import query, shown
from flywheel.scoring import EXAMPLES
from flywheel.types import Completion, Json, Miss, Record, Score

ON_A_PAGE = 400
"""Disagreements of all trials together."""
MEANINGS = {
    Miss.NO_CALL: "answered in words where a tool call was due",
    Miss.UNPARSABLE_CALL: "a call that no program can read",
    Miss.CALL_NOT_DUE: "called a tool where none was due",
    Miss.WRONG_TOOL: "called another tool",
    Miss.MISSING_ARGUMENT: "left out an argument",
    Miss.EXTRA_ARGUMENT: "sent an argument that was not due",
    Miss.WRONG_VALUE: "sent another value",
    Miss.WRONG_TYPE: "sent a value of another type",
    Miss.WRONG_NUMBER_OF_CALLS: "made more calls than were due, or fewer",
}


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One record that a trial did not answer as expected."""

    record: str
    """Its id."""
    trial: str
    """The label of the trial or cascade."""
    by: str
    """Whose answer a cascade gave, and why if it was handed over; empty of a trial."""
    rank: int | None
    size: float
    """1 less the mean of its scores by all metrics: at 1 it has nothing of the expected answer."""
    group: str
    """The record's class."""
    kinds: tuple[str, ...]
    """What is wrong, as `Miss` names it."""
    query: str
    expected: str
    from_file: bool
    """What is expected is what a ground-truth file says, not what production answered."""
    candidate: str
    scores: list[tuple[str, str]]
    reason: str
    """What the score says of it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A trial's largest disagreements, and how many it has."""

    row: Row
    items: list[Disagreement]
    total: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of mistake, counted for each featured trial."""

    name: str
    meaning: str
    counts: list[int]
    """Records that show it, a number for each trial."""
    examples: list[Disagreement]
    """By the first trial that made it."""


def largest(material: Material) -> list[Shown]:
    """Each featured trial's disagreements by the ranking metric, the largest first, then by id."""
    rows = featured(material.board)
    each = ON_A_PAGE // max(1, len(rows))
    found = []
    for row in rows:
        wrong = _wrong(material, row)
        items = [_disagreement(material, row, *one) for one in wrong[:each]]
        found.append(Shown(row, items, len(wrong)))
    return found


def kinds(material: Material) -> list[Kind]:
    """Every kind of mistake that a featured trial made."""
    rows = featured(material.board)
    found = []
    for miss, meaning in MEANINGS.items():
        told = [row.result.misses.get(miss.value, {}) for row in rows]
        counts = [one.get("records", 0) for one in told]
        if any(counts):
            first = next(i for i, count in enumerate(counts) if count)
            examples = _examples(material, rows[first], told[first].get("examples", ()))
            found.append(Kind(miss.value, meaning, counts, examples))
    return found


Answered = tuple[Record, Json, Mapping[str, Score]]


def _answered(material: Material, row: Row) -> list[Answered]:
    """Records with a trial's answer and its scores by metric."""
    key = row.result.key
    answers = _messages(material.completions.get(key, ()))
    scores: dict[str, dict[str, Score]] = {}
    for score in material.scores.get(key, ()):
        if score.value is not None:
            scores.setdefault(score.record_id, {})[score.metric] = score
    return [(r, answers[r.id], scores.get(r.id, {})) for r in material.records if r.id in answers]


def _wrong(material: Material, row: Row) -> list[Answered]:
    metric = material.board.metric
    scored = [one for one in _answered(material, row) if metric in one[2]]
    found = [one for one in scored if (one[2][metric].value or 0.0) < 1]
    return sorted(found, key=lambda one: (-_size(one[2]), one[0].id))


def _size(scores: Mapping[str, Score]) -> float:
    return 1 - fmean(score.value or 0.0 for score in scores.values()) if scores else 1.0


def _examples(material: Material, row: Row, ids: Sequence[str]) -> list[Disagreement]:
    wanted = [one for one in _answered(material, row) if one[0].id in ids]
    return [_disagreement(material, row, *one) for one in wanted[:EXAMPLES]]


def _disagreement(
    material: Material, row: Row, record: Record, answer: Json, scores: Mapping[str, Score]
) -> Disagreement:
    told = scores.get(material.board.metric)
    misses = {miss.value: None for score in scores.values() for miss in score.misses}
    return Disagreement(
        record=record.id,
        trial=row.result.trial.label,
        by=_by(material, row, record.id),
        rank=row.rank,
        size=_size(scores),
        group=material.classes.get(record.id, ""),
        kinds=tuple(misses),
        query=query(record),
        expected=shown(record.answer),
        from_file=material.board.ground_truth,
        candidate=shown(answer),
        scores=[(name, f"{score.value:.2f}") for name, score in scores.items()],
        reason=told.reason if told else "",
    )


def _by(material: Material, row: Row, record: str) -> str:
    if not row.result.cascade:
        return ""
    why = material.handed_over.get(row.result.key, {}).get(record)
    if why is None:
        return f"{row.result.cascade['of_label']} itself"
    return f"production, as handed over: {why.replace('_', ' ')}"


def _messages(completions: Sequence[Completion]) -> dict[str, Json]:
    return {c.record_id: c.message for c in completions if c.message is not None}
