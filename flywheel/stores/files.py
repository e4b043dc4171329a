"""Logs in files: JSON Lines (plain, gzip, zstd) and Parquet, on any file system fsspec knows.

A store is one file, a glob, or a folder with everything below it that ends in one of `SUFFIXES`;
names that begin with a dot or an underscore are passed over, as other tools keep unfinished files
there. Large plain files are cut into ranges of bytes and large Parquet files between row groups;
compressed files can only be read from their beginning.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, Any

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from flywheel.errors import DataError, FlywheelError, boundary
from flywheel.storage import Storage
from flywheel.stores import Appended, Chunk, Query, Shard, WorkloadSummary
from flywheel.stores.lines import read_lines
from flywheel.stores.parquet import cut_rows, read_rows
from flywheel.stores.summary import summarise
from flywheel.types import Json, content_hash

CODECS = {".gz": "gzip", ".zst": "zstd"}
PARQUET = ".parquet"
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", PARQUET)
"""Files of a folder that count as logs; a file named outright may be called anything."""

RETRY_AFTER_S = (0.5, 2.0, 8.0)
"""How long to wait when a read fails, time after time, until it is given up."""

_MARKS = ("mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated")
"""Where fsspec's file systems say that a file is another than it was."""
_SMALLEST_RANGE, _LARGEST_RANGE = 16 * 2**20, 256 * 2**20
_RANGES_PER_READER = 4
_READ_AHEAD = 8 * 2**20
"""Bytes asked of a remote file system at a time: a round trip costs as much as some of them."""
_SHARD_BYTES = 64 * 2**20
"""Size at which appended documents go on in another file."""

_LASTING = (FileNotFoundError, IsADirectoryError, PermissionError, ImportError, ValueError)
"""Faults that no second try mends."""


