"""From a log store to a Dataset on disk, in three passes over a cluster with Ray Data.

1. Readers parse, filter and mask their shards of the store (`flywheel.intake`), write the rows to
   scratch parts and send back the rows' keys: raw text never leaves them.
2. The driver decides by keys alone who is a duplicate and who stands where; near-duplicates that
   the keys suggest are verified on their texts by workers.
3. Writers take each split's rows out of the parts, in order of their ids, and write the shards; the
   manifest comes last.

Memory is bounded by shards and parts, not by the logs; the driver holds some 150 bytes a record.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flywheel import __version__, datasets, shuffle
from flywheel.config import DatasetConfig, Experiment
from flywheel.datasets import SPLITS, Division, Keys, Manifest, minhash
from flywheel.datasets import splits as splitting
from flywheel.datasets.duplicates import Edges
from flywheel.datasets.minhash import Banding
from flywheel.errors import DataError
from flywheel.intake import REJECTIONS, ROWS, USAGE, Harvest, Intake, Tally
from flywheel.spread import over
from flywheel.storage import Storage
from flywheel.stores import LogStore, Query, Shard, open_store
from flywheel.types import Json, Record, canonical_bytes

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""

READING, COMPARING, WRITING = "reading logs", "comparing texts", "writing dataset"

_PART_ROWS = 32_768
_PART_BYTES = 64 * 2**20
_ROWS_PER_SHARD = 10_000
_SHARDS_PER_WRITER = 4
_PAIRS_PER_TASK = 50_000
_TEXTS_PER_TASK = 5_000
_NAMES_SHOWN = 10


class _Logs:
    """What the readers brought back; record i stands in part ``part[i]`` at ``row[i]``."""

    def __init__(self, results: list[Json]) -> None:
        results.sort(key=lambda result: result["part"])
        self.tally = Tally()
        for result in results:
            self.tally.add(Tally.from_json(json.loads(result["tally"])))
        filled = [result for result in results if result["part"]]
        self.parts = [result["part"] for result in filled]
        tables = [_from_bytes(result.pop("keys")) for result in filled]
        sizes = [table.num_rows for table in tables]
        self.part = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.row = np.concatenate([np.arange(n, dtype=np.int32) for n in [*sizes, 0]])
        keys = pa.concat_tables(tables) if tables else None
        self.keys = Keys.from_table(keys) if keys else Keys.of([])
        self.usage = keys.select(USAGE).combine_chunks() if keys else pa.table({})
        self.bands = _bands(keys) if keys else None
        rejections = [_from_bytes(result.pop("rejections")) for result in results]
        order = [("source", "ascending"), ("offset", "ascending")]
        self.rejections = pa.concat_tables([REJECTIONS.empty_table(), *rejections]).sort_by(order)

    def __len__(self) -> int:
        return len(self.keys)


def curate(
    experiment: Experiment,
    storage: Storage,
    progress: Progress | None = None,
    readers: int | None = None,
) -> Manifest:
    """Make the dataset that an experiment asks for, under ``datasets/<fingerprint>``.

    Curating the same logs again writes nothing.

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
    scratch = storage.at(f".scratch-{uuid.uuid4().hex}")
    try:
        logs = _read(open_store(experiment.logs), experiment, scratch, tell, readers)
        _check_workload(experiment, logs)
        edges = _near_duplicates(logs, experiment.dataset, scratch, tell)
        division = _divide(experiment, logs.keys, edges, storage)
        manifest = _manifest(experiment, logs, edges, division)
        folder = storage.at("datasets", manifest.fingerprint)
        if not _holds(folder, manifest):
            _write(folder, logs, division, scratch, tell)
            folder.write_json("manifest.json", manifest.to_json())
    finally:
        scratch.remove("")
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


# -- reading ---------------------------------------------------------------------------------


