"""Adaptive evaluation: a trial that is surely worse than the margin allows is asked no further.

Records are asked in rounds, whole conversations at a time, in an order that no answer decides;
after each round the trial's scores are looked at. What was asked stays and is judged and ranked,
marked as stopped; off, nothing of this takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from flywheel.config import Experiment
from flywheel.leaderboard import TOOL_METRIC
from flywheel.statistics import Groups, conversations, surely_below
from flywheel.types import Json, Record, Score

_ROUND = 32
"""Records of a round, at least; twice as many as are in flight, so that engines stay busy."""


def rule(experiment: Experiment) -> Json:
    """What of an experiment decides when its trials stop; nothing where that is off."""
    ranking = experiment.ranking
    if not ranking.adaptive:
        return {}
    metric = ranking.metric or TOOL_METRIC
    names = list(experiment.dataset.group_by)
    order = experiment.scoring.call_order
    told = {"metric": metric, "floor": 1 - ranking.margin, "group_by": names, "call_order": order}
    return {"adaptive": told}


def order(
    records: Sequence[Record], rule: Json, concurrency: int
) -> tuple[list[Record], list[int]]:
    """Records in the order they are asked, and after how many of them to look.

    Args:
        records: Sorted by id, a hash: an order that has nothing to do with difficulty.
        rule: From `rule`.
        concurrency: Requests in flight.
    """
    groups = conversations(records, rule["group_by"])
    first: dict[int, int] = {}
    for place, record in enumerate(records):
        first.setdefault(groups[record.id], place)
    ordered = sorted(records, key=lambda record: first[groups[record.id]])
    step = max(_ROUND, 2 * concurrency)
    ends = [i for i in range(1, len(ordered)) if _apart(groups, ordered[i - 1 : i + 1])]
    rounds = [0]
    for end in ends:
        if end - rounds[-1] >= step:
            rounds.append(end)
    return ordered, [*rounds[1:], len(ordered)]


def stops(rule: Json, records: Sequence[Record], scores: Sequence[Score]) -> bool:
    """Whether what was answered so far shows that the trial is surely worse than allowed.

    Args:
        rule: From `rule`.
        records: All of them, in the order of `order`.
        scores: Of the first so many, in that order; those by other metrics are not looked at.
    """
    groups = conversations(records, rule["group_by"])
    sizes: dict[int, int] = {}
    for record in records:
        sizes[groups[record.id]] = sizes.get(groups[record.id], 0) + 1
    found = [
        (groups[score.record_id], score.value)
        for score in scores
        if score.metric == rule["metric"] and score.value is not None
    ]
    values = [[v for _, v in of] for _, of in groupby(found, key=lambda pair: pair[0])]
    return surely_below(values, rule["floor"], max(sizes.values()))


def _apart(groups: Groups, two: Sequence[Record]) -> bool:
    return groups[two[0].id] != groups[two[1].id]