class FileStore:
    """A file, a folder, or a glob of files; see the module for what counts."""

    def __init__(self, url: str, retry_after_s: tuple[float, ...] = RETRY_AFTER_S) -> None:
        """Take the URL apart; see `open_store`."""
        self.url = url
        self._retry_after_s = retry_after_s
        with boundary(DataError, f"opening log store {url}"):
            self._fs, self._root = url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[FileStore], tuple[str, tuple[float, ...]]]:
        # A worker's working folder is another one.
        return (FileStore, (self._full(self._root), self._retry_after_s))

    def workloads(self) -> list[WorkloadSummary]:
        """See `LogStore`."""
        return summarise(self)

    def state(self) -> str | None:
        """See `LogStore`."""
        with boundary(DataError, f"listing log store {self.url}"):
            found = [(path, self._fs.info(path)) for path in self._found()]
        marks = [[str(info[name]) for name in _MARKS if info.get(name)] for _, info in found]
        if not all(marks):
            return None
        return content_hash([[p, i["size"], m] for (p, i), m in zip(found, marks, strict=True)])

    def shards(self, query: Query, readers: int) -> list[Shard]:
        """See `LogStore`."""
        with boundary(DataError, f"listing log store {self.url}"):
            found = self._found()
            if not found:
                raise DataError(f"log store {self.url}: {self._nothing()}")
            share = sum(found.values()) // (readers * _RANGES_PER_READER)
            target = min(max(share, _SMALLEST_RANGE), _LARGEST_RANGE)
            return [
                shard
                for path, size in found.items()
                for shard in self._cut(path, size, pieces=-(-size // target))
            ]

    def scan(self, shard: Shard, query: Query) -> Iterator[Chunk]:
        """See `LogStore`."""
        read = read_rows if shard.source.endswith(PARQUET) else read_lines
        start, pauses = shard.start, iter(self._retry_after_s)
        while True:
            try:
                with self._opened(shard.source) as file:
                    for chunk in read(file, shard.source, start, shard.end):
                        yield chunk
                        # Whatever begins after the last line's first byte is still to come.
                        start, pauses = chunk.offsets[-1] + 1, iter(self._retry_after_s)
            except FlywheelError:
                raise
            except Exception as error:
                pause = None if isinstance(error, _LASTING) else next(pauses, None)
                if pause is None:
                    fault = f"{type(error).__name__} while reading {shard}: {error}"
                    raise DataError(fault) from error
                time.sleep(pause)
            else:
                return

    def append(self, documents: Iterable[Json], progress: Callable[[int], None]) -> Appended:
        """Write documents to new files of this folder, named by the hash of their content.

        Such a file that is there already is left as it is and its documents count as unchanged;
        so the same documents in the same order add nothing the second time, nor twice what an
        interrupted call had written. See `LogStore`.
        """
        self._check_folder()
        folder, refused = Storage(self._full(self._root)), list[tuple[str, str]]()
        written = unchanged = 0
        for lines in _batches(documents, refused):
            data = b"".join(lines)
            name = f"part-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
            try:
                if folder.exists(name):
                    unchanged += len(lines)
                else:
                    folder.write_bytes(name, data)
                    written += len(lines)
            except FlywheelError as error:
                raise DataError(f"log store {self.url} cannot be written: {error}") from error
            progress(written + unchanged + len(refused))
        return Appended(written, unchanged, refused)

    def _found(self) -> dict[str, int]:
        """Bytes by path, in order of path."""
        fs, root = self._fs, self._root
        fs.invalidate_cache()
        if fs.isfile(root):
            infos = {root: fs.info(root)}
        elif fs.isdir(root):
            below = fs.find(root, detail=True).items()
            infos = {path: info for path, info in below if self._is_log(path)}
        else:
            infos = fs.glob(root, detail=True) if _is_glob(root) else {}
        return {
            path: info.get("size") or 0
            for path, info in sorted(infos.items())
            if info["type"] == "file" or fs.isfile(path)  # a link is neither
        }

    def _is_log(self, path: str) -> bool:
        parts = path[len(self._root) :].split("/")
        return path.endswith(SUFFIXES) and not any(p.startswith((".", "_")) for p in parts)

    def _nothing(self) -> str:
        if self._fs.isdir(self._root):
            return f"the folder holds no {', '.join(SUFFIXES)} file"
        return "there is no such file or folder"

    def _cut(self, path: str, size: int, pieces: int) -> list[Shard]:
        source = self._full(path)
        if pieces < 2 or _codec(path):
            return [Shard(source, size=size)]
        if path.endswith(PARQUET):
            with self._opened(source) as file:
                cuts = cut_rows(file, pieces)
        else:
            cuts = [size * i // pieces for i in range(pieces + 1)]
        each = size // max(len(cuts) - 1, 1)
        return [Shard(source, start, end, each) for start, end in pairwise(cuts)]

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        """The file's decompressed bytes."""
        with self._raw(path) as file:
            codec = _codec(path)
            yield pa.CompressedInputStream(file, codec) if codec else file

    def _raw(self, path: str) -> IO[bytes]:
        if self._local:
            return open(path, "rb", buffering=0)
        file: IO[bytes] = self._fs.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
        return file

    def _check_folder(self) -> None:
        with boundary(DataError, f"opening log store {self.url}"):
            a_file = self._root.endswith(SUFFIXES) or self._fs.isfile(self._root)
        if a_file or _is_glob(self._root):
            raise DataError(f"log store {self.url}: name a folder to add to, not a file or glob")

    def _full(self, path: str) -> str:
        return path if self._local else str(self._fs.unstrip_protocol(path))


def _is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _codec(path: str) -> str | None:
    return next((codec for suffix, codec in CODECS.items() if path.endswith(suffix)), None)


def _batches(documents: Iterable[Json], refused: list[tuple[str, str]]) -> Iterator[list[bytes]]:
    """Lines of JSON by the file they go to; what cannot be written as JSON is noted as refused."""
    lines, size = list[bytes](), 0
    for document in documents:
        try:
            lines.append(_line(document))
        except ValueError as error:
            refused.append((content_hash(document), str(error)))
            continue
        size += len(lines[-1])
        if size >= _SHARD_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _line(document: Json) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can carry
        return json.dumps(document, allow_nan=False).encode() + b"\n"
