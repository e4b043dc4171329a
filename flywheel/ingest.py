"""Load exported logs into a log store: files -> lines -> log objects -> `LogStore.append`.

Lines stream through, so memory does not grow with the files. What a line becomes is the importers'
business; one that cannot be taken, by them or by the store, is listed with its place and reason
while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flywheel.errors import DataError, NotRecognised
from flywheel.importers import convert
from flywheel.normalising import Done, load_json
from flywheel.stores import LogStore, Query, Shard, open_store
from flywheel.types import Json, content_hash

LISTED = 10_000
"""Refused lines that a report lists; the others it only counts."""

Progress = Callable[[int, int], None]
"""Told how much has been read, and how much there is, in the units of `Shard.size`."""

_EVERYTHING = Query()


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that was not loaded."""

    source: str
    offset: int
    """Where it begins; see `flywheel.types.Rejection`."""
    reason: str


@dataclass(slots=True)
class Report:
    """What became of the lines: lines = written + unchanged + refused."""

    lines: int = 0
    written: int = 0
    unchanged: int = 0
    """Were in the store already, or stood in an earlier line."""
    refused: int = 0
    mended: int = 0
    """Lines in which half a surrogate pair became U+FFFD."""
    listed: list[Refused] = field(default_factory=list)
    """The first `LISTED` that were refused."""

    def refuse(self, source: str, offset: int, reason: str) -> None:
        """Count a line, and list it if there is room."""
        self.refused += 1
        if len(self.listed) < LISTED:
            self.listed.append(Refused(source, offset, reason))


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What documents do not say themselves."""

    workload_id: str
    client_id: str

    def log_object(self, line: bytes, source: str, done: Done) -> Json:
        """Raises ValueError with what is wrong with the line."""
        try:
            document = load_json(line.decode("utf-8-sig"), done)
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 text at byte {error.start}") from None
        try:
            return convert(document, source, workload_id=self.workload_id, client_id=self.client_id)
        except NotRecognised as error:
            raise ValueError(str(error).removeprefix(f"{source}: ")) from None


def ingest(
    files: Sequence[str],
    to: str,
    progress: Progress,
    *,
    workload_id: str = "",
    client_id: str = "",
) -> Report:
    """Load the lines of files into a store. Doing it twice changes nothing the second time.

    Args:
        files: Files, folders, globs or URLs, in any format the importers know.
        to: URL of the store.
        progress: See `Progress`.
        workload_id: For documents that name no workload.
        client_id: For documents that name no client.

    Raises:
        DataError: A file is not there or cannot be read (then what came before it is loaded), the
            store cannot be written, or not one line could be loaded.
    """
    target = open_store(to)
    sources = [(store, store.shards(_EVERYTHING, readers=1)) for store in map(open_store, files)]
    defaults, report = _Defaults(workload_id, client_id), Report()
    appended = target.append(
        _documents(sources, defaults, report, progress), progress=lambda _: None
    )
    report.written, report.unchanged = appended.written, appended.unchanged
    if appended.refused:
        _place_refusals(sources, defaults, report, dict(appended.refused))
    if report.lines and report.refused == report.lines:
        first = report.listed[0]
        place = f"{first.source} at {first.offset}"
        raise DataError(f"none of {report.lines} lines could be loaded; {place}: {first.reason}")
    return report


_Sources = list[tuple[LogStore, list[Shard]]]


def _documents(
    sources: _Sources, defaults: _Defaults, report: Report, progress: Progress
) -> Iterator[Json]:
    for source, offset, line in _lines(sources, progress):
        report.lines += 1
        done: Done = set()
        try:
            document = defaults.log_object(line, source, done)
        except ValueError as error:
            report.refuse(source, offset, str(error))
        else:
            report.mended += bool(done)
            yield document


def _place_refusals(
    sources: _Sources, defaults: _Defaults, report: Report, reasons: dict[str, str]
) -> None:
    """Say where the documents stood that the store refused.

    They are looked for in a second reading: to remember where every document stood, in case the
    store refuses it, would take memory for all of them.
    """
    for source, offset, line in _lines(sources, lambda done, total: None):
        try:
            name = content_hash(defaults.log_object(line, source, set()))
        except ValueError:
            continue
        if name in reasons:
            report.refuse(source, offset, reasons[name])


def _lines(sources: _Sources, progress: Progress) -> Iterator[tuple[str, int, bytes]]:
    total = sum(shard.size for _, shards in sources for shard in shards)
    before = 0
    for store, shards in sources:
        for shard in shards:
            read = 0
            for chunk in store.scan(shard, _EVERYTHING):
                for i, line in enumerate(chunk.lines):
                    yield chunk.source(i), chunk.offsets[i], line
                # Compressed files hold more than their size.
                read = min(read + sum(map(len, chunk.lines)), shard.size)
                progress(before + read, total)
            before += shard.size
    progress(total, total)
