"""Which rows of the train split a trial learns from: how many, and of which classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def training_rows(classes: Sequence[str], limit: int | None, balance: str) -> list[int]:
    """Positions in the train split.

    Args:
        classes: Each row's class, in the split's order, which is by hash: the first are a sample.
        limit: At most so many rows.
        balance: ``natural`` takes the first; ``equal`` deals the classes out round by round, so
            that their shares differ by one at most, and begins a class anew that has no more.
    """
    count = len(classes) if limit is None else min(limit, len(classes))
    if balance == "natural":
        return list(range(count))
    members: dict[str, list[int]] = {}
    for position, name in enumerate(classes):
        members.setdefault(name, []).append(position)
    of_class = list(members.values())
    rounds = ((turn, rows) for turn in range(count) for rows in of_class)
    return [rows[turn % len(rows)] for turn, rows in itertools.islice(rounds, count)]
