"""Raw log lines in, tables out: what a worker does with each chunk of a log store.

Lines become Records (`flywheel.fastlane`, `flywheel.records`) or Rejections; Records of the query
are masked and leave as rows, beside the keys by which the driver will decide about them. Text that
repeats (tools) is stored once per table; one quick search tells what may need masking.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import pyarrow as pa
import re2

from flywheel.datasets import keys
from flywheel.datasets.minhash import Banding, bands
from flywheel.fastlane import FastLane, Plain
from flywheel.records import parse_line
from flywheel.redaction import SUSPICIOUS, redactor
from flywheel.stores import Chunk, Query
from flywheel.types import (
    Json,
    Record,
    Rejection,
    json_text,
    message_bytes,
    record_id,
    tools_digest,
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
USAGE = ("prompt_tokens", "completion_tokens")

_SUSPICIOUS = re2.compile(SUSPICIOUS)
_Row = tuple[tuple[Any, ...], keys.Row, str, tuple[int | None, ...]]
"""A row as it is stored, its keys, the user's text, its token usage."""


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
        plain = [_Texts.of(one) if isinstance(one, Plain) else None for one in wanted]
        suspected = self._suspected(plain)
        return [
            self._row(one, texts, suspicion, tally)
            for one, texts, suspicion in zip(wanted, plain, suspected, strict=True)
        ]

    def _suspected(self, plain: Sequence[_Texts | None]) -> Sequence[bool]:
        """Which of them may hold something to mask; of those that are not plain, all."""
        if self._mode != "on":
            return [self._mode != "off"] * len(plain)
        search = _SUSPICIOUS.search
        return [one is None or bool(search(one.request) or search(one.response)) for one in plain]

    def _row(
        self, one: Plain | Record, texts: _Texts | None, suspected: bool, tally: Tally
    ) -> _Row:
        if isinstance(one, Plain):
            return self._plain_row(one, texts or _Texts.of(one), suspected, tally)
        masked, found = self._redact(one) if suspected else (one, Counter[str]())
        tally.masked.update(found)
        # Ids of two conversations may look alike once masked; unmasked they leave only as a hash.
        return _record_row(masked, one.request)

    def _plain_row(self, one: Plain, texts: _Texts, suspected: bool, tally: Tally) -> _Row:
        """Its tools hold nothing to mask: only what else it says is looked at."""
        if not suspected:
            return _plain_row(one, texts, one.request)
        where = (one.timestamp, one.workload_id, one.client_id)
        masked, found = self._redact(Record(*where, one.request, one.response, id="raw"))
        tally.masked.update(found)
        clean = replace(one, request=masked.request, response=masked.response)
        return _plain_row(clean, _Texts.of(clean), one.request)

    def _tables(self, rows: list[_Row]) -> tuple[pa.Table, pa.Table]:
        stored, deciding, texts, usage = zip(*rows, strict=True) if rows else ([], [], [], [])
        found = keys.table(deciding)
        for i, name in enumerate(USAGE):
            found = found.append_column(name, pa.array([u[i] for u in usage], pa.int64()))
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


class _Texts(NamedTuple):
    """A plain record as it is stored."""

    request: str
    response: str

    @classmethod
    def of(cls, one: Plain) -> _Texts:
        return cls(json_text(one.request), json_text(one.response))


def _plain_row(one: Plain, texts: _Texts, logged: Json) -> _Row:
    where, tools = (one.timestamp, one.workload_id, one.client_id), one.tools.digest
    spoken = message_bytes(one.request["messages"])
    name = record_id(where, one.request, spoken, tools, one.response)
    stored = (name, *where, texts.request, one.tools.text, texts.response)
    request = {**logged, "messages": one.request["messages"]}
    decided = keys.decide(name, one.timestamp, request, spoken, tools, one.answer)
    return stored, *decided, _usage(one.response)


def _record_row(record: Record, logged: Json) -> _Row:
    spoken, tools = message_bytes(record.messages), tools_digest(record.tools)
    request = {**logged, "messages": record.messages}
    decided = keys.decide(record.id, record.timestamp, request, spoken, tools, record.answer)
    return tuple(record.to_row().values()), *decided, _usage(record.response)


def _usage(response: Json) -> tuple[int | None, ...]:
    usage = response.get("usage") or {}
    return tuple(_tokens(usage.get(name)) for name in USAGE)


def _tokens(value: Any) -> int | None:
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if counts else None


def _row_table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(ROWS)
    arrays = [
        _dictionary(column) if f.name == "tools" else pa.array(column, f.type)
        for column, f in zip(columns, ROWS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=ROWS)


def _dictionary(texts: Sequence[str | None]) -> pa.DictionaryArray:
    """Equal texts once. They are mostly the same object, so looking them up costs little."""
    codes = {text: i for i, text in enumerate(dict.fromkeys(t for t in texts if t is not None))}
    indices = pa.array([None if t is None else codes[t] for t in texts], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(codes), pa.large_string()))


def _rejection_table(rejections: Sequence[Rejection]) -> pa.Table:
    return pa.Table.from_pylist([asdict(rejection) for rejection in rejections], REJECTIONS)
