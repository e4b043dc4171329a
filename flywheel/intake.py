"""Raw log lines in, tables out: what a worker does with each chunk of a log store.

Lines become Records (`flywheel.fastlane`, `flywheel.records`) or Rejections; Records of the query
are masked and leave as rows, beside the keys by which the driver will decide about them. Text that
repeats (tools) is stored once per table; one quick search tells what may need masking.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from flywheel.datasets import keys
from flywheel.datasets.minhash import Banding, bands
from flywheel.fastlane import FastLane, Plain, Tools
from flywheel.records import parse_line
from flywheel.redaction import redact_said, redactor, suspects
from flywheel.stores import Chunk, Query
from flywheel.types import (
    Json,
    Record,
    Rejection,
    digest,
    json_bytes,
    record_id,
    settings_of,
)

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("timestamp", pa.float64()),
        ("workload_id", pa.string()),
        ("client_id", pa.string()),
        ("request", pa.large_string()),
        ("tools", pa.dictionary(pa.int32(), pa.large_string())),
        ("response", pa.large_string()),
    ]
)
"""A record as `Record.to_row` has it."""

REJECTIONS = pa.schema(
    [
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
USAGE = ("prompt_tokens", "completion_tokens", "cached_tokens")
"""The last where the server tells how many of the first its cache held."""


class _Row(NamedTuple):
    """A record on its way into the tables."""

    id: str
    timestamp: float
    workload_id: str
    client_id: str
    request: bytes
    tools: bytes | None
    response: bytes
    keys: keys.Row
    text: str
    """The user's, normalised."""
    usage: tuple[int | None, ...]


@dataclass(slots=True)
class Tally:
    """What was seen, in numbers."""

    lines: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Records of other workloads."""
    other_clients: Counter[str] = field(default_factory=Counter)
    """Records of the workload by clients that were not asked for."""
    outside: int = 0
    """Records of the workload outside the time window."""
    masked: Counter[str] = field(default_factory=Counter)
    normalised: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Sum up."""
        for part in fields(self):
            mine, more = getattr(self, part.name), getattr(other, part.name)
            setattr(self, part.name, mine + more)

    def to_json(self) -> Json:
        """For the way back from a worker."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_json(cls, data: Json) -> Tally:
        """Inverse of `to_json`."""
        parts: Json = {k: Counter(v) if isinstance(v, dict) else v for k, v in data.items()}
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class Harvest:
    """What a chunk of lines became. ``rows`` and ``keys`` are about the same records in order."""

    rows: pa.Table
    """`ROWS`, and the user's normalised ``text``."""
    keys: pa.Table
    """`keys.SCHEMA`, token usage, and ``bands``."""
    rejections: pa.Table
    tally: Tally


class Intake:
    """Reads chunks for one query."""

    def __init__(
        self,
        query: Query,
        *,
        masking: bool | str = True,
        keep_violations: bool = False,
        banding: Banding | None = None,
    ) -> None:
        """See `flywheel.config.DatasetConfig` for what the options mean."""
        self._query = query
        self._mode = masking if isinstance(masking, str) else "on" if masking else "off"
        self._redact = redactor(self._mode)
        self._keep_violations = keep_violations
        self._banding = banding
        self._lane = FastLane(keep_violations=keep_violations)

    def take(self, chunk: Chunk) -> Harvest:
        """Turn a chunk's lines into rows, keys and rejections."""
        with _no_collections():
            return self._take(chunk)

    def _take(self, chunk: Chunk) -> Harvest:
        tally = Tally(lines=len(chunk.lines))
        rejections: list[Rejection] = []
        wanted: list[Plain | Record] = []
        for i, line in enumerate(chunk.lines):
            parsed = self._lane.parse(line) or parse_line(
                line, chunk.source(i), chunk.offsets[i], keep_violations=self._keep_violations
            )
            if isinstance(parsed, Rejection):
                rejections.append(parsed)
            elif self._asked_for(parsed, tally):
                wanted.append(parsed)
                tally.normalised.update(parsed.normalisations)
        rows = self._rows(wanted, tally)
        return Harvest(*self._tables(rows), _rejection_table(rejections), tally)

    def _asked_for(self, one: Plain | Record, tally: Tally) -> bool:
        query = self._query
        if query.workload is not None and one.workload_id != query.workload:
            tally.others[one.workload_id] += 1
        elif query.client is not None and one.client_id != query.client:
            tally.other_clients[one.client_id] += 1
        elif (query.since is not None and one.timestamp < query.since) or (
            query.until is not None and one.timestamp >= query.until
        ):
            tally.outside += 1
        else:
            return True
        return False

    def _rows(self, wanted: Sequence[Plain | Record], tally: Tally) -> list[_Row]:
        responses = [json_bytes(one.response) for one in wanted]
        suspected = self._suspected(wanted, responses)
        return [
            _plain_row(one, response)
            if isinstance(one, Plain) and i not in suspected
            else self._masked_row(one, response, tally)
            for i, (one, response) in enumerate(zip(wanted, responses, strict=True))
        ]

    def _suspected(
        self, wanted: Sequence[Plain | Record], responses: Sequence[bytes]
    ) -> Collection[int]:
        """Which of them may hold something to mask; of those that are not plain, all."""
        if self._mode != "on":
            return range(0 if self._mode == "off" else len(wanted))
        unknown = [
            b"\n".join([*_unknown(one), response]) if isinstance(one, Plain) else b""
            for one, response in zip(wanted, responses, strict=True)
        ]
        return suspects(unknown)

    def _masked_row(self, one: Plain | Record, response: bytes, tally: Tally) -> _Row:
        if self._mode == "on" and isinstance(one, Plain) and one.settings.clean:
            said = [(message.value, message.text) for message in one.messages]
            masked = redact_said(said, (one.response, response), one.rest())
            if masked is not None:
                messages, answer, found = masked
                tally.masked.update(found)
                changed = one.saying(messages, answer)
                return _plain_row(changed, json_bytes(changed.response))
        return self._whole_row(one, tally)

    def _whole_row(self, one: Plain | Record, tally: Tally) -> _Row:
        """The tools of a plain record hold nothing to mask: only what else it says is looked at."""
        logged = one if isinstance(one, Record) else _without_tools(one)
        masked, found = self._redact(logged)
        tally.masked.update(found)
        tools = one.tools if isinstance(one, Plain) else _tools_of(masked)
        # Ids of two conversations may look alike once masked; unmasked they leave only as a hash.
        return _record_row(masked, tools, keys.links(logged.request))

    def _tables(self, rows: list[_Row]) -> tuple[pa.Table, pa.Table]:
        columns = list(zip(*rows, strict=True)) or [()] * len(_Row._fields)
        *stored, deciding, texts, usage = columns
        found = keys.table(deciding)
        counts = list(zip(*usage, strict=True)) or [()] * len(USAGE)
        for name, column in zip(USAGE, counts, strict=True):
            found = found.append_column(name, pa.array(column, pa.int64()))
        if self._banding is not None:
            values = pa.array(bands(texts, self._banding).ravel(), pa.uint32())
            lists = pa.FixedSizeListArray.from_arrays(values, self._banding.bands)
            found = found.append_column("bands", lists)
        text = pa.array(texts, pa.large_string())
        return _row_table(stored).append_column("text", text), found


