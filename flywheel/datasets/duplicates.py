"""Which of the records that ask the same stays: duplicates, contradictions, near-duplicates.

Positions are indices into `Keys`. Of several that ask the same, the newest stays (of two as new,
the higher id), so that order and shards of the logs decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flywheel.datasets.keys import U64, Keys, numbered

Positions = npt.NDArray[np.int64]
Edges = npt.NDArray[np.int64]
"""(E, 2) positions of records whose user's texts are verified near-duplicates."""

Contradictions = Literal["newest", "majority", "reject"]
"""What to do where the same request was answered differently."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of all records, and what was dropped."""

    positions: Positions
    """Sorted."""
    duplicates: dict[str, int]
    """Dropped for a newer record: ``exact``, ``normalised``, ``near``."""
    contradictions: dict[str, int]
    """``requests`` answered in several ways, their ``records``, and those ``rejected``."""


def deduplicate(keys: Keys, edges: Edges, policy: Contradictions = "newest") -> Kept:
    """Drop what asks the same as a record that stays.

    Args:
        keys: All records.
        edges: Verified near-duplicates among them.
        policy: Which answer stays where the same request has several: that of the ``newest``
            record, that of the ``majority`` (the newest record that gave it), or none (``reject``).
    """
    contradicting, requests = _contradicting(keys)
    rejected = contradicting if policy == "reject" else np.zeros(len(keys), bool)
    left = np.flatnonzero(~rejected)
    weight = _votes(keys) if policy == "majority" else np.zeros(len(keys), np.int64)
    kept = _newest(keys, keys.normalised, weight, left)
    apart = _drop_near(keys, kept, edges)
    exact = len(left) - len(np.unique(keys.exact[left]))
    dropped = len(left) - len(kept)
    duplicates = {"exact": exact, "normalised": dropped - exact, "near": len(kept) - len(apart)}
    counts = {
        "requests": requests,
        "records": int(contradicting.sum()),
        "rejected": int(rejected.sum()),
    }
    return Kept(apart, duplicates, counts)


def newest_first(keys: Keys, positions: Positions) -> Positions:
    """Positions from the newest record to the oldest, of equals the higher id first."""
    order: Positions = np.lexsort((keys.id[positions], keys.timestamp[positions]))[::-1]
    return np.take(positions, order)


def _newest(
    keys: Keys, same: U64, weight: npt.NDArray[np.int64], positions: Positions
) -> Positions:
    """Of each run of the same key, the position with the most weight, then the newest."""
    columns = (keys.id, keys.timestamp, weight, same)
    order = positions[np.lexsort(tuple(column[positions] for column in columns))]
    last = np.append(same[order][1:] != same[order][:-1], [True] * (len(order) > 0))
    return np.sort(order[last])


def _contradicting(keys: Keys) -> tuple[npt.NDArray[np.bool_], int]:
    """Which records ask what another answers differently, and how many such requests there are."""
    request, requests = numbered(keys.normalised)
    answer, answers = numbered(keys.answer)
    answered = np.unique(request * len(answers) + answer)
    several = np.bincount(answered // max(1, len(answers)), minlength=len(requests)) > 1
    return several[request], int(several.sum())


def _votes(keys: Keys) -> npt.NDArray[np.int64]:
    """How many records ask and answer the same as each."""
    pairs = np.column_stack([keys.normalised, keys.answer])
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    votes: npt.NDArray[np.int64] = counts[inverse.ravel()]
    return votes


def _drop_near(keys: Keys, kept: Positions, edges: Edges) -> Positions:
    """From the newest on, drop records that nearly repeat one that stays in the same frame.

    Between records that stay, no such pair is left; each dropped one has a newer near-duplicate
    that stays.
    """
    alike = _among(keys, kept, edges)
    if not len(alike):
        return kept
    neighbours: dict[int, list[int]] = {}
    for one, other in alike.tolist():
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    dropped: set[int] = set()
    for position in newest_first(keys, np.array(sorted(neighbours))).tolist():
        if position not in dropped:
            dropped.update(neighbours[position])
    return np.setdiff1d(kept, np.array(sorted(dropped)), assume_unique=True)


def _among(keys: Keys, kept: Positions, edges: Edges) -> Edges:
    """The edges between kept records of equal frame, their texts' representatives replaced.

    An edge names two records; every other record with the same text is alike too.
    """
    if not len(edges):
        return edges
    texts = keys.text[edges]
    involved = kept[np.isin(keys.text[kept], texts)]
    holders: dict[int, list[int]] = {}
    for position in involved.tolist():
        holders.setdefault(int(keys.text[position]), []).append(position)
    frames = keys.frame
    found = [
        (one, other)
        for a, b in texts.tolist()
        for one in holders.get(a, ())
        for other in holders.get(b, ())
        if frames[one] == frames[other]
    ]
    return np.array(found, np.int64).reshape(-1, 2)
