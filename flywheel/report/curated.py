"""The curation funnel: from lines of the log to records per split, with what left on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the funnel: what was left, and what left before it."""

    name: str
    count: int
    share: float
    """Of the log's lines, in percent."""
    lost: str


def funnel(manifest: Mapping[str, Any]) -> list[Step]:
    """What was curated, from lines of the log to records per split."""
    lines = manifest.get("lines", 0)
    splits = manifest.get("splits", {})
    distinct = total(splits) + manifest.get("unused", 0)
    losses = {
        "rejected": total(manifest.get("rejected", 0)),
        "of other workloads": manifest.get("other_workloads", 0),
    }
    duplicates = manifest.get("duplicates", {})
    repeats = {
        **{f"{kind} duplicates": count for kind, count in duplicates.items()},
        "contradicting": manifest.get("contradictions", {}).get("rejected", 0),
        "over the limit": manifest.get("over_limit", 0),
    }
    stages = [
        ("log lines", lines, {}),
        ("records", manifest.get("records", 0), losses),
        ("distinct", distinct, repeats),
        *((name, count, {}) for name, count in splits.items()),
        ("unused", manifest.get("unused", 0), {}),
    ]
    return [
        Step(name, count, 100 * count / max(lines, 1), _lost(left)) for name, count, left in stages
    ]


def total(counts: Any) -> int:
    """Sum a count, or a mapping of counts however deep."""
    if isinstance(counts, Mapping):
        return sum(map(total, counts.values()))
    return int(counts)


def _lost(left: Mapping[str, int]) -> str:
    return ", ".join(f"−{count:,} {name}" for name, count in left.items() if count)
