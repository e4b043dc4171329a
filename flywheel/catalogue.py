"""What datasets a storage holds, and what changed from one to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flywheel.curation import load_manifest
from flywheel.datasets import SPLITS, Manifest
from flywheel.errors import RequestError
from flywheel.storage import Storage
from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Difference:
    """From an old dataset to a new one."""

    old: Manifest
    new: Manifest
    came: dict[str, int] = field(default_factory=dict)
    """Records per split that the old dataset holds in none."""
    left: dict[str, int] = field(default_factory=dict)
    """Records per split that the new dataset holds in none."""
    stayed: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    """Records by ``from -> to`` split."""
    rule: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Fields of the split rule that differ: before, after."""

    def to_json(self) -> Json:
        """For programs."""
        changed = {name: list(pair) for name, pair in self.rule.items()}
        figures = {name: getattr(self, name) for name in ("came", "left", "stayed", "moved")}
        return {
            "old": self.old.fingerprint,
            "new": self.new.fingerprint,
            **figures,
            "class_mix": {"old": self.old.class_mix, "new": self.new.class_mix},
            "rule": changed,
        }


def manifests(storage: Storage) -> list[Manifest]:
    """All finished datasets of a storage, by workload and the age of their newest record."""
    folder = storage.at("datasets")
    found = [
        load_manifest(storage, name)
        for name in folder.names()
        if folder.exists(f"{name}/manifest.json")
    ]
    return sorted(found, key=lambda m: (m.workload, m.time_ranges["curated"], m.fingerprint))


def find(storage: Storage, name: str) -> Manifest:
    """The dataset whose fingerprint begins so.

    Raises:
        RequestError: None does, or several do.
    """
    known = [m for m in manifests(storage) if m.fingerprint.startswith(name)]
    if len(known) != 1:
        there = ", ".join(m.fingerprint for m in known or manifests(storage)) or "none"
        what = "several datasets begin with" if known else "no dataset begins with"
        raise RequestError(f"{storage.url}: {what} {name}; there are: {there}")
    return known[0]


def difference(storage: Storage, old: Manifest, new: Manifest) -> Difference:
    """Compare two datasets record by record."""
    before, after = (_places(storage, manifest) for manifest in (old, new))
    found = Difference(old, new, rule=_rule_changes(old.split_rule, new.split_rule))
    for name, split in after.items():
        was = before.get(name)
        if was is None:
            _count(found.came, split)
        elif was == split:
            _count(found.stayed, split)
        else:
            _count(found.moved, f"{was} -> {split}")
    for name, split in before.items():
        if name not in after:
            _count(found.left, split)
    return found


def _places(storage: Storage, manifest: Manifest) -> dict[str, str]:
    folder = storage.at("datasets", manifest.fingerprint)
    return {
        name: split
        for split in SPLITS
        for name in folder.read_table(split, columns=["id"])["id"].to_pylist()
    }


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _rule_changes(old: Json, new: Json) -> dict[str, tuple[Any, Any]]:
    names = [name for name in {**old, **new} if name != "rule"]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}
