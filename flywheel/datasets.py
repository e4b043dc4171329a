"""From Records to the splits of a dataset: duplicates, groups, classes, sides.

What decides is small and holds no text that matters: each Record's `Keys`. Records linked by a
conversation or by the same normalised request form a group, and a keyed hash alone places a group
on the eval side or the train side. Hashes do not look at other records, so order, shards and later
logs change nothing about a record's side; a group that grows by more links can only move towards
eval, never from eval into train.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from flywheel.config import DatasetConfig
from flywheel.errors import DataError
from flywheel.types import Json, Record, content_hash

SPLITS = ("eval", "train", "val")
NO_TOOL = "no_tool"
TEXT = "text"
"""The class of every record where answers are free text."""

SPLIT_RULE = (
    "A group is what shares a conversation or a normalised request. A hash keyed by random_seed "
    "gives each a place in 0..1, the lowest of its members. Below eval_share lies the eval side: "
    "up to eval_size records by class, in hash order; the rest there is unused. Of the others, "
    "val_ratio by class become val, whole groups in order of their place, and what remains is "
    "train."
)

_LABEL_LENGTH = 80
"""Characters of a text answer that tell classes apart."""


@dataclass(frozen=True, slots=True)
class Keys:
    """All that deduplication and splitting know of one Record."""

    id: str
    timestamp: float
    exact: str
    """Equal for the same messages and tools."""
    normalised: str
    """Equal for the same messages and tools but for how the user's text is written."""
    prompt: str
    """As ``normalised``, whatever the tools: the request as a leak check sees it."""
    conversation: str
    """Hash of the logged conversation or session; empty where none was logged."""
    tool: str
    """The first tool called, or ``no_tool``."""
    text: str
    """The start of a text answer."""

    @classmethod
    def of(cls, record: Record) -> Keys:
        """Read a Record's keys."""
        spoken = [_normal_message(message) for message in record.messages]
        return cls(
            id=record.id,
            timestamp=record.timestamp,
            exact=content_hash([record.messages, record.tools]),
            normalised=content_hash([spoken, record.tools]),
            prompt=content_hash(spoken),
            conversation=conversation_of(record),
            tool=tool_of(record),
            text=(record.answer.get("content") or "").strip()[:_LABEL_LENGTH],
        )

    @property
    def identity(self) -> str:
        """What a hash places: the conversation where there is one, else the request."""
        return self.conversation or self.prompt


@dataclass(frozen=True, slots=True)
class Splits:
    """Where each curated record stands: positions in the sequence that was split, by id."""

    eval: list[int]
    train: list[int]
    val: list[int]
    unused: list[int]
    """On the eval side, beyond ``eval_size``."""

    def __getitem__(self, split: str) -> list[int]:
        positions: list[int] = getattr(self, split)
        return positions


@dataclass(frozen=True, slots=True)
class Division:
    """What became of every record of a workload."""

    splits: Splits
    labels: dict[int, str]
    """The class of each record that was kept, by position."""
    duplicates: dict[str, int]
    """Dropped for a newer record, ``exact`` or ``normalised``."""
    over_limit: int
    """Dropped by ``limit``."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a dataset is made of.

    Every line of the store is accounted for: ``lines`` = ``records`` + rejected +
    ``other_workloads``, and ``records`` = duplicates + ``over_limit`` + the splits + ``unused``.
    """

    fingerprint: str
    workload: str
    client: str | None
    lines: int
    """Lines of the log store that are not blank."""
    records: int
    """Records of this workload (and client), duplicates included."""
    rejected: dict[str, int]
    """Lines that are no Record, by reason, whatever workload they name."""
    other_workloads: int
    """Records that were not asked for."""
    masked: dict[str, int]
    """Different values masked per record, by type, summed over ``records``."""
    duplicates: dict[str, int]
    """Records dropped for a newer one, ``exact`` or ``normalised``."""
    over_limit: int
    """Records dropped by ``dataset.limit``."""
    splits: dict[str, int]
    unused: int
    """Records of the eval side beyond ``eval_size``: never trained on."""
    class_mix: dict[str, dict[str, int]]
    """Records by class, per split."""
    leak_check: dict[str, dict[str, int]]
    """Requests that two splits share, exactly and normalised; 0 everywhere."""
    time_range: tuple[float, float]
    """Oldest and newest curated record, seconds since the epoch."""
    production: dict[str, int]
    """Logged token usage of the curated records: ``requests`` that logged it and their sums."""
    split_rule: Json
    code_version: str

    def to_json(self) -> Json:
        """The content of ``manifest.json``."""
        return {**asdict(self), "time_range": list(self.time_range)}

    @classmethod
    def from_json(cls, data: Json) -> Manifest:
        """Inverse of `to_json`."""
        first, last = data["time_range"]
        return cls(**{**data, "time_range": (first, last)})

    @property
    def curated(self) -> int:
        """Records that remain after duplicates and limit."""
        return sum(self.splits.values()) + self.unused


