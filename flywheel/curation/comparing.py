"""The second pass: near-duplicates that the keys suggest are verified on their texts by workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from flywheel import shuffle
from flywheel.config import DatasetConfig
from flywheel.curation.reading import Logs, Progress
from flywheel.datasets import minhash
from flywheel.datasets.duplicates import Edges
from flywheel.spread import over
from flywheel.storage import Storage
from flywheel.types import Json

COMPARING = "comparing texts"

_PAIRS_PER_TASK = 20_000
_TEXTS_PER_TASK = 5_000


def near_duplicates(logs: Logs, config: DatasetConfig, scratch: Storage, tell: Progress) -> Edges:
    """Verified near-duplicates: positions of two records, one for each distinct text."""
    none = np.empty((0, 2), np.int64)
    if config.near_duplicates is None or logs.bands is None:
        return none
    texts, first = np.unique(logs.keys.text, return_index=True)
    first = first[texts != 0]
    pairs, large = minhash.buckets(logs.bands[first])
    logs.bands = None  # nobody asks again, and they are a quarter of what the driver holds
    if not len(pairs) and not large:
        return none
    tasks = _comparisons(logs, first, pairs, large, scratch)
    found = [none]
    tell(COMPARING, 0, len(tasks))
    for done, result in enumerate(over(tasks, _compare, config.near_duplicates), start=1):
        found.append(np.frombuffer(result["pairs"], np.int64).reshape(-1, 2))
        tell(COMPARING, done, len(tasks))
    return np.take(first, minhash.distinct(np.concatenate(found)))


def _comparisons(
    logs: Logs,
    first: npt.NDArray[np.int64],
    pairs: minhash.Pairs,
    large: list[npt.NDArray[np.int64]],
    scratch: Storage,
) -> list[Json]:
    """What each worker compares: candidate pairs and large buckets, with the texts."""
    involved = np.unique(np.concatenate([pairs.ravel(), *large]))
    where = first[involved]
    wanted = (logs.part[where], logs.row[where])
    texts = shuffle.take(scratch, logs.parts, *wanted, ["text"])["text"]
    slices = [pairs[i : i + _PAIRS_PER_TASK] for i in range(0, len(pairs), _PAIRS_PER_TASK)]
    tasks = []
    for buckets in [*([one] for one in slices), *_together(large)]:
        own = np.unique(np.concatenate([one.ravel() for one in buckets]))
        mine = texts.take(np.searchsorted(involved, own)).to_pylist()
        kind = "buckets" if buckets[0].ndim == 1 else "pairs"
        members = [one.tobytes() for one in buckets]
        tasks.append({"kind": kind, "members": members, "own": own.tobytes(), "texts": mine})
    return tasks


def _together(
    buckets: list[npt.NDArray[np.int64]],
) -> Iterator[list[npt.NDArray[np.int64]]]:
    """Buckets by the task, of about as many texts each; a larger one is a task of its own."""
    gathered: list[npt.NDArray[np.int64]] = []
    for bucket in buckets:
        if gathered and sum(map(len, gathered)) + len(bucket) > _TEXTS_PER_TASK:
            yield gathered
            gathered = []
        gathered.append(bucket)
    if gathered:
        yield gathered


def _compare(item: Json, threshold: float) -> Iterator[Json]:
    """Runs in a worker."""
    own = np.frombuffer(item["own"], np.int64).tolist()
    texts = dict(zip(own, item["texts"], strict=True))
    members = [np.frombuffer(one, np.int64) for one in item["members"]]
    if item["kind"] == "pairs":
        found = [minhash.verified(one.reshape(-1, 2), texts, threshold) for one in members]
    else:
        found = [minhash.joined(one, texts, threshold) for one in members]
    yield {"pairs": np.concatenate(found).tobytes()}
