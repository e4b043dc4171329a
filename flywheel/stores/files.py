"""Logs in JSON Lines files, plain or gzipped, on any file system fsspec knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from flywheel.errors import DataError, boundary
from flywheel.stores import WorkloadSummary
from flywheel.stores.summary import summarise

SUFFIXES = (".jsonl", ".jsonl.gz")
"""Files of a folder that count as logs; a file named outright may be called anything."""

MAX_LINE = 32 * 2**20
"""Bytes of a line that are read; the rest of a longer one is skipped, so it is no JSON."""


class FileStore:
    """A file, a folder, or a glob of files."""

    def __init__(self, url: str) -> None:
        """Take the URL apart; see `open_store`."""
        self.url = url
        with boundary(DataError, f"opening log store {url}"):
            self._fs, self._root = url_to_fs(url)

    def __reduce__(self) -> tuple[type[FileStore], tuple[str]]:
        # A worker's working folder is another one.
        return (FileStore, (self._full(self._root),))

    def paths(self) -> list[str]:
        """See `LogStore`."""
        with boundary(DataError, f"listing log store {self.url}"):
            found = self._found()
            empty_folder = not found and self._fs.isdir(self._root)
        if empty_folder:
            raise DataError(
                f"log store {self.url}: the folder holds no {' or '.join(SUFFIXES)} file"
            )
        if not found:
            raise DataError(f"log store {self.url}: there is no such file or folder")
        return sorted(self._full(path) for path in found)

    def read(self, path: str) -> Iterator[tuple[int, bytes]]:
        """See `LogStore`."""
        with (
            boundary(DataError, f"reading {path}"),
            fsspec.open(path, "rb", compression="infer") as file,
        ):
            for position, line in enumerate(_bounded_lines(file), start=1):
                if not line.isspace():
                    yield position, line

    def workloads(self) -> list[WorkloadSummary]:
        """See `LogStore`."""
        return summarise(self)

    def _found(self) -> list[str]:
        if self._fs.isfile(self._root):
            return [self._root]
        if self._fs.isdir(self._root):
            return [p for p in self._fs.find(self._root, maxdepth=1) if p.endswith(SUFFIXES)]
        if any(c in self._root for c in "*?["):
            return [p for p in self._fs.glob(self._root) if self._fs.isfile(p)]
        return []

    def _full(self, path: str) -> str:
        if isinstance(self._fs, LocalFileSystem):
            return path
        return str(self._fs.unstrip_protocol(path))


def _bounded_lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
