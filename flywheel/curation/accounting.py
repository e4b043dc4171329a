"""What a dataset's manifest says of the records that were read, kept and divided."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel import __version__, datasets
from flywheel.config import Experiment
from flywheel.curation.reading import Logs
from flywheel.datasets import SPLITS, Division, Keys, Manifest
from flywheel.datasets import splits as splitting
from flywheel.datasets.duplicates import Edges
from flywheel.intake import USAGE
from flywheel.types import canonical_bytes


def account(experiment: Experiment, logs: Logs, edges: Edges, division: Division) -> Manifest:
    """Put down where every line of the store went."""
    splits, tally, keys = division.splits, logs.tally, logs.keys
    by_split = {split: splits[split] for split in SPLITS}
    everything = {**by_split, "curated": division.curated}
    mix = {name: _sorted_counts(division.classes(where)) for name, where in everything.items()}
    return Manifest(
        fingerprint=_fingerprint(experiment, keys, division),
        workload=experiment.workload,
        client=experiment.client,
        lines=tally.lines,
        records=len(keys),
        rejected=_sorted_counts(logs.rejections["reason"].to_pylist()),
        other_workloads=tally.others.total() + tally.other_clients.total() + tally.outside,
        normalised=dict(sorted(tally.normalised.items())),
        masked=dict(sorted(tally.masked.items())),
        duplicates=division.kept.duplicates,
        contradictions=division.kept.contradictions,
        over_limit=division.over_limit,
        splits={split: len(where) for split, where in by_split.items()},
        unused=len(splits.unused),
        class_mix=mix,
        rare_classes=_rare(mix),
        leak_check=splitting.leak_check(keys, splits, edges),
        time_ranges={name: _span(keys, where) for name, where in everything.items()},
        production=_usage(logs.usage, division.curated),
        split_rule=datasets.rule(experiment.dataset),
        code_version=__version__,
    )


def _fingerprint(experiment: Experiment, keys: Keys, division: Division) -> str:
    """Names what is in the splits and why; not what was rejected or belongs to others."""
    asked = {"workload": experiment.workload, "client": experiment.client}
    digest = hashlib.sha256(canonical_bytes({**asked, **datasets.rule(experiment.dataset)}))
    for split in SPLITS:
        where = division.splits[split]
        digest.update(canonical_bytes([split, len(where), division.classes(where)]))
        digest.update(keys.id[where].astype("<u8").tobytes())
    return digest.hexdigest()[:16]


def _rare(mix: dict[str, dict[str, int]]) -> dict[str, str]:
    missing = {}
    for name in mix["curated"]:
        absent = [split for split in ("eval", "train") if name not in mix[split]]
        if absent:
            missing[name] = " and ".join(absent)
    return missing


def _span(keys: Keys, where: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    times = keys.timestamp[where]
    return (float(times.min()), float(times.max())) if len(times) else None


def _usage(usage: dict[str, npt.NDArray[Any]], curated: npt.NDArray[np.int64]) -> dict[str, int]:
    tokens = {name: usage[name][curated] for name in USAGE}
    logged = np.logical_and(*(tokens[name] >= 0 for name in USAGE[:2]))
    sums = {name: int(np.maximum(tokens[name][logged], 0).sum()) for name in USAGE}
    return {"requests": int(logged.sum()), **sums}


def _sorted_counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