def normal_text(text: str) -> str:
    """A query without case, spacing and closing marks."""
    return " ".join(text.casefold().split()).rstrip(".?! ")


def tool_of(record: Record) -> str:
    """The first tool production called, or ``no_tool``."""
    calls = record.answer.get("tool_calls")
    name: str = calls[0]["function"]["name"] if calls else NO_TOOL
    return name


def conversation_of(record: Record) -> str:
    """A hash of the conversation or session that the request's metadata names; else empty."""
    metadata = record.request.get("metadata")
    if not isinstance(metadata, dict):
        return ""
    for name in ("conversation_id", "session_id"):
        value = metadata.get(name)
        if isinstance(value, str | int) and str(value):
            return content_hash([name, str(value)])
    return ""


def divide(keys: Sequence[Keys], config: DatasetConfig) -> Division:
    """All of it in order: group, drop duplicates, limit, label, split.

    Groups come first: a link that a dropped duplicate makes still counts.

    Raises:
        DataError: Too few records are left.
    """
    groups = places(keys, config.random_seed)
    unique, duplicates = deduplicate(keys)
    kept = limited(keys, unique, config)
    if len(kept) < config.min_total_records:
        raise DataError(
            f"{len(kept)} of {len(keys)} records are left once duplicates are dropped, fewer than "
            f"dataset.min_total_records ({config.min_total_records})"
        )
    labels = dict(zip(kept, classes([keys[i] for i in kept], config.label_limit), strict=True))
    splits = split(keys, groups, labels, config)
    return Division(splits, labels, dict(duplicates), len(unique) - len(kept))


def classes(keys: Sequence[Keys], label_limit: int) -> list[str]:
    """The class of each record of one workload.

    Tools where any record calls one; else the answer itself where there are at most
    ``label_limit`` different ones; else everything is `TEXT`.
    """
    if any(key.tool != NO_TOOL for key in keys):
        return [key.tool for key in keys]
    if len({key.text for key in keys}) <= label_limit:
        return [key.text for key in keys]
    return [TEXT] * len(keys)


def deduplicate(keys: Sequence[Keys]) -> tuple[list[int], Counter[str]]:
    """Keep the newest record of equal requests (of two as new, the higher id).

    Returns:
        Positions that remain, and how many were dropped as ``exact`` and ``normalised``.
    """
    unique = _newest(keys, range(len(keys)), lambda key: key.exact)
    kept = _newest(keys, unique, lambda key: key.normalised)
    dropped = Counter(exact=len(keys) - len(unique), normalised=len(unique) - len(kept))
    return kept, dropped


def places(keys: Sequence[Keys], seed: int) -> list[float]:
    """Where each record's group lies in 0..1; the records of a group share one place.

    Call it with all records, duplicates included: a link that a duplicate makes still counts.
    """
    links = _Links()
    for key in keys:
        links.join(("prompt", key.prompt), ("identity", key.identity))
    lowest: dict[Hashable, float] = {}
    for key in keys:
        group = links.find(("prompt", key.prompt))
        place = keyed_hash(seed, "place", key.identity)
        lowest[group] = min(place, lowest.get(group, 1.0))
    return [lowest[links.find(("prompt", key.prompt))] for key in keys]


