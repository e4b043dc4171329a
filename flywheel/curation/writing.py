"""The third pass: writers take each split's rows out of the parts, in order of their ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from flywheel import shuffle
from flywheel.curation.reading import Logs, Progress
from flywheel.datasets import SPLITS, Division
from flywheel.intake import ROWS
from flywheel.spread import over
from flywheel.storage import Storage
from flywheel.types import Json

WRITING = "writing dataset"

_ROWS_PER_SHARD = 10_000
_SHARDS_PER_WRITER = 4


def write(
    folder: Storage, logs: Logs, division: Division, scratch: Storage, tell: Progress
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


def _writings(split: str, logs: Logs, division: Division) -> Iterator[Json]:
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
