"""How a trial does class by class, and which classes it takes for which.

Every metric has a mean over each class of the dataset: the tool that production called, or the
label that it answered. Metrics that are about classes have left precision, recall, F1 and a
confusion matrix in the trial's ``result.json``; those are shown as they are, bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.leaderboard import Row
from flywheel.report.material import Material, featured
from flywheel.statistics import Groups, conversations, estimate
from flywheel.types import Estimate, Json, Score

CLASSES = 20
"""Rows of a table; the rest share one, or are left out."""
SIDES = 12
"""Rows and columns of a confusion matrix, less the one that the rest share."""
REST = "all others"


@dataclass(frozen=True, slots=True)
class Confusion:
    """What was due (rows) and what was answered (columns), counted."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]


@dataclass(frozen=True, slots=True)
class Told:
    """How well a metric's classes are told apart."""

    metric: str
    macro_f1: float | None
    lines: list[tuple[str, int, Estimate, Estimate, float | None]]
    """Class, records that are of it, precision, recall, F1; the largest classes first."""
    left_out: int
    """Classes without a line."""
    confusion: Confusion


@dataclass(frozen=True, slots=True)
class ByClass:
    """One trial, class by class."""

    row: Row
    metrics: list[str]
    """The ranking one first."""
    means: list[tuple[str, dict[str, Estimate]]]
    """Class, and its mean by metric; the largest classes first."""
    told: list[Told]


def by_class(material: Material) -> list[ByClass]:
    """Every featured trial, class by class; nothing where records have no classes."""
    due = {r.id: name for r in material.records if (name := material.classes.get(r.id))}
    if not due:
        return []
    counted = Counter(due.values())
    largest = sorted(counted, key=lambda name: (-counted[name], name))[:CLASSES]
    shown = {record: name if name in largest else REST for record, name in due.items()}
    groups = conversations(material.records, material.experiment["dataset"]["group_by"])
    return [
        _of_trial(material, row, shown, [*largest, REST], groups)
        for row in featured(material.board)
    ]


def _of_trial(
    material: Material, row: Row, shown: Mapping[str, str], order: Sequence[str], groups: Groups
) -> ByClass:
    key = row.result.key
    scores = [score for score in material.scores.get(key, ()) if score.record_id in shown]
    names = dict.fromkeys([material.board.metric, *(score.metric for score in scores)])
    means = _means(scores, shown, groups)
    told = material.results.get(key, {}).get("classes") or {}
    return ByClass(
        row,
        list(names),
        [(name, means[name]) for name in order if name in means],
        [_told(metric, table) for metric, table in told.items() if table["classes"]],
    )


def _means(
    scores: Sequence[Score], shown: Mapping[str, str], groups: Groups
) -> dict[str, dict[str, Estimate]]:
    cells: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        metrics = cells.setdefault(shown[score.record_id], {})
        metrics.setdefault(score.metric, []).append(score)
    return {
        name: {metric: estimate(group, groups) for metric, group in metrics.items()}
        for name, metrics in cells.items()
    }


def _told(metric: str, table: Json) -> Told:
    """A table of ``result.json``: ``classes`` by frequency, ``confusion`` with the rest last."""
    lines = [
        (
            line["label"],
            line["support"],
            Estimate(**line["precision"]),
            Estimate(**line["recall"]),
            line["f1"],
        )
        for line in table["classes"]
    ]
    left_out = table.get("classes_left_out", 0) + max(0, len(lines) - CLASSES)
    confusion = bounded(**table["confusion"])
    return Told(metric, table.get("macro_f1"), lines[:CLASSES], left_out, confusion)


def bounded(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Confusion:
    """The largest classes: what is beyond `SIDES` joins the last, and empty sides go.

    Args:
        labels: By frequency, the last one for the rest.
        counts: A row for each class that was due, a column for each that was answered.
    """
    whole = np.asarray(counts)
    keep = min(SIDES, len(labels) - 1)
    starts = [*range(keep + 1)]
    folded = np.add.reduceat(np.add.reduceat(whole, starts, axis=0), starts, axis=1)
    names = [*labels[:keep], labels[-1]]
    rows = [i for i in starts if folded[i].any()]
    columns = [i for i in starts if i in rows or folded[:, i].any()]
    return Confusion(
        [names[i] for i in rows],
        [names[i] for i in columns],
        folded[np.ix_(rows, columns)].tolist(),
    )