def _read(
    store: LogStore, experiment: Experiment, scratch: Storage, tell: Progress, readers: int | None
) -> _Logs:
    """Read all shards in parallel."""
    import ray

    config = experiment.dataset
    query = Query(experiment.workload, experiment.client, *config.window)
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    shards = store.shards(query, readers or cpus)
    total, done = max(1, sum(shard.size for shard in shards)), 0
    tell(READING, 0, 100)  # per cent: bytes or documents, as the store counts
    options = {
        "masking": config.masking,
        "keep_violations": config.schema_violations == "keep",
        "banding": _banding(config),
    }
    items = [{"number": number, **asdict(shard)} for number, shard in enumerate(shards)]
    results = []
    for result in over(items, _read_shard, store, query, options, scratch):
        done += result["size"]
        tell(READING, 100 * done // total, 100)
        results.append(result)
    return _Logs(results)


def _read_shard(
    item: Json, store: LogStore, query: Query, options: Json, scratch: Storage
) -> Iterator[Json]:
    """Runs in a worker: one shard of the store, part by part; the last is told with its size."""
    shard = Shard(item["source"], item["start"], item["end"], item["size"])
    intake = Intake(query, **options)
    gathered: list[Harvest] = []
    count = 0
    for chunk in store.scan(shard, query):
        gathered.append(intake.take(chunk))
        if _full(gathered):
            yield _part(gathered, f"{item['number']:06d}-{count:06d}", scratch, 0)
            gathered, count = [], count + 1
    yield _part(gathered, f"{item['number']:06d}-{count:06d}", scratch, shard.size)


def _full(gathered: list[Harvest]) -> bool:
    rows = sum(harvest.rows.num_rows for harvest in gathered)
    size: int = sum(harvest.rows.nbytes for harvest in gathered)
    return bool(rows >= _PART_ROWS or size >= _PART_BYTES)


def _part(gathered: list[Harvest], name: str, scratch: Storage, size: int) -> Json:
    """Write rows to a part, in order of their ids, and tell what is known of them."""
    tally = Tally()
    for harvest in gathered:
        tally.add(harvest.tally)
    rejections = pa.concat_tables(
        [REJECTIONS.empty_table(), *(harvest.rejections for harvest in gathered)]
    )
    told = {
        "rejections": _to_bytes(rejections),
        "tally": json.dumps(tally.to_json()),
        "size": size,
    }
    filled = [harvest for harvest in gathered if harvest.rows.num_rows]
    if not filled:
        return {"part": "", "keys": b"", **told}
    keys = pa.concat_tables([harvest.keys for harvest in filled])
    order = pc.sort_indices(keys["id"])
    rows = pa.concat_tables([harvest.rows for harvest in filled]).unify_dictionaries()
    shuffle.write_part(scratch, name, rows.combine_chunks().take(order))
    return {"part": name, "keys": _to_bytes(keys.take(order)), **told}


def _banding(config: DatasetConfig) -> Banding | None:
    threshold = config.near_duplicates
    return None if threshold is None else Banding.for_threshold(threshold)


def _bands(keys: pa.Table) -> npt.NDArray[np.uint32] | None:
    if "bands" not in keys.column_names:
        return None
    lists = keys["bands"].combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), -1)  # type: ignore[no-any-return]


# -- deciding --------------------------------------------------------------------------------


def _check_workload(experiment: Experiment, logs: _Logs) -> None:
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


def _near_duplicates(logs: _Logs, config: DatasetConfig, scratch: Storage, tell: Progress) -> Edges:
    """Verified near-duplicates: positions of two records, one for each distinct text."""
    none = np.empty((0, 2), np.int64)
    if config.near_duplicates is None or logs.bands is None:
        return none
    texts, first = np.unique(logs.keys.text, return_index=True)
    first = first[texts != 0]
    pairs, large = minhash.buckets(logs.bands[first])
    if not len(pairs) and not large:
        return none
    tasks = _comparisons(logs, first, pairs, large, scratch)
    found = [none]
    tell(COMPARING, 0, len(tasks))
    for done, result in enumerate(over(tasks, _compare, config.near_duplicates), start=1):
        found.append(np.frombuffer(result["pairs"], np.int64).reshape(-1, 2))
        tell(COMPARING, done, len(tasks))
    edges = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return np.take(first, edges)