def keyed_hash(seed: int, purpose: str, text: str) -> float:
    """A number in 0..1 that only seed, purpose and text decide."""
    data = "\0".join((str(seed), purpose, text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def limited(keys: Sequence[Keys], kept: Sequence[int], config: DatasetConfig) -> list[int]:
    """At most ``limit`` of the positions, chosen by hash."""
    if config.limit is None or len(kept) <= config.limit:
        return list(kept)
    return sorted(kept, key=_hash_order(keys, config.random_seed))[: config.limit]


def split(
    keys: Sequence[Keys],
    places: Sequence[float],
    labels: Mapping[int, str],
    config: DatasetConfig,
) -> Splits:
    """Divide records by `SPLIT_RULE`.

    Args:
        keys: All records.
        places: Their groups' places, from `places`.
        labels: The classes of those that take part, by position.
        config: Sizes, shares and seed.

    Raises:
        DataError: Nothing is left for eval or for train.
    """
    eval_side = {i for i in labels if places[i] < config.eval_share}
    train_side = labels.keys() - eval_side
    in_order = sorted(eval_side, key=_hash_order(keys, config.random_seed))
    chosen = _choose(in_order, labels, config.eval_size)
    val = _choose_groups(train_side, places, labels, config.val_ratio)
    parts = (chosen, train_side - val, val, eval_side - chosen)
    result = Splits(*(sorted(part, key=lambda i: keys[i].id) for part in parts))
    _check_filled(result, len(labels), config)
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


def leak_check(keys: Sequence[Keys], splits: Splits) -> dict[str, dict[str, int]]:
    """Count requests that stand in two splits, for every pair of splits."""
    forms: dict[str, Callable[[Keys], str]] = {
        "exact": lambda key: key.exact,
        "normalised": lambda key: key.prompt,
    }
    found: dict[str, dict[str, int]] = {}
    for one, other in combinations(SPLITS, 2):
        found[f"{one}/{other}"] = {
            name: len({form(keys[i]) for i in splits[one]} & {form(keys[i]) for i in splits[other]})
            for name, form in forms.items()
        }
    return found


def rule(config: DatasetConfig) -> Json:
    """How the splits were made, for the manifest and the fingerprint."""
    parameters = config.model_dump(mode="json", exclude={"min_total_records"})
    return {"rule": SPLIT_RULE, **parameters}


def _normal_message(message: Json) -> Json:
    if message["role"] != "user":
        return message
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": normal_text(content)}
    return {**message, "content": [_normal_part(part) for part in content]}


def _normal_part(part: Json) -> Json:
    text = part.get("text")
    return {**part, "text": normal_text(text)} if isinstance(text, str) else part


def _newest(
    keys: Sequence[Keys], positions: Iterable[int], form: Callable[[Keys], str]
) -> list[int]:
    newest: dict[str, int] = {}
    for i in positions:
        best = newest.setdefault(form(keys[i]), i)
        if (keys[i].timestamp, keys[i].id) > (keys[best].timestamp, keys[best].id):
            newest[form(keys[i])] = i
    return sorted(newest.values())


def _choose(in_order: Iterable[int], labels: Mapping[int, str], size: int) -> set[int]:
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for i in in_order:
        by_class[labels[i]].append(i)
    seats = apportion(size, {name: len(own) for name, own in by_class.items()})
    return {i for name, own in by_class.items() for i in own[: seats[name]]}


def _choose_groups(
    positions: Collection[int], places: Sequence[float], labels: Mapping[int, str], ratio: float
) -> set[int]:
    groups: defaultdict[float, list[int]] = defaultdict(list)
    for i in positions:
        groups[places[i]].append(i)
    # A group counts for the class that most of its records have.
    common = {place: _most_common(labels[i] for i in group) for place, group in groups.items()}
    sizes: Counter[str] = Counter()
    for place, group in groups.items():
        sizes[common[place]] += len(group)
    left = apportion(int(ratio * len(positions)), sizes)
    chosen: set[int] = set()
    for place in sorted(groups):
        if len(groups[place]) <= left[common[place]]:
            left[common[place]] -= len(groups[place])
            chosen.update(groups[place])
    return chosen


def _most_common(names: Iterable[str]) -> str:
    counts = Counter(names)
    return min(counts, key=lambda name: (-counts[name], name))


def _hash_order(keys: Sequence[Keys], seed: int) -> Callable[[int], Any]:
    return lambda i: (keyed_hash(seed, "order", keys[i].prompt), keys[i].id)


def _check_filled(splits: Splits, total: int, config: DatasetConfig) -> None:
    empty = [name for name in ("eval", "train") if not splits[name]]
    if empty:
        raise DataError(
            f"{total} records leave none for {' and '.join(empty)} at dataset.eval_share "
            f"{config.eval_share}; add logs, or change eval_share or random_seed"
        )


class _Links:
    """Union-find: which keys belong together."""

    def __init__(self) -> None:
        self._parents: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        root = key
        while (parent := self._parents.setdefault(root, root)) != root:
            root = parent
        while self._parents[key] != root:
            self._parents[key], key = root, self._parents[key]
        return root

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parents[self.find(one)] = self.find(other)
