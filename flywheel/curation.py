"""From a log store to a Dataset on disk, with the lines read in parallel by Ray Data.

Workers parse, filter and mask: raw text never leaves them. What comes back is one Arrow table of
Records with their `Keys`, Rejections, and tallies. The driver decides by keys alone who is a
duplicate and who stands where, and writes the splits as Parquet, the manifest last. Only keys
become Python objects there; the Records stay Arrow.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flywheel import __version__, datasets
from flywheel.config import Experiment
from flywheel.datasets import SPLITS, Division, Keys, Manifest
from flywheel.errors import DataError, FlywheelError
from flywheel.records import parse_line
from flywheel.redaction import redact
from flywheel.storage import Storage
from flywheel.stores import LogStore, open_store
from flywheel.types import Json, Record, Rejection, content_hash

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""

READING, WRITING = "reading logs", "writing dataset"

_LINES_PER_TABLE = 2_000
_ROWS_PER_SHARD = 10_000
_NAMES_SHOWN = 10

_RECORD = pa.schema(
    [
        ("id", pa.string()),
        ("timestamp", pa.float64()),
        ("workload_id", pa.string()),
        ("client_id", pa.string()),
        ("request", pa.large_string()),
        ("response", pa.large_string()),
    ]
)
_REJECTION = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_KEYS = [field.name for field in fields(Keys)]
_USAGE = ("prompt_tokens", "completion_tokens")
_ROW = pa.schema(
    [
        *_RECORD,
        *_REJECTION,
        *((name, pa.string()) for name in _KEYS if name not in _RECORD.names),
        *((name, pa.int64()) for name in _USAGE),
        ("tally", pa.string()),
        ("part", pa.string()),
    ]
)
"""One row is a Record (``id`` is set), a Rejection (``source`` is set), a tally (JSON)
of the lines before it, or the end of a ``part``."""


class _Logs:
    """What the workers brought back."""

    def __init__(self, rows: pa.Table) -> None:
        self.records = rows.filter(rows["id"].is_valid())
        self.keys = [Keys(**row) for row in self.records.select(_KEYS).to_pylist()]
        rejections = rows.filter(rows["source"].is_valid()).select(_REJECTION.names)
        order = [("source", "ascending"), ("position", "ascending")]
        self.rejections = rejections.sort_by(order)
        self.lines = 0
        self.others: Counter[str] = Counter()
        """Records of other workloads."""
        self.other_clients: Counter[str] = Counter()
        """Records of this workload by clients that were not asked for."""
        self.masked: Counter[str] = Counter()
        for tally in map(json.loads, rows["tally"].drop_null().to_pylist()):
            self.lines += tally["lines"]
            self.others.update(tally["others"])
            self.other_clients.update(tally["other_clients"])
            self.masked.update(tally["masked"])


def curate(experiment: Experiment, storage: Storage, progress: Progress | None = None) -> Manifest:
    """Make the dataset that an experiment asks for, under ``datasets/<fingerprint>``.

    Curating the same logs again writes nothing.

    Args:
        experiment: Names the log store, the workload and the split rule.
        storage: Where the run keeps its files; every node must reach the log store.
        progress: Told how far each stage is.

    Raises:
        DataError: No logs there, none of this workload, or too few of it.
    """
    tell = progress or (lambda stage, done, total: None)
    logs = _Logs(_read(open_store(experiment.logs), experiment, tell))
    _check_workload(experiment, logs)
    division = _divide(experiment, logs.keys)
    manifest = _manifest(experiment, logs, division)
    folder = storage.at("datasets", manifest.fingerprint)
    if not _holds(folder, manifest):
        tables = {split: _split_table(logs.records, division, split) for split in SPLITS}
        _write(folder, {**tables, "rejections": logs.rejections}, manifest, tell)
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


def _read(store: LogStore, experiment: Experiment, tell: Progress) -> pa.Table:
    """Read all parts in parallel; rows come back in no particular order."""
    import ray.data

    paths = store.paths()
    tables, done = [_ROW.empty_table()], 0
    tell(READING, 0, len(paths))
    with _quiet(), _own_errors():
        items = [{"path": path} for path in paths]
        parts = ray.data.from_items(items, override_num_blocks=len(items))
        parsed = parts.map_batches(
            _parse_parts,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(store, experiment.workload, experiment.client, experiment.dataset.masking),
        )
        for table in parsed.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table)
            done += len(table["part"].drop_null())
            tell(READING, done, len(paths))
    return pa.concat_tables(tables).combine_chunks()


def _parse_parts(
    batch: pa.Table, store: LogStore, workload: str, client: str | None, masking: bool
) -> Iterator[pa.Table]:
    """Runs in a worker: whole parts of the store, in tables of bounded size."""
    for path in batch["path"].to_pylist():
        lines = store.read(path)
        while chunk := list(islice(lines, _LINES_PER_TABLE)):
            yield _parse_lines(chunk, path, workload, client, masking)
        yield _table([{"part": path}])


def _parse_lines(
    lines: list[tuple[int, bytes]], source: str, workload: str, client: str | None, masking: bool
) -> pa.Table:
    rows: list[Json] = []
    others: Counter[str] = Counter()
    other_clients: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    for position, line in lines:
        parsed = parse_line(line, source, position)
        if isinstance(parsed, Rejection):
            rows.append(asdict(parsed))
        elif parsed.workload_id != workload:
            others[parsed.workload_id] += 1
        elif client is not None and parsed.client_id != client:
            other_clients[parsed.client_id] += 1
        else:
            record, found = redact(parsed) if masking else (parsed, Counter[str]())
            masked += found
            rows.append(_row(record, datasets.conversation_of(parsed)))
    tally = {"others": others, "other_clients": other_clients, "masked": masked}
    return _table([*rows, {"tally": json.dumps({**tally, "lines": len(lines)})}])


def _row(record: Record, conversation: str) -> Json:
    # Ids of two conversations may look alike once masked; unmasked they leave only as a hash.
    keys = replace(Keys.of(record), conversation=conversation)
    usage = {name: _tokens(record.usage.get(name)) for name in _USAGE}
    return {**asdict(keys), **record.to_row(), **usage}


def _tokens(value: Any) -> int | None:
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if counts else None


def _table(rows: list[Json]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=_ROW)


def _check_workload(experiment: Experiment, logs: _Logs) -> None:
    if logs.keys:
        return
    wanted = f"{experiment.logs}: no record of {experiment.workload}"
    if logs.other_clients:
        raise DataError(f"{wanted} by {experiment.client}; {_names(logs.other_clients)}")
    raise DataError(f"{wanted}; {_names(logs.others)}")


def _names(counts: Counter[str]) -> str:
    shown = [f"{name[:80]!r} ({n})" for name, n in counts.most_common(_NAMES_SHOWN)]
    more = f" and {len(counts) - _NAMES_SHOWN} more" if len(counts) > _NAMES_SHOWN else ""
    return f"there are {', '.join(shown)}{more}" if shown else "there are no valid records at all"


def _divide(experiment: Experiment, keys: list[Keys]) -> Division:
    try:
        return datasets.divide(keys, experiment.dataset)
    except DataError as error:
        raise DataError(f"{experiment.workload}: {error}") from None


def _manifest(experiment: Experiment, logs: _Logs, division: Division) -> Manifest:
    splits, labels = division.splits, division.labels
    curated = logs.records.take(list(labels))
    times = pc.min_max(curated["timestamp"]).as_py()
    return Manifest(
        fingerprint=_fingerprint(experiment, logs.keys, division),
        workload=experiment.workload,
        client=experiment.client,
        lines=logs.lines,
        records=logs.records.num_rows,
        rejected=_sorted_counts(logs.rejections["reason"].to_pylist()),
        other_workloads=logs.others.total() + logs.other_clients.total(),
        masked=dict(sorted(logs.masked.items())),
        duplicates=division.duplicates,
        over_limit=division.over_limit,
        splits={split: len(splits[split]) for split in SPLITS},
        unused=len(splits.unused),
        class_mix={s: _sorted_counts(labels[i] for i in splits[s]) for s in SPLITS},
        leak_check=datasets.leak_check(logs.keys, splits),
        time_range=(times["min"], times["max"]),
        production=_usage(curated),
        split_rule=datasets.rule(experiment.dataset),
        code_version=__version__,
    )


def _fingerprint(experiment: Experiment, keys: list[Keys], division: Division) -> str:
    """Names what is in the splits and why; not what was rejected or belongs to others."""
    content = {
        split: [[keys[i].id, division.labels[i]] for i in division.splits[split]]
        for split in SPLITS
    }
    asked = {"workload": experiment.workload, "client": experiment.client}
    return content_hash({**content, **asked, **datasets.rule(experiment.dataset)})


def _usage(curated: pa.Table) -> dict[str, int]:
    logged = curated.filter(pc.and_(*(curated[name].is_valid() for name in _USAGE)))
    sums = {name: pc.sum(logged[name]).as_py() or 0 for name in _USAGE}
    return {"requests": logged.num_rows, **sums}


def _sorted_counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _split_table(records: pa.Table, division: Division, split: str) -> pa.Table:
    positions = division.splits[split]
    labels = pa.array([division.labels[i] for i in positions], pa.string())
    rows = records.select(_RECORD.names).take(pa.array(positions, pa.int64()))
    return rows.append_column("class", labels)


def _holds(folder: Storage, manifest: Manifest) -> bool:
    name = "manifest.json"
    return folder.exists(name) and folder.read_json(name) == manifest.to_json()


def _write(
    folder: Storage, tables: dict[str, pa.Table], manifest: Manifest, tell: Progress
) -> None:
    """Shards of a fixed number of rows, then the manifest.

    Rejections and counts may differ from an earlier run's while the splits are the same; what an
    earlier run left beyond this one's last shard goes.
    """
    for done, (name, table) in enumerate(tables.items()):
        tell(WRITING, done, len(tables))
        starts = range(0, max(table.num_rows, 1), _ROWS_PER_SHARD)
        shards = {f"part-{i:05d}.parquet": start for i, start in enumerate(starts)}
        for shard, start in shards.items():
            folder.write_table(f"{name}/{shard}", table.slice(start, _ROWS_PER_SHARD))
        for left_over in set(folder.at(name).names(".parquet")) - shards.keys():
            folder.remove(f"{name}/{left_over}")
    folder.write_json("manifest.json", manifest.to_json())
    tell(WRITING, len(tables), len(tables))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data keeps its progress and its notes to its own log files while the block runs."""
    import ray.data

    with warnings.catch_warnings():
        # Making its context, Ray Data 2.60 warns of its own defaults.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    handlers = logging.getLogger("ray.data").handlers
    consoles = {h: h.level for h in handlers if isinstance(h, logging.StreamHandler)}
    for console in consoles:
        console.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before
        for console, level in consoles.items():
            console.setLevel(level)


@contextmanager
def _own_errors() -> Iterator[None]:
    """A worker's own error is the user's, without Ray's wrapping."""
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, FlywheelError):
            raise
        # Ray Data appends advice on retries to the message.
        raise type(cause)(str(cause).splitlines()[0]) from None
