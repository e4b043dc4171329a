"""Groups, classes, and which side a record stands on.

Records linked by a conversation, session or user, by the same user's text or the same request, or
by near-duplicate texts form a group. A keyed hash alone places a group on the eval side or the
train side. Hashes do not look at other records, so order, shards and later logs change nothing
about a record's side; a group that grows by more links can only move towards eval, never from eval
into train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.config import DatasetConfig
from flywheel.datasets.duplicates import Edges, Positions, newest_first
from flywheel.datasets.keys import LINKS, NO_TOOL, U64, Keys, numbered
from flywheel.errors import DataError

SPLITS = ("eval", "train", "val")

RULE = (
    "A group is what shares a conversation, session, user, request or user's text, or has nearly "
    "the same text. A hash keyed by random_seed gives each a place in 0..1, the lowest of its "
    "members. Below eval_share lies the eval side: up to eval_size records by class, in hash "
    "order; the rest there is unused. Of the others, val_ratio by class become val, whole groups "
    "in order of their place, and what remains is train."
)
TIME_RULE = (
    "Groups as above. The newest eval_size records are eval; of what is older, groups that reach "
    "into that window are unused; of the others, val_ratio by class become val, whole groups in "
    "hash order, and what remains is train."
)

LENGTHS = (0, 100, 400, 1600)
"""Free text answers are classed by their characters: up to 100, up to 400, ..."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Where each kept record stands: positions, by id."""

    eval: Positions
    train: Positions
    val: Positions
    unused: Positions
    """On the eval side, but not chosen: never trained on."""

    def __getitem__(self, split: str) -> Positions:
        positions: Positions = getattr(self, split)
        return positions


def classes(keys: Keys, kept: Positions, label_limit: int) -> npt.NDArray[Any]:
    """The class of each kept record of one workload.

    Tools where any record calls one; else the answer itself where there are at most
    ``label_limit`` different ones; else how long the answer is.
    """
    tools = keys.tool[kept]
    if (tools != NO_TOOL).any():
        return tools
    labels = keys.label[kept]
    if len(set(labels)) <= label_limit:
        return labels
    names = [f"up to {limit} characters" for limit in LENGTHS[1:]]
    bounded = np.searchsorted(LENGTHS[1:], keys.length[kept])
    return np.array([*names, f"over {LENGTHS[-1]} characters"], object)[bounded]


def groups(keys: Keys, edges: Edges) -> npt.NDArray[np.int64]:
    """The number of each record's group (union-find over all that links records).

    Call it with all records, duplicates included: a link that a duplicate makes still counts.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [_to_first(column) for column in (keys.prompt, keys.text)]
    links += [_to_first(getattr(keys, name)) for name in LINKS]
    joined = np.concatenate([*links, edges.reshape(-1, 2)])
    ones = np.ones(len(joined), np.int8)
    graph = coo_array((ones, (joined[:, 0], joined[:, 1])), shape=(len(keys), len(keys)))
    _, numbers = connected_components(graph, directed=False)
    return np.asarray(numbers, np.int64)


def places(keys: Keys, groups: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """Where each record's group lies in 0..1; the records of a group share one place."""
    own = keyed_hash(keys.identity, seed, "place")
    lowest = np.full(groups.max(initial=-1) + 1, 1.0)
    np.minimum.at(lowest, groups, own)
    return np.take(lowest, groups)


