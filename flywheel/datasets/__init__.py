"""From Records to the splits of a dataset: keys, duplicates, groups, classes, sides.

`keys` reads what decides about each Record, `minhash` finds texts that are nearly the same,
`duplicates` drops what repeats, `splits` puts whole groups on one side, and `manifest` accounts
for all of it. Everything here is pure; `flywheel.curation` runs it over a log store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.config import DatasetConfig
from flywheel.datasets import duplicates, splits
from flywheel.datasets.duplicates import Edges, Kept, Positions
from flywheel.datasets.keys import U64, Keys, normal_text, tool_of
from flywheel.datasets.manifest import Manifest
from flywheel.datasets.splits import SPLITS, Splits
from flywheel.errors import DataError
from flywheel.types import Json

__all__ = [
    "SPLITS",
    "Division",
    "Keys",
    "Manifest",
    "Splits",
    "divide",
    "normal_text",
    "rule",
    "tool_of",
]


@dataclass(frozen=True, slots=True)
class Division:
    """What became of every record of a workload."""

    splits: Splits
    curated: Positions
    """All that were kept, sorted."""
    labels: npt.NDArray[Any]
    """The classes of those."""
    kept: Kept
    over_limit: int
    """Dropped by ``limit``."""

    def classes(self, positions: Positions) -> list[str]:
        """The classes of some of the curated records."""
        found: list[str] = self.labels[np.searchsorted(self.curated, positions)].tolist()
        return found


def divide(keys: Keys, edges: Edges, config: DatasetConfig, frozen: U64 | None = None) -> Division:
    """All of it in order: group, drop duplicates, limit, label, split.

    Groups come first: a link that a dropped duplicate makes still counts.

    Args:
        keys: All records of the workload.
        edges: Verified near-duplicates among them.
        config: The dataset rule.
        frozen: See `flywheel.datasets.splits.split`.

    Raises:
        DataError: Too few records are left.
    """
    keys = keys.linked_by(config.group_by)
    groups = splits.groups(keys, edges)
    kept = duplicates.deduplicate(keys, edges, config.contradictions)
    curated = splits.limited(keys, kept.positions, config)
    if len(curated) < config.min_total_records:
        raise DataError(
            f"{len(curated)} of {len(keys)} records are left once duplicates are dropped, fewer "
            f"than dataset.min_total_records ({config.min_total_records})"
        )
    labels = splits.classes(keys, curated, config.label_limit)
    parts = splits.split(keys, curated, labels, groups, config, frozen)
    return Division(parts, curated, labels, kept, len(kept.positions) - len(curated))


def rule(config: DatasetConfig) -> Json:
    """How the splits were made, for the manifest and the fingerprint."""
    parameters = config.model_dump(mode="json", exclude={"min_total_records"})
    text = splits.TIME_RULE if config.mode == "time" else splits.RULE
    return {"rule": text, **parameters}