def _comparisons(
    logs: _Logs,
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


# -- the manifest ----------------------------------------------------------------------------


def _manifest(experiment: Experiment, logs: _Logs, edges: Edges, division: Division) -> Manifest:
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
        production=_usage(logs.usage.take(pa.array(division.curated))),
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


def _usage(curated: pa.Table) -> dict[str, int]:
    logged = curated.filter(pc.and_(*(curated[name].is_valid() for name in USAGE)))
    sums = {name: pc.sum(logged[name]).as_py() or 0 for name in USAGE}
    return {"requests": logged.num_rows, **sums}


def _sorted_counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


# -- writing ---------------------------------------------------------------------------------


def _holds(folder: Storage, manifest: Manifest) -> bool:
    name = "manifest.json"
    return folder.exists(name) and folder.read_json(name) == manifest.to_json()


def _write(
    folder: Storage, logs: _Logs, division: Division, scratch: Storage, tell: Progress
) -> None:
    """Shards of a fixed number of rows.

    Rejections may differ from an earlier run's while the splits are the same; what an earlier run
    left beyond this one's last shard goes.
    """
    tasks = [task for split in SPLITS for task in _writings(split, logs, division)]
    tell(WRITING, 0, len(tasks))
    written = over(tasks, _write_shards, folder, scratch, logs.parts)
    for done, _ in enumerate(written, start=1):
        tell(WRITING, done, len(tasks))
    rejections = logs.rejections
    count = max(1, -(-rejections.num_rows // _ROWS_PER_SHARD))
    for shard in range(count):
        rows = rejections.slice(shard * _ROWS_PER_SHARD, _ROWS_PER_SHARD)
        folder.write_table(f"rejections/part-{shard:05d}.parquet", rows)
    sizes = {split: len(division.splits[split]) for split in SPLITS}
    for name, rows in {**sizes, "rejections": rejections.num_rows}.items():
        _drop_beyond(folder.at(name), max(1, -(-rows // _ROWS_PER_SHARD)))


def _writings(split: str, logs: _Logs, division: Division) -> Iterator[Json]:
    """What each writer writes: some consecutive shards of a split."""
    positions = division.splits[split]
    step = _ROWS_PER_SHARD * _SHARDS_PER_WRITER
    for start in range(0, max(1, len(positions)), step):
        mine = positions[start : start + step]
        yield {
            "split": split,
            "shard": start // _ROWS_PER_SHARD,
            "part": logs.part[mine].tobytes(),
            "row": logs.row[mine].tobytes(),
            "classes": division.classes(mine),
        }


def _write_shards(
    item: Json, folder: Storage, scratch: Storage, parts: list[str]
) -> Iterator[Json]:
    """Runs in a worker."""
    part, row = (np.frombuffer(item[name], np.int32) for name in ("part", "row"))
    filled = len(part) > 0
    rows = shuffle.take(scratch, parts, part, row, ROWS.names) if filled else ROWS.empty_table()
    rows = rows.append_column("class", pa.array(item["classes"], pa.string()))
    for i, start in enumerate(range(0, max(1, rows.num_rows), _ROWS_PER_SHARD)):
        shard = rows.slice(start, _ROWS_PER_SHARD)
        name = f"{item['split']}/part-{item['shard'] + i:05d}.parquet"
        folder.write_table(name, _in_order_of_appearance(shard))
    yield {"written": rows.num_rows}


def _in_order_of_appearance(rows: pa.Table) -> pa.Table:
    """Dictionaries as these rows alone make them, so that equal rows are equal bytes."""
    for i, column in enumerate(rows.schema):
        if pa.types.is_dictionary(column.type):
            whole = rows[i].combine_chunks()
            codes = whole.indices.to_numpy(zero_copy_only=False)
            used = list(dict.fromkeys(codes[~np.isnan(codes)].astype(int).tolist()))
            new = {code: n for n, code in enumerate(used)}
            indices = pa.array(
                [None if np.isnan(code) else new[int(code)] for code in codes], pa.int32()
            )
            values = whole.dictionary.take(pa.array(used, pa.int64()))
            array = pa.DictionaryArray.from_arrays(indices, values)
            rows = rows.set_column(i, column.name, array)
    return rows


def _drop_beyond(folder: Storage, shards: int) -> None:
    kept = {f"part-{shard:05d}.parquet" for shard in range(shards)}
    for left_over in set(folder.names(".parquet")) - kept:
        folder.remove(left_over)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
