"""From a log store to a Dataset on disk, in three passes over a cluster with Ray Data.

1. `reading`: readers parse, filter and mask their shards of the store (`flywheel.intake`), write
   the rows to scratch parts and send back the rows' keys: raw text never leaves them.
2. The driver decides by keys alone who is a duplicate and who stands where (`flywheel.datasets`);
   `comparing`: near-duplicates that the keys suggest are verified on their texts by workers.
3. `writing`: writers take each split's rows out of the parts, in order of their ids, and write the
   shards; the manifest (`accounting`) comes last.

Memory is bounded by shards and parts, not by the logs; the driver holds some 150 bytes a record.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from flywheel import datasets
from flywheel.config import Experiment
from flywheel.curation.accounting import account
from flywheel.curation.comparing import COMPARING, near_duplicates
from flywheel.curation.reading import READING, Logs, Progress, Reading, read
from flywheel.curation.workplace import workplace
from flywheel.curation.writing import WRITING, write
from flywheel.datasets import Division, Keys, Manifest
from flywheel.datasets.duplicates import Edges
from flywheel.errors import DataError
from flywheel.storage import Storage
from flywheel.types import Record

__all__ = ["COMPARING", "READING", "WRITING", "Progress", "curate", "load_manifest", "load_split"]

_NAMES_SHOWN = 10


def curate(
    experiment: Experiment,
    storage: Storage,
    progress: Progress | None = None,
    readers: int | None = None,
) -> Manifest:
    """Make the dataset that an experiment asks for, under ``datasets/<fingerprint>``.

    Curating the same logs again writes nothing. After a stop, what was read of files that are still
    the same is not read again.

    Args:
        experiment: Names the log store, the workload and the split rule.
        storage: Where the run keeps its files; every node must reach the log store.
        progress: Told how far each stage is.
        readers: How many read at once; default: one for each CPU of the cluster. It decides
            nothing but speed.

    Raises:
        DataError: No logs there, none of this workload, or too few of it.
    """
    tell = progress or (lambda stage, done, total: None)
    reading = Reading.of(experiment, readers)
    with workplace(storage, reading.key) as scratch:
        logs = read(reading, scratch, tell)
        _check_workload(experiment, logs)
        edges = near_duplicates(logs, experiment.dataset, scratch, tell)
        division = _divide(experiment, logs.keys, edges, storage)
        manifest = account(experiment, logs, edges, division)
        folder = storage.at("datasets", manifest.fingerprint)
        if not _holds(folder, manifest):
            write(folder, logs, division, scratch, tell)
            folder.write_json("manifest.json", manifest.to_json())
    return manifest


def load_manifest(storage: Storage, fingerprint: str) -> Manifest:
    """The manifest of a finished dataset.

    Raises:
        StorageError: There is none.
    """
    return Manifest.from_json(storage.at("datasets", fingerprint).read_json("manifest.json"))


def load_split(storage: Storage, fingerprint: str, split: str) -> list[Record]:
    """The records of ``eval``, ``train`` or ``val``, in order of their ids."""
    rows = storage.at("datasets", fingerprint).read_table(split).to_pylist()
    return [Record.from_row(row) for row in rows]


def _check_workload(experiment: Experiment, logs: Logs) -> None:
    if len(logs):
        return
    tally = logs.tally
    wanted = f"{experiment.logs}: no record of {experiment.workload}"
    if tally.outside:
        raise DataError(f"{wanted} from since to until; there are {tally.outside} outside")
    if tally.other_clients:
        raise DataError(f"{wanted} by {experiment.client}; {_names(tally.other_clients)}")
    raise DataError(f"{wanted}; {_names(tally.others)}")


def _names(counts: Counter[str]) -> str:
    shown = [f"{name[:80]!r} ({n})" for name, n in counts.most_common(_NAMES_SHOWN)]
    more = f" and {len(counts) - _NAMES_SHOWN} more" if len(counts) > _NAMES_SHOWN else ""
    return f"there are {', '.join(shown)}{more}" if shown else "there are no valid records at all"


def _divide(experiment: Experiment, keys: Keys, edges: Edges, storage: Storage) -> Division:
    config = experiment.dataset
    frozen = None
    if config.frozen_dataset:
        ids = storage.at("datasets", config.frozen_dataset).read_table("eval")["id"].to_pylist()
        frozen = np.array([int(name, 16) for name in ids], np.uint64)
    try:
        return datasets.divide(keys, edges, config, frozen)
    except DataError as error:
        raise DataError(f"{experiment.workload}: {error}") from None


def _holds(folder: Storage, manifest: Manifest) -> bool:
    name = "manifest.json"
    return folder.exists(name) and folder.read_json(name) == manifest.to_json()