def keyed_hash(hashes: U64, seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """Numbers in 0..1 that only seed, purpose and hash decide.

    Mixed by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    key = blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest()
    value = hashes ^ np.uint64(int.from_bytes(key, "big"))
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)) / 2.0**53


def limited(keys: Keys, kept: Positions, config: DatasetConfig) -> Positions:
    """At most ``limit`` of the positions, chosen by hash."""
    if config.limit is None or len(kept) <= config.limit:
        return kept
    return np.sort(_hash_order(keys, kept, config.random_seed)[: config.limit])


def split(
    keys: Keys,
    kept: Positions,
    labels: npt.NDArray[Any],
    groups: npt.NDArray[np.int64],
    config: DatasetConfig,
    frozen: U64 | None = None,
) -> Splits:
    """Divide the kept records by `RULE` or `TIME_RULE`.

    Args:
        keys: All records.
        kept: Positions of those that take part.
        labels: Their classes.
        groups: The groups of all records, from `groups`.
        config: Sizes, shares, mode and seed.
        frozen: Ids of an earlier dataset's eval records, which stay in eval where they still
            exist; for the mode ``frozen``.

    Raises:
        DataError: Nothing is left for eval or for train.
    """
    place = places(keys, groups, config.random_seed)
    if config.mode == "time":
        chosen, eval_side = _newest_window(keys, kept, groups, config.eval_size)
    else:
        core = np.isin(keys.id, frozen) if frozen is not None else np.zeros(len(keys), bool)
        held = np.isin(groups, groups[core])
        eval_side = (place < config.eval_share)[kept] | held[kept]
        chosen = _stratified(keys, kept, labels, eval_side, core[kept], config)
    train_side = ~eval_side
    val = _whole_groups(kept, labels, groups, place, train_side, config.val_ratio)
    parts = (chosen, train_side & ~val, val, eval_side & ~chosen)
    result = Splits(*(kept[part][np.argsort(keys.id[kept[part]])] for part in parts))
    _check_filled(result, groups[kept], config)
    return result


def apportion(seats: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Share out seats in proportion, by largest remainder (Hamilton's method; ties by name).

    Each class gets its exact share rounded down or up, and never more than it counts.
    """
    total = sum(counts.values())
    if total == 0:
        return {}
    seats = min(seats, total)
    shares = {name: seats * n // total for name, n in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(seats * counts[name] % total), name))
    for name in by_remainder[: seats - sum(shares.values())]:
        shares[name] += 1
    return shares


def leak_check(keys: Keys, splits: Splits, edges: Edges) -> dict[str, dict[str, int]]:
    """Count what two splits share, for every pair of splits: requests, and near-duplicate texts."""
    forms = {"exact": keys.exact, "normalised": keys.prompt, "text": keys.text}
    inside = {name: _inside(form, splits) for name, form in forms.items()}
    text, codes = inside["text"]
    ends = codes[edges]
    found: dict[str, dict[str, int]] = {}
    for one, other in (("eval", "train"), ("eval", "val"), ("train", "val")):
        shared = {name: int((has[one] & has[other]).sum()) for name, (has, _) in inside.items()}
        a, b = text[one][ends], text[other][ends]
        near = int(((a[:, 0] & b[:, 1]) | (a[:, 1] & b[:, 0])).sum())
        found[f"{one}/{other}"] = {**shared, "near": near}
    return found


def _inside(
    column: U64, splits: Splits
) -> tuple[dict[str, npt.NDArray[np.bool_]], npt.NDArray[np.int64]]:
    """Which of a column's different values occur in each split, and each record's value by number.

    0 is no value.
    """
    codes, values = numbered(column)
    found = {}
    for name in SPLITS:
        occurs = np.zeros(len(values), bool)
        occurs[codes[splits[name]]] = True
        found[name] = occurs & (values != 0)
    return found, codes


def _to_first(column: U64) -> Edges:
    """Link every record to the first with the same value; 0 links nothing."""
    codes, values = numbered(column)
    first = np.empty(len(values), np.int64)
    first[codes[::-1]] = np.arange(len(column))[::-1]  # of several, the last one written stays
    linked = np.flatnonzero((column != 0) & (first[codes] != np.arange(len(column))))
    return np.column_stack([linked, first[codes[linked]]])


def _hash_order(keys: Keys, positions: Positions, seed: int) -> Positions:
    in_hash_order = keyed_hash(keys.prompt[positions], seed, "order")
    order: Positions = np.lexsort((keys.id[positions], in_hash_order))
    return np.take(positions, order)


def _newest_window(
    keys: Keys, kept: Positions, groups: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of the kept are the newest, and which stand on their side because of their group."""
    newest = np.zeros(len(keys), bool)
    newest[newest_first(keys, kept)[:size]] = True
    return newest[kept], np.isin(groups[kept], groups[newest])


def _stratified(
    keys: Keys,
    kept: Positions,
    labels: npt.NDArray[Any],
    eval_side: npt.NDArray[np.bool_],
    core: npt.NDArray[np.bool_],
    config: DatasetConfig,
) -> npt.NDArray[np.bool_]:
    """Which of the kept are eval: the frozen core, then by class in hash order."""
    codes, names = _by_name(labels)
    counts = np.bincount(codes[eval_side], minlength=len(names))
    seats = apportion(config.eval_size, dict(zip(names, counts.tolist(), strict=True)))
    order = keyed_hash(keys.prompt[kept], config.random_seed, "order")
    queue = np.lexsort((keys.id[kept], order, ~core, codes))
    queue = queue[eval_side[queue]]
    starts = np.searchsorted(codes[queue], np.arange(len(names)))
    rank = np.arange(len(queue)) - starts[codes[queue]]
    allowed = np.array([seats.get(name, 0) for name in names], np.int64)
    chosen = core.copy()
    chosen[queue[rank < allowed[codes[queue]]]] = True
    return chosen


def _whole_groups(
    kept: Positions,
    labels: npt.NDArray[Any],
    groups: npt.NDArray[np.int64],
    place: npt.NDArray[np.float64],
    side: npt.NDArray[np.bool_],
    ratio: float,
) -> npt.NDArray[np.bool_]:
    """Which of the kept are val: whole groups of the side, by class, in order of their place.

    A group counts for the class that most of its records have.
    """
    taken = np.zeros(len(kept), bool)
    members = np.flatnonzero(side)
    if not len(members) or not ratio:
        return taken
    numbers, own = np.unique(groups[kept[members]], return_inverse=True)
    sizes = np.bincount(own)
    where = np.empty(len(numbers))
    where[own] = place[kept[members]]
    common, names = _common_class(own, labels[members])
    counts = np.bincount(common, weights=sizes, minlength=len(names)).astype(int)
    by_name = dict(zip(names, counts.tolist(), strict=True))
    left = apportion(int(ratio * len(members)), by_name)
    chosen = np.zeros(len(numbers), bool)
    for code, name in enumerate(names):
        seats = left[name]
        mine = np.flatnonzero(common == code)
        for group in mine[np.argsort(where[mine], kind="stable")].tolist():
            if not seats:
                break
            if sizes[group] <= seats:
                seats -= sizes[group]
                chosen[group] = True
    taken[members] = chosen[own]
    return taken


def _common_class(
    own: npt.NDArray[np.int64], labels: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Each group's most common class, as a code, and the classes' names; ties by name."""
    codes, names = _by_name(labels)
    pairs, counts = np.unique(own * len(names) + codes, return_counts=True)
    group, code = pairs // len(names), pairs % len(names)
    order = np.lexsort((code, -counts, group))
    first = np.unique(group[order], return_index=True)[1]
    return code[order][first], names


def _by_name(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Each record's class as a number, and the classes' names, sorted."""
    codes, values = numbered(labels)
    names = sorted(values.tolist())
    return np.searchsorted(np.array(names, object), values)[codes], names


def _check_filled(splits: Splits, groups: npt.NDArray[np.int64], config: DatasetConfig) -> None:
    empty = [name for name in ("eval", "train") if not len(splits[name])]
    if not empty:
        return
    largest = int(np.bincount(groups).max(initial=0)) if len(groups) else 0
    hint = (
        f"; one group of linked records holds {largest} of them: see dataset.group_by"
        if largest > len(groups) / 2
        else "; add logs, or change eval_share or random_seed"
    )
    raise DataError(
        f"{len(groups)} records leave none for {' and '.join(empty)} at dataset.eval_share "
        f"{config.eval_share}{hint}"
    )
