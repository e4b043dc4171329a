"""Find texts that are nearly the same: MinHash signatures, LSH bands, and true Jaccard similarity.

A text is the set of its character 5-grams. Signatures are computed for a whole batch at once:
the grams of all texts lie in one array, and each hash function is one pass over it. Texts that
agree in all rows of some band are candidates; a candidate counts only once the Jaccard similarity
of the two sets themselves has been computed.

Sources: Broder, 1997, "On the resemblance and containment of documents" (MinHash); Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", 3.2 to 3.4 (shingles, banding); Chaudhuri et
al., 2006, "A Primitive Operator for Similarity Joins" (prefix filter).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GRAM = 5
"""Characters of a shingle; what "Mining of Massive Datasets" advises for short texts."""

MAX_HASHES = 64
"""Values of a signature at most."""
RECALL = 0.99
"""Share of the pairs exactly at the threshold that become candidates; more above it."""

_ALL_PAIRS_UP_TO = 24
"""Members of a bucket that become candidates each with each; larger ones are filtered first."""

_PAIRS_AT_ONCE = 5_000
"""Pairs whose sets are looked at together; some kilobytes each."""
_NO_CHARACTER = 0x110000
"""Beyond the last code point of Unicode."""
_MOST = 2**62

U32 = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]
"""(P, 2) positions of two texts."""


@dataclass(frozen=True, slots=True)
class Banding:
    """How a signature is cut: texts are candidates if all ``rows`` values of a band agree."""

    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """That two texts of this Jaccard similarity become candidates."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)

    @classmethod
    def for_threshold(cls, threshold: float) -> Banding:
        """The most selective banding that reaches `RECALL` at the threshold."""
        fitting = (
            banding
            for rows in range(MAX_HASHES, 0, -1)
            for bands in range(1, MAX_HASHES // rows + 1)
            if (banding := cls(bands, rows)).probability(threshold) >= RECALL
        )
        return next(fitting, cls(MAX_HASHES, 1))


def bands(texts: Sequence[str], banding: Banding) -> U32:
    """Each text's band values: (texts, bands). Equal texts have equal values."""
    if not texts:
        return np.empty((0, banding.bands), np.uint32)
    hashes, starts = _gram_hashes(texts)
    result = np.empty((len(texts), banding.bands), np.uint32)
    factors = _factors(banding.bands * banding.rows)
    for band in range(banding.bands):
        value = np.zeros(len(texts), np.uint32)
        for row in range(banding.rows):
            low = _lowest(hashes, starts, *factors[band * banding.rows + row])
            value = (value ^ low) * np.uint32(0x9E3779B1)
            value ^= value >> np.uint32(15)
        result[:, band] = value
    return result


def buckets(values: U32) -> tuple[Pairs, list[npt.NDArray[np.int64]]]:
    """Who shares a band: candidate pairs, and the buckets too large to name all pairs of.

    Args:
        values: (texts, bands) as `bands` gives them, of distinct texts.

    Returns:
        (P, 2) distinct pairs of positions, and positions by bucket; each bucket once.
    """
    found = [np.empty((0, 2), np.int64)]
    large: dict[bytes, npt.NDArray[np.int64]] = {}
    for band in values.T:
        order = np.argsort(band)
        starts = np.flatnonzero(np.append(True, band[order][1:] != band[order][:-1]))
        sizes = np.diff(np.append(starts, len(order)))
        for size in np.unique(sizes[(sizes > 1) & (sizes <= _ALL_PAIRS_UP_TO)]).tolist():
            members = order[starts[sizes == size][:, None] + np.arange(size)]
            one, other = np.triu_indices(size, 1)
            found.append(np.column_stack([members[:, one].ravel(), members[:, other].ravel()]))
        for i in np.flatnonzero(sizes > _ALL_PAIRS_UP_TO):
            bucket = np.sort(order[starts[i] : starts[i] + sizes[i]])
            large[bucket.tobytes()] = bucket
    return distinct(np.concatenate(found)), list(large.values())


def distinct(pairs: Pairs) -> Pairs:
    """Each pair once, the lower position first, in order."""
    low, high = np.sort(pairs, axis=1).T
    size = int(high.max(initial=0)) + 1
    return np.column_stack(np.divmod(np.unique(low * size + high), size))


def verified(pairs: Pairs, texts: Mapping[int, str], threshold: float) -> Pairs:
    """Those of the candidate pairs whose texts reach the threshold."""
    named, rows = np.unique(pairs, return_inverse=True)
    sets = _shingle_sets([texts[i] for i in named.tolist()])
    return pairs[_reaching(sets, rows.reshape(-1, 2), threshold)]


def joined(bucket: npt.NDArray[np.int64], texts: Mapping[int, str], threshold: float) -> Pairs:
    """The pairs of one large bucket whose texts reach the threshold.

    A template with a number in it fills a bucket with thousands. The prefix filter misses no pair:
    two sets can only reach the threshold if they share one of their rarest grams.
    """
    sets = _shingle_sets([texts[i] for i in bucket.tolist()])
    _, grams, counts = np.unique(sets.indices, return_inverse=True, return_counts=True)
    sizes = np.diff(sets.indptr).tolist()
    found: set[tuple[int, int]] = set()
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for j, own in enumerate(np.split(grams, sets.indptr[1:-1])):
        rarest = own[np.lexsort((own, counts[own]))]
        for gram in rarest[: sizes[j] - _least_shared(sizes[j], threshold) + 1].tolist():
            for i in holders[gram]:
                if threshold * sizes[i] <= sizes[j] <= sizes[i] / threshold:
                    found.add((i, j))
            holders[gram].append(j)
    pairs = np.array(sorted(found), np.int64).reshape(-1, 2)
    return bucket[pairs[_reaching(sets, pairs, threshold)]]


def _reaching(sets: Any, pairs: Pairs, threshold: float) -> npt.NDArray[np.bool_]:
    """Which pairs of rows have a Jaccard similarity of at least the threshold."""
    sizes = np.diff(sets.indptr)
    reached = [np.empty(0, bool)]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        one, other = pairs[start : start + _PAIRS_AT_ONCE].T
        shared = sets[one].multiply(sets[other]).sum(axis=1)
        reached.append(shared / (sizes[one] + sizes[other] - shared) >= threshold)
    return np.concatenate(reached)


def _shingle_sets(texts: Sequence[str]) -> Any:
    """A sparse matrix of ones: row i has a column for each different gram of text i.

    A column stands for one gram and no other: no hash decides here.
    """
    from scipy.sparse import csr_array

    codes, lengths = _codes(texts)
    for i, text in enumerate(texts):
        if len(text) < GRAM:  # what fills it up is no character of any text
            end = int(lengths[: i + 1].sum())
            codes[end - GRAM + len(text) : end] = _NO_CHARACTER
    grams, columns = _numbered(codes)
    starts = np.concatenate([[0], np.cumsum(lengths - GRAM + 1)])
    inner = grams[_inside(lengths)]
    sets = csr_array((np.ones(len(inner), np.int32), inner, starts), (len(texts), columns))
    sets.sum_duplicates()
    sets.data[:] = 1
    return sets


def _numbered(codes: U32) -> tuple[npt.NDArray[np.int64], int]:
    """Every window of `GRAM` code points as a number, equal for equal windows alone; their bound.

    The number's digits are the code points, counted as they occur; before it would outgrow 64 bits
    the numbers so far are counted anew.
    """
    occurs = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
    occurs[codes] = 1
    digits = (np.cumsum(occurs) - 1)[codes]
    base = int(occurs.sum())
    size = max(0, len(codes) - GRAM + 1)
    value, bound = digits[:size], base
    for i in range(1, GRAM):
        if bound * base > _MOST:
            known, value = np.unique(value, return_inverse=True)
            bound = len(known)
        value, bound = value * base + digits[i : i + size], bound * base
    return value, bound


def _least_shared(size: int, threshold: float) -> int:
    """Elements that a set of this size must share with any set it resembles enough."""
    return max(1, int(np.ceil(threshold * size - 1e-9)))


def _gram_hashes(texts: Sequence[str]) -> tuple[U32, npt.NDArray[np.int64]]:
    """Hashes of all texts' grams in one array, and where each text's begin."""
    codes, lengths = _codes(texts)
    counts = lengths - GRAM + 1
    return _rolled(codes)[_inside(lengths)], np.cumsum(counts) - counts


def _codes(texts: Sequence[str]) -> tuple[U32, npt.NDArray[np.int64]]:
    """The code points of all texts in one array, and how many are each one's."""
    # A text shorter than a gram is filled up, so that every text has one.
    whole = "".join(text.ljust(GRAM, "\0") for text in texts)
    codes = np.frombuffer(bytearray(whole.encode("utf-32-le", "surrogatepass")), np.uint32)
    return codes, np.fromiter((max(GRAM, len(text)) for text in texts), np.int64, len(texts))


def _inside(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which windows lie within a text; those that reach over its end belong to none."""
    ends = np.cumsum(lengths)
    inside = np.ones(int(lengths.sum()), bool)
    for back in range(1, GRAM):
        inside[ends - back] = False
    return inside[: max(0, len(inside) - GRAM + 1)]


def _rolled(codes: U32) -> U32:
    """A well mixed hash of every window of `GRAM` code points."""
    size = max(0, len(codes) - GRAM + 1)
    value = np.zeros(size, np.uint32)
    for i in range(GRAM):
        value = (value ^ codes[i : i + size]) * np.uint32(0x01000193)
        value ^= value >> np.uint32(13)
    value *= np.uint32(0x85EBCA6B)
    value ^= value >> np.uint32(16)
    return value


def _factors(count: int) -> list[tuple[np.uint32, np.uint32]]:
    """Fixed odd multipliers and masks, one pair per hash function."""
    drawn = np.frombuffer(hashlib.shake_128(b"flywheel minhash").digest(8 * count), "<u4")
    return [(a | np.uint32(1), b) for a, b in drawn.reshape(count, 2)]


def _lowest(hashes: U32, starts: npt.NDArray[np.int64], factor: Any, mask: Any) -> U32:
    """One hash function's least value over each text's grams."""
    mixed = (hashes ^ mask) * factor
    mixed ^= mixed >> np.uint32(16)
    return np.minimum.reduceat(mixed, starts)
