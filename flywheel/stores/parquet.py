"""Read Parquet rows as if each were a line of JSON, so that what follows knows one kind of log.

Two layouts are accepted:

- a column ``line`` of text: the log lines themselves;
- the log schema by columns, ``request`` and ``response`` (or ``messages``, for what an importer
  understands) among them. Those may be JSON text, or nested structs; every other column goes along.

In nested structs a key that is null counts as absent: Arrow gives all rows the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel.errors import DataError
from flywheel.stores import Chunk

LINE = "line"
"""The column that holds whole log lines."""

_JSON_COLUMNS = ("request", "response", "messages", "tools")
"""Where text is JSON, not a string."""

_ROWS = 1_000
"""Rows of a chunk."""

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def cut_rows(file: Any, pieces: int) -> list[int]:
    """Rows at which to cut a file into at most ``pieces`` of whole row groups, 0 and the last."""
    starts = _group_starts(pq.ParquetFile(file).metadata)
    step = math.ceil((len(starts) - 1) / pieces) or 1
    return [*starts[:-1:step], starts[-1]]


def read_rows(file: Any, source: str, start: int = 0, end: int = -1) -> Iterator[Chunk]:
    """Rows ``start`` to ``end`` as lines of JSON; -1 for the last. Their offsets are row numbers.

    Raises:
        DataError: The columns are of neither layout.
    """
    table = pq.ParquetFile(file)
    _check_layout(table.schema_arrow.names, source)
    starts = _group_starts(table.metadata)
    end = starts[-1] if end < 0 else end
    groups = [
        i for i in range(len(starts) - 1) if starts[i] < end and starts[i + 1] > max(start, 0)
    ]
    row = starts[groups[0]] if groups else end
    for batch in table.iter_batches(_ROWS, row_groups=groups, use_threads=False):
        skip = max(start - row, 0)
        own = batch.slice(skip, max(end - row - skip, 0))
        if own.num_rows:
            numbers = range(row + skip, row + skip + own.num_rows)
            yield from _chunk(_lines(own), numbers, source)
        row += batch.num_rows


def _group_starts(metadata: pq.FileMetaData) -> list[int]:
    """The first row of each row group, and the number of rows."""
    sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    return list(accumulate(sizes, initial=0))


def _check_layout(names: list[str], source: str) -> None:
    if not {LINE, "request", "messages"} & set(names):
        raise DataError(
            f"{source}: the Parquet columns are {', '.join(names)}; "
            f"they must be {LINE} (JSON text), or timestamp, workload_id, client_id, request and "
            "response (JSON text or structs)"
        )


def _chunk(lines: list[bytes], rows: range, source: str) -> Iterator[Chunk]:
    filled = [(line, row) for line, row in zip(lines, rows, strict=True) if line.strip()]
    if filled:
        yield Chunk([line for line, _ in filled], [row for _, row in filled], source)


def _lines(batch: pa.RecordBatch) -> list[bytes]:
    columns = {name: _values(name, batch.column(name)) for name in batch.schema.names}
    if LINE in columns:
        return [value if isinstance(value, bytes) else b"" for value in columns[LINE]]
    rows = zip(*columns.values(), strict=True)
    return [_ENCODER.encode(dict(zip(columns, row, strict=True))) for row in rows]


def _values(name: str, column: pa.Array) -> list[Any]:
    """A column as Python values that encode as JSON; text of JSON stays the bytes it is."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(name, column.dictionary_decode())
    if pa.types.is_timestamp(kind) and name == "timestamp":
        microseconds = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return list(pc.divide(microseconds, 1e6).to_pylist())
    if not _is_text(kind):
        return [_without_nulls(value) for value in column.to_pylist()]
    # As bytes: a log's text need not be UTF-8, and one bad row must not stop the file.
    texts = column.cast(pa.large_binary()).to_pylist()
    if name == LINE:
        return list(texts)
    read = _json if name in _JSON_COLUMNS else _string
    return [None if text is None else read(text) for text in texts]


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        of(kind)
        for of in (
            types.is_string, types.is_large_string, types.is_string_view,
            types.is_binary, types.is_large_binary, types.is_binary_view,
        )
    )  # fmt: skip


def _json(text: bytes) -> msgspec.Raw | str:
    """One whole JSON value goes in as it is; anything else as a string, which is no request."""
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return _string(text)


def _string(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
