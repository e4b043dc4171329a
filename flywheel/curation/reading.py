"""The first pass: readers parse, filter and mask their shards of the store.

Each writes its rows to scratch parts, and the rows' keys beside them: raw text never leaves it. The
driver reads the keys of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel import __version__, shuffle
from flywheel.config import DatasetConfig, Experiment
from flywheel.datasets import Keys
from flywheel.datasets.keys import gathered
from flywheel.datasets.minhash import Banding
from flywheel.intake import REJECTIONS, USAGE, Harvest, Intake, Tally
from flywheel.spread import over
from flywheel.storage import Storage
from flywheel.stores import LogStore, Query, Shard, open_store
from flywheel.types import Json, content_hash

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""

READING = "reading logs"

_FORMAT = 2
"""Of what readers leave to a later try; counted up where it changes."""
_PART_ROWS = 32_768
_PART_BYTES = 64 * 2**20


class Logs:
    """What the readers brought back; record i stands in part ``part[i]`` at ``row[i]``."""

    def __init__(self, results: list[Json], scratch: Storage) -> None:
        results.sort(key=lambda result: result["part"])
        self.tally = Tally()
        for result in results:
            self.tally.add(Tally.from_json(json.loads(result["tally"])))
        filled = [result for result in results if result["part"]]
        self.parts = [result["part"] for result in filled]
        sizes = [result["rows"] for result in filled]
        self.part = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.row = np.concatenate([np.arange(n, dtype=np.int32) for n in [*sizes, 0]])
        found = gathered((_read_keys(scratch, part) for part in self.parts), sum(sizes))
        self.keys = Keys.among(found) if filled else Keys.of([])
        self.usage = {name: found[name] for name in USAGE if filled}
        """Tokens of each record; -1 where the log does not tell."""
        self.bands = found.get("bands")
        rejections = [_from_bytes(result.pop("rejections")) for result in results]
        order = [("source", "ascending"), ("offset", "ascending")]
        self.rejections = pa.concat_tables([REJECTIONS.empty_table(), *rejections]).sort_by(order)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and how. Plain data, so that it travels."""

    store: LogStore
    query: Query
    shards: list[Shard]
    options: Json
    """`Intake`'s."""
    key: str | None
    """The same for the same shards of the same lines read in the same way, if that can be told."""

    @classmethod
    def of(cls, experiment: Experiment, readers: int | None) -> Reading:
        """Look at the store and cut it into shards."""
        import ray

        config, store = experiment.dataset, open_store(experiment.logs)
        query = Query(experiment.workload, experiment.client, *config.window)
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        state, shards = store.state(), store.shards(query, readers or cpus)
        options = {
            "masking": config.masking,
            "keep_violations": config.schema_violations == "keep",
            "banding": _banding(config),
        }
        parts = [asdict(query), [asdict(shard) for shard in shards], repr(options)]
        key = None if state is None else content_hash([__version__, _FORMAT, state, *parts])
        return cls(store, query, shards, options, key)


def read(reading: Reading, scratch: Storage, tell: Progress) -> Logs:
    """Read all shards in parallel, but those that an earlier try finished."""
    total = max(1, sum(shard.size for shard in reading.shards))
    tell(READING, 0, 100)  # per cent: bytes or documents, as the store counts
    items = [{"number": number, **asdict(shard)} for number, shard in enumerate(reading.shards)]
    finished = {item["number"]: scratch.exists(_result(item["number"])) for item in items}
    results = [
        result
        for number, there in finished.items()
        if there
        for result in scratch.read_table(_result(number)).to_pylist()
    ]
    missing = [item for item in items if not finished[item["number"]]]
    where = (reading.store, reading.query, reading.options)
    for result in over(missing, _read_shard, *where, scratch):
        results.append(result)
        done = sum(one["size"] for one in results)
        tell(READING, 100 * done // total, 100)
    return Logs(results, scratch)


def _result(number: int) -> str:
    return f"{number:06d}.parquet"


def _read_shard(
    item: Json, store: LogStore, query: Query, options: Json, scratch: Storage
) -> Iterator[Json]:
    """Runs in a worker: one shard of the store, part by part; the last is told with its size."""
    shard = Shard(item["source"], item["start"], item["end"], item["size"])
    results = []
    for result in _parts(item["number"], shard, store, query, Intake(query, **options), scratch):
        results.append(result)
        yield result
    scratch.write_table(_result(item["number"]), pa.Table.from_pylist(results))


def _parts(
    number: int, shard: Shard, store: LogStore, query: Query, intake: Intake, scratch: Storage
) -> Iterator[Json]:
    gathered: list[Harvest] = []
    count = 0
    for chunk in store.scan(shard, query):
        gathered.append(intake.take(chunk))
        if _full(gathered):
            yield _part(gathered, f"{number:06d}-{count:06d}", scratch, 0)
            gathered, count = [], count + 1
    yield _part(gathered, f"{number:06d}-{count:06d}", scratch, shard.size)


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
        return {"part": "", "rows": 0, **told}
    keys = pa.concat_tables([harvest.keys for harvest in filled])
    order = pc.sort_indices(keys["id"])
    rows = pa.concat_tables([harvest.rows for harvest in filled]).unify_dictionaries()
    shuffle.write_part(scratch, name, rows.combine_chunks().take(order))
    scratch.write_scratch(_keys(name), _to_bytes(keys.take(order)))
    return {"part": name, "rows": keys.num_rows, **told}


def _banding(config: DatasetConfig) -> Banding | None:
    threshold = config.near_duplicates
    return None if threshold is None else Banding.for_threshold(threshold)


def _keys(part: str) -> str:
    return f"{part}.keys"


def _read_keys(scratch: Storage, part: str) -> pa.Table:
    return _from_bytes(scratch.read_bytes(_keys(part)))


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