@contextmanager
def _no_collections() -> Iterator[None]:
    """Parsed JSON holds no cycles; looking for some takes as long as the parsing itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unknown(one: Plain) -> Iterator[bytes]:
    """What of its request is not yet known to hold nothing to mask."""
    if not one.settings.clean:
        yield json_bytes(one.settings.values)
    for message in one.messages:
        if not message.clean:
            yield message.text


def _plain_row(one: Plain, response: bytes) -> _Row:
    where, tools, settings = (
        (one.timestamp, one.workload_id, one.client_id),
        one.tools,
        one.settings,
    )
    said = [message.said for message in one.messages]
    spoken = [message.whole for message in said]
    name = record_id(where, settings.digest, spoken, tools.digest, one.response)
    decided = keys.decide(name, one.timestamp, said, tools.digest, settings.links, one.answer)
    return _Row(
        name, *where, one.request_text(), tools.text, response, *decided, _usage(one.response)
    )


def _without_tools(one: Plain) -> Record:
    where = (one.timestamp, one.workload_id, one.client_id)
    return Record(*where, one.request, one.response, id="unmasked")


def _tools_of(record: Record) -> Tools:
    text = json_bytes(record.request["tools"]) if "tools" in record.request else None
    return Tools(record.tools, text, digest(record.tools), {})


def _record_row(record: Record, tools: Tools, linked: bytes) -> _Row:
    where = (record.timestamp, record.workload_id, record.client_id)
    request = {name: value for name, value in record.request.items() if name != "tools"}
    said = [keys.Said.of(message) for message in record.messages]
    spoken, settings = [message.whole for message in said], digest(settings_of(request))
    name = record_id(where, settings, spoken, tools.digest, record.response)
    decided = keys.decide(name, record.timestamp, said, tools.digest, linked, record.answer)
    texts = json_bytes(request), tools.text, json_bytes(record.response)
    return _Row(name, *where, *texts, *decided, _usage(record.response))


def _usage(response: Json) -> tuple[int | None, ...]:
    usage = response.get("usage") or {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return (*(_tokens(usage.get(name)) for name in USAGE[:2]), _tokens(cached))


def _tokens(value: Any) -> int | None:
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if counts else None


def _row_table(columns: Sequence[Any]) -> pa.Table:
    """The first columns of `_Row` as a table of `ROWS`."""
    arrays = [
        _dictionary(column)
        if field.name == "tools"
        else _texts(column)
        if pa.types.is_large_string(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, ROWS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=ROWS)


def _texts(column: Sequence[bytes]) -> pa.LargeStringArray:
    """UTF-8 texts as they lie in memory."""
    ends = np.cumsum(np.fromiter(map(len, column), np.int64, len(column)))
    offsets, data = np.append(np.int64(0), ends), b"".join(column)
    return pa.LargeStringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(data))


def _dictionary(texts: Sequence[bytes | None]) -> pa.DictionaryArray:
    """Equal texts once. They are mostly the same object, so looking them up costs little."""
    codes = {text: i for i, text in enumerate(dict.fromkeys(t for t in texts if t is not None))}
    indices = pa.array([None if t is None else codes[t] for t in texts], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, _texts(list(codes)))


def _rejection_table(rejections: Sequence[Rejection]) -> pa.Table:
    return pa.Table.from_pylist([asdict(rejection) for rejection in rejections], REJECTIONS)
