"""Which training records stand in one prompt: walks along an order of the pool, taking what fits.

An order is a list of positions in the pool, best first. What does not fit the room that is left is
passed over whole, and the next best is tried; nothing is ever cut to size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from flywheel.datasets.splits import keyed_hash

Order = list[int]
Size = Callable[[int], float]
"""Tokens that the example at a position adds to a prompt; infinite where none can hold it."""


@dataclass(slots=True)
class Walk:
    """Examples taken so far along one order."""

    order: Order
    classes: Sequence[str]
    size: Size
    room: float
    """Tokens left."""
    places: list[int] = field(default_factory=list)
    """Where in the order those taken stand."""

    def take(self, count: int) -> None:
        """Take the best that fit until ``count`` are taken."""
        for place in range(len(self.order)):
            if len(self.places) >= count:
                return
            self._take(place)

    def cover(self, count: int, covered: set[str]) -> bool:
        """The same with one of each class that is not ``covered``; whether any was taken."""
        before = len(self.places)
        for place, position in enumerate(self.order):
            if len(self.places) >= count:
                break
            if self.classes[position] not in covered and self._take(place):
                covered.add(self.classes[position])
        return len(self.places) > before

    def taken(self) -> list[int]:
        """Positions taken, best first."""
        return [self.order[place] for place in sorted(self.places)]

    def _take(self, place: int) -> bool:
        if place in self.places:
            return False
        size = self.size(self.order[place])
        if fits := size <= self.room and size < math.inf:
            self.room -= size
            self.places.append(place)
        return fits


def similar(walk: Walk, count: int, relevance_ratio: float) -> list[int]:
    """The nearest, then the nearest of classes not shown yet, then whatever is nearest.

    Args:
        walk: Along an order by similarity.
        count: How many to take.
        relevance_ratio: Share of ``count``, rounded down, that are simply the nearest.
    """
    walk.take(math.floor(relevance_ratio * count + 1e-9))  # 0.29 x 100 is 28.999…
    walk.cover(count, {walk.classes[position] for position in walk.taken()})
    walk.take(count)
    return walk.taken()


def uniform(walk: Walk, count: int) -> list[int]:
    """Deal the classes out round by round, so that their shares differ by one at most.

    Args:
        walk: Along an order by `dealt`.
        count: How many to take.
    """
    while walk.cover(count, set()):
        pass
    return walk.taken()


def by_score(scores: npt.NDArray[np.float32]) -> Order:
    """Highest score first; ties in the pool's order."""
    order: Order = np.argsort(-scores, kind="stable").tolist()
    return order


def dealt(
    record_ids: Sequence[str], ids: Sequence[str], classes: Sequence[str], seed: int
) -> Iterator[Order]:
    """For each record the pool class by class, both in an order that only seed and record decide.

    So where there are more classes than places, each gets its turn in some record's prompt.

    Args:
        record_ids: The eval records.
        ids: The pool's.
        classes: The pool's.
        seed: Another seed deals other hands.
    """
    names, codes = np.unique(np.array(classes, object), return_inverse=True)
    pool = np.array([int(name, 16) for name in ids], np.uint64)
    hashes = _hashes(names.tolist())
    for record_id in record_ids:
        own = keyed_hash(pool, seed, f"icl example {record_id}")
        of_class = keyed_hash(hashes, seed, f"icl class {record_id}")
        order: Order = np.lexsort((pool, own, of_class[codes])).tolist()
        yield order


def _hashes(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = (blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8) for name in names)
    return np.array([int.from_bytes(digest.digest(), "big") for digest in digests], np.uint64)
