"""Where logs live. A store knows what is in it and cuts a query into shards read in parallel.

Adding a store means one module here with a class that keeps `LogStore`'s contract, and its URL
scheme in `_SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Query:
    """Which lines are wanted. A store may filter by it, or leave that to its reader."""

    workload: str | None = None
    client: str | None = None
    since: float | None = None
    """Seconds since the epoch; from this moment on."""
    until: float | None = None
    """Seconds since the epoch; up to but not including this moment."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a store that one reader reads. Plain data, so that it travels."""

    source: str
    """The file or index."""
    start: int = 0
    """First byte of a file's range (row of a Parquet file); the slice's number of an index."""
    end: int = -1
    """Byte (row) after the range, or -1 for all; how many slices there are."""
    size: int = 1
    """How much work it is, in bytes or documents: for progress only."""

    def __str__(self) -> str:
        return self.source if self.end < 0 else f"{self.source} [{self.start}, {self.end})"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive raw lines of a shard, not blank."""

    lines: list[bytes]
    offsets: list[int]
    """Where each begins in its source; see `flywheel.types.Rejection`."""
    sources: list[str] | str
    """Where each stands, or where all stand."""

    def source(self, i: int) -> str:
        """Where line ``i`` stands."""
        return self.sources if isinstance(self.sources, str) else self.sources[i]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of documents that were to be appended."""

    written: int = 0
    unchanged: int = 0
    """Were there already, the same."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Document id and the store's reason."""


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """What a store holds of one workload."""

    workload_id: str
    """Empty for the lines that name no workload."""
    records: int = 0
    clients: dict[str, int] = field(default_factory=dict)
    """Records by client_id."""
    classes: dict[str, int] = field(default_factory=dict)
    """Records by the first tool's name, or ``no_tool``."""
    first: float | None = None
    """Timestamp of the oldest record, seconds since the epoch."""
    last: float | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    """Lines of this workload that are no Record, by reason."""


class LogStore(Protocol):
    """A place that holds log lines, each one JSON object in flywheel's log schema.

    A store pickles, and gives the same lines on every node. It keeps nothing open between calls;
    an iterator that is not read to its end closes what it opened.
    """

    def workloads(self) -> list[WorkloadSummary]:
        """What is in the store, by workload_id; lines that name no workload come last.

        Raises:
            DataError: There is nothing at this place, or it cannot be read.
        """
        ...

    def state(self) -> str | None:
        """Changes whenever the lines do; ``None`` where that cannot be told.

        Raises:
            DataError: The store cannot be reached.
        """
        ...

    def shards(self, query: Query, readers: int) -> list[Shard]:
        """Cut what the query needs into parts, enough to keep ``readers`` readers busy.

        However it is cut, all shards together hold the same lines, each once.

        Raises:
            DataError: There is nothing at this place, or it cannot be reached.
        """
        ...

    def scan(self, shard: Shard, query: Query) -> Iterator[Chunk]:
        """Every line of one shard, in chunks of bounded size (a few MB).

        Lines that the query does not ask for may be among them. Faults that pass are retried here.

        Raises:
            DataError: The shard cannot be read; the message names it.
        """
        ...

    def append(self, documents: Iterable[Json], progress: Callable[[int], None]) -> Appended:
        """Add log objects under ids that their content decides: adding twice changes nothing.

        Args:
            documents: Log objects, valid or not; a store may refuse some.
            progress: Told how many have been dealt with so far.

        Raises:
            DataError: The store cannot be written, or is of a kind that is only read.
        """
        ...


_SCHEMES = {
    "sample": ("flywheel.stores.sample", "SampleStore"),
    "elasticsearch": ("flywheel.stores.elasticsearch", "ElasticsearchStore"),
    "elasticsearch+https": ("flywheel.stores.elasticsearch", "ElasticsearchStore"),
}


def open_store(url: str) -> LogStore:
    """The store at a URL; anything but a scheme of ours is files. Nothing is read yet.

    Raises:
        DataError: The URL is wrong, its protocol unknown, or its package not installed.
    """
    scheme = url.partition("://")[0]
    module, name = _SCHEMES.get(scheme, ("flywheel.stores.files", "FileStore"))
    store: LogStore = getattr(import_module(module), name)(url)
    return store
