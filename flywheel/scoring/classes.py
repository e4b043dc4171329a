"""How well each class is told from the others: precision, recall, F1, and the confusion.

A class is the label that is expected (``label_accuracy``) or the tools that are due
(``function_name``). What was answered and is no record's class counts as `OTHER`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from flywheel.statistics import Groups, estimate
from flywheel.types import Json, Score

OTHER = "(other)"
MAX_CLASSES = 100
"""Classes that have a line; the most frequent ones."""


def tables(scores: Iterable[Score], groups: Groups | None = None) -> Json:
    """The table of each metric that is about classes, by metric; see `table`."""
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        if score.classes is not None:
            by_metric.setdefault(score.metric, []).append(score)
    return {metric: table(mine, groups) for metric, mine in by_metric.items()}


def table(scores: Sequence[Score], groups: Groups | None = None) -> Json:
    """What became of each class.

    Args:
        scores: One metric's, of records that were scored, each with its ``classes``.
        groups: Records that belong together; intervals know it.

    Returns:
        ``classes``: for each, by frequency, its ``label``, ``support`` (records that expect it),
        ``answered`` (records that were answered with it), ``precision`` and ``recall`` as
        `flywheel.types.Estimate` (``value`` is ``None`` where nothing was answered with it) and
        ``f1``; ``macro_f1``, the mean of all classes' F1; ``confusion``: ``labels`` (those
        classes, then ``(other)``) and ``counts``, a row for each expected class, a column for each
        answered one; ``classes_left_out`` beyond `MAX_CLASSES`. F1 is scikit-learn's.
    """
    from sklearn.metrics import confusion_matrix, f1_score

    pairs = [score.classes for score in scores if score.classes is not None]
    support = Counter(due for due, _ in pairs)
    labels = sorted(support, key=lambda label: (-support[label], label))
    named = [(due, sent if sent in support else OTHER) for due, sent in pairs]
    due, sent = map(list, zip(*named, strict=True)) if named else ([], [])
    f1 = f1_score(due, sent, labels=labels, average=None, zero_division=0) if labels else []
    shown = labels[:MAX_CLASSES]
    folded = [[label if label in set(shown) else OTHER for label in side] for side in (due, sent)]
    names = [*shown, OTHER]
    counts = confusion_matrix(*folded, labels=names).tolist() if labels else [[0]]
    return {
        "n": len(pairs),
        "macro_f1": float(np.mean(f1)) if labels else None,
        "classes": [
            _line(label, float(value), scores, groups)
            for label, value in zip(shown, f1, strict=False)
        ],
        "classes_left_out": len(labels) - len(shown),
        "confusion": {"labels": names, "counts": counts},
    }


def _line(label: str, f1: float, scores: Sequence[Score], groups: Groups | None) -> Json:
    expected = [score for score in scores if score.classes and score.classes[0] == label]
    answered = [score for score in scores if score.classes and score.classes[1] == label]
    return {
        "label": label,
        "support": len(expected),
        "answered": len(answered),
        "precision": _share(answered, groups),
        "recall": _share(expected, groups),
        "f1": f1 if math.isfinite(f1) else None,
    }


def _share(scores: Sequence[Score], groups: Groups | None) -> Any:
    """Of these records the share that was answered with its own class."""
    right = [
        replace(s, value=float(s.classes is not None and len(set(s.classes)) == 1)) for s in scores
    ]
    return asdict(estimate(right, groups))
