"""The run's storage: one folder on any file system fsspec knows, reached alike from every node.

Whole files appear at once (written beside, then moved; object stores do that by themselves), so a
file that exists is complete. Stages write shards first and a manifest last.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from flywheel.errors import StorageError, boundary
from flywheel.types import Json


class Storage:
    """A folder under a path or fsspec URL. Cheap to make, pickles as its URL."""

    def __init__(self, url: str) -> None:
        """Open the folder; nothing is created before the first write.

        Raises:
            StorageError: The URL's protocol is unknown or its package is not installed.
        """
        with boundary(StorageError, f"opening storage {url}"):
            self._fs, self._root = fsspec.core.url_to_fs(url)
        self._root = self._root.rstrip("/")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def local(self) -> bool:
        """True for a folder of this machine's own file system (a shared mount counts too)."""
        return isinstance(self._fs, LocalFileSystem)

    @property
    def url(self) -> str:
        """The folder as an absolute path (local) or URL."""
        return self._root if self.local else str(self._fs.unstrip_protocol(self._root))

    def at(self, *parts: str) -> Storage:
        """The folder below this one."""
        child = Storage.__new__(Storage)
        child._fs, child._root = self._fs, "/".join([self._root, *parts])
        return child

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        with boundary(StorageError, f"looking for {self._at(name)}"):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(name)))

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names directly in this folder that end in ``suffix``; none if it is missing."""
        with boundary(StorageError, f"listing {self._root}"):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return []
            found = (str(p).rstrip("/").rsplit("/", 1)[-1] for p in self._fs.ls(self._root, False))
            return sorted(n for n in found if n.endswith(suffix) and not n.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        """The whole file."""
        with boundary(StorageError, f"reading {self._at(name)}"):
            return bytes(self._fs.cat_file(self._at(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the whole file at once: readers see the old content or the new, never a part."""
        target = self._at(name)
        with boundary(StorageError, f"writing {target}"):
            self._fs.makedirs(os.path.dirname(target), exist_ok=True)
            if not self.local:
                self._fs.pipe_file(target, data)
                return
            beside = f"{os.path.dirname(target)}/.{uuid.uuid4().hex}.part"
            try:
                with open(beside, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, target)
            except OSError:  # a full disk, mostly: do not fill it further
                Path(beside).unlink(missing_ok=True)
                raise

    def write_scratch(self, name: str, data: Any) -> None:
        """Write a file that only this process's run will read: as it comes, with no promise."""
        target = self._at(name)
        with boundary(StorageError, f"writing {target}"):
            self._fs.makedirs(os.path.dirname(target), exist_ok=True)
            with self._fs.open(target, "wb") as file:
                file.write(data)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A file for reading at any place in it: a memory map where it is local."""
        target = self._at(name)
        with boundary(StorageError, f"reading {target}"):
            file = pa.memory_map(target) if self.local else self._fs.open(target, "rb")
            with file:
                yield file

    def read_json(self, name: str) -> Any:
        """Parse a JSON file."""
        data = self.read_bytes(name)
        with boundary(StorageError, f"parsing {self._at(name)}"):
            return json.loads(data)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, indented for people."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, text.encode("utf-8", "replace") + b"\n")

    def read_lines(self, name: str) -> Iterator[Json]:
        """The objects of a JSON Lines file."""
        data = self.read_bytes(name)
        with boundary(StorageError, f"parsing {self._at(name)}"):
            for line in data.splitlines():
                yield json.loads(line)

    def write_lines(self, name: str, values: Iterable[Json]) -> None:
        """Write a JSON Lines file."""
        text = "".join(json.dumps(v, ensure_ascii=False, allow_nan=False) + "\n" for v in values)
        self.write_bytes(name, text.encode("utf-8", "replace"))

    def read_table(self, name: str = "", columns: list[str] | None = None) -> pa.Table:
        """One Parquet file, or all Parquet files of a folder in order of their names."""
        with boundary(StorageError, f"reading {self._at(name)}"):
            if name.endswith(".parquet"):
                with self._fs.open(self._at(name), "rb") as file:
                    return pq.read_table(file, columns=columns)
            folder = self.at(name) if name else self
            parts = [folder.read_table(part, columns) for part in folder.names(".parquet")]
            return pa.concat_tables(parts) if parts else pa.table({})

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file (zstd); Arrow dictionaries stay dictionaries, text stays text."""
        sink = pa.BufferOutputStream()
        repeated = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
        pq.write_table(table, sink, compression="zstd", use_dictionary=repeated)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def upload(self, local: Path, name: str) -> None:
        """Copy a local folder's files here, one by one."""
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            self.write_bytes(f"{name}/{path.relative_to(local).as_posix()}", path.read_bytes())

    def download(self, name: str, local: Path) -> Path:
        """Copy a folder to the local disk and return where; a local storage is used in place."""
        if self.local:
            return Path(self._at(name))
        with boundary(StorageError, f"copying {self._at(name)} to {local}"):
            local.mkdir(parents=True, exist_ok=True)
            self._fs.get(self._at(name).rstrip("/") + "/", str(local) + "/", recursive=True)
        return local

    def copy_from(self, other: Storage, name: str) -> None:
        """Copy a file or a folder of another place in the same storage; a missing one is fine."""
        source, target = other._at(name), self._at(name)
        with boundary(StorageError, f"copying {source} to {target}"):
            if not self._fs.exists(source):
                return
            if self._fs.isdir(source):
                for path in self._fs.find(source):
                    self.copy_from(other, str(path)[len(other._root) + 1 :])
            else:
                self.write_bytes(name, self._fs.cat_file(source))

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all in it; a missing one is fine."""
        with boundary(StorageError, f"removing {self._at(name)}"):
            if self._fs.exists(self._at(name)):
                self._fs.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/") if name else self._root
