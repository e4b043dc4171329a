"""The manifest: what a dataset is made of, written last and read by people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a dataset is made of.

    Every line of the store is accounted for: ``lines`` = ``records`` + rejected +
    ``other_workloads``, and ``records`` = duplicates + rejected contradictions + ``over_limit`` +
    the splits + ``unused``.
    """

    fingerprint: str
    workload: str
    client: str | None
    lines: int
    """Lines of the log store that are not blank."""
    records: int
    """Records of this workload (and client, and time window), duplicates included."""
    rejected: dict[str, int]
    """Lines that are no Record, by reason, whatever workload they name."""
    other_workloads: int
    """Records that were not asked for."""
    normalised: dict[str, int]
    """Records in which something was changed to make them one, by what it was."""
    masked: dict[str, int]
    """Different values masked per record, by type, summed over ``records``."""
    duplicates: dict[str, int]
    """Records dropped for a newer one: ``exact``, ``normalised``, ``near``."""
    contradictions: dict[str, int]
    """``requests`` answered in several ways, their ``records``, and those ``rejected`` for it."""
    over_limit: int
    """Records dropped by ``dataset.limit``."""
    splits: dict[str, int]
    unused: int
    """Records of the eval side that were not chosen: never trained on."""
    class_mix: dict[str, dict[str, int]]
    """Records by class: per split, and before (``curated``)."""
    rare_classes: dict[str, str]
    """Classes too rare for both sides, and the split they are missing from: ``eval``, ``train``."""
    leak_check: dict[str, dict[str, int]]
    """What two splits share: ``exact`` and ``normalised`` requests, the user's ``text``, ``near``
    duplicates of it; 0 everywhere."""
    time_ranges: dict[str, tuple[float, float] | None]
    """Oldest and newest record per split and of all ``curated``, seconds since the epoch."""
    production: dict[str, int]
    """Logged token usage of the curated records: ``requests`` that logged it and the sums of their
    ``prompt_tokens``, of those the ``cached_tokens``, and ``completion_tokens``."""
    split_rule: Json
    code_version: str

    def to_json(self) -> Json:
        """The content of ``manifest.json``."""
        ranges = {name: list(span) if span else None for name, span in self.time_ranges.items()}
        return {**asdict(self), "time_ranges": ranges}

    @classmethod
    def from_json(cls, data: Json) -> Manifest:
        """Inverse of `to_json`."""
        spans = data["time_ranges"].items()
        ranges = {name: (span[0], span[1]) if span else None for name, span in spans}
        return cls(**{**data, "time_ranges": ranges})

    @property
    def curated(self) -> int:
        """Records that remain after duplicates and limit."""
        return sum(self.splits.values()) + self.unused
