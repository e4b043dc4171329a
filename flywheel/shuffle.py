"""Rows on their way from the order they were read in to the order they are kept in.

A worker that reads logs writes parts: rows sorted by id, in small batches, in Arrow's IPC format.
A worker that writes a dataset takes the rows it needs out of all parts; ids are hashes, so what
belongs together lies in a few neighbouring batches of each part. No process ever holds more than
its own share of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flywheel.storage import Storage

_BATCH = 512
"""Rows that are read together."""
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def write_part(scratch: Storage, name: str, rows: pa.Table) -> None:
    """Write one part; all dictionaries of a column become one."""
    table = rows.unify_dictionaries().combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table, max_chunksize=_BATCH)
    scratch.write_scratch(name, sink.getvalue())


def take(
    scratch: Storage,
    parts: Sequence[str],
    part: npt.NDArray[np.int32],
    row: npt.NDArray[np.int32],
    columns: Sequence[str],
) -> pa.Table:
    """Rows by where they stand, in that order.

    Args:
        scratch: Where the parts are.
        parts: Their names.
        part: Which of them each wanted row stands in.
        row: Its number there.
        columns: What of it is wanted.
    """
    order = np.lexsort((row, part))
    numbers, starts = np.unique(part[order], return_index=True)
    found = []
    for number, rows in zip(numbers.tolist(), np.split(row[order], starts[1:]), strict=True):
        with _opened(scratch, parts[number], columns) as reader:
            found += list(_rows_of(reader, rows))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_tables(found).unify_dictionaries().combine_chunks().take(back).select(columns)


def _rows_of(reader: Any, rows: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
    batches, starts = np.unique(rows // _BATCH, return_index=True)
    for number, wanted in zip(batches.tolist(), np.split(rows % _BATCH, starts[1:]), strict=True):
        batch = reader.get_batch(number)
        yield pa.Table.from_batches([batch.take(pa.array(wanted))])


@contextmanager
def _opened(scratch: Storage, name: str, columns: Sequence[str]) -> Iterator[Any]:
    """Of columns that are not wanted nothing is read."""
    with scratch.open(name) as file:
        with pa.ipc.open_file(file) as reader:
            wanted = [reader.schema.get_field_index(column) for column in columns]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        with pa.ipc.open_file(file, options=options) as reader:
            yield reader
