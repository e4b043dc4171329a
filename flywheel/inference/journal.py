"""Completions on disk as they come: what `Journal.add` has taken in survives any kill.

On a local disk a session appends lines to a file of its own, and answers that come while one batch
is being synced are synced together. Elsewhere such a batch is an object of its own, and many become
one shard. A line cut off at the end of a file is one that `add` never took in.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import orjson

from flywheel.errors import StorageError, boundary
from flywheel.storage import Storage
from flywheel.types import Completion, Json

PARTS = 64
"""Objects that become one shard."""


def read(folder: Storage) -> list[Completion]:
    """The completions on disk, one per record: what a later session got counts."""
    rows = (row for name in folder.names(".jsonl") for row in _rows(folder, name))
    return list({row["record_id"]: Completion(**row) for row in rows}.values())


class Journal:
    """Writes one session's completions into a folder that may hold others' already."""

    def __init__(self, folder: Storage) -> None:
        """Nothing is created before the first completion; call `close` at the end."""
        self._sink = _Appended(folder) if folder.local else _Parts(folder)
        self._waiting: list[bytes] = []
        self._taken = self._written = 0
        self._lock = asyncio.Lock()

    async def add(self, completion: Completion) -> None:
        """Write it down; when this returns it is safe.

        Raises:
            StorageError: It could not be written.
        """
        self._waiting.append(orjson.dumps(asdict(completion), option=orjson.OPT_APPEND_NEWLINE))
        self._taken += 1
        mine = self._taken
        async with self._lock:
            if self._written < mine:  # else somebody's batch took it along
                batch, upto = b"".join(self._waiting), self._taken
                await asyncio.to_thread(self._sink.write, batch)
                del self._waiting[: upto - self._written]
                self._written = upto

    def close(self) -> None:
        """Write what an interruption left waiting, once no thread of `add` runs any more.

        It may stand there already, if the thread came to its end: `read` takes it for one.
        """
        if self._waiting:
            self._sink.write(b"".join(self._waiting))
            self._waiting = []
        self._sink.close()


class _Appended:
    """A local file that grows."""

    def __init__(self, folder: Storage) -> None:
        self._folder, self._file = folder, -1

    def write(self, lines: bytes) -> None:
        with boundary(StorageError, f"writing to {self._folder.url}"):
            if self._file < 0:
                path = Path(self._folder.url)
                path.mkdir(parents=True, exist_ok=True)
                name = f"{_next_name(self._folder)}.jsonl"
                self._file = os.open(path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                while lines:
                    lines = lines[os.write(self._file, lines) :]
                os.fdatasync(self._file)
            except OSError:  # half a line may stand there, and must stay the last
                self.close()
                raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class _Parts:
    """Objects that are written whole: small ones at first, a shard in their place later."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._parts: dict[str, bytes] = {}
        self._name = ""

    def write(self, lines: bytes) -> None:
        self._name = self._name or _next_name(self._folder)
        name = f"{self._name}.part-{len(self._parts):03d}.jsonl"
        self._folder.write_bytes(name, lines)
        self._parts[name] = lines
        if len(self._parts) >= PARTS:
            self.close()

    def close(self) -> None:
        """Merge: a kill in between leaves lines twice, which `read` takes for one."""
        if self._parts:
            self._folder.write_bytes(f"{self._name}.jsonl", b"".join(self._parts.values()))
            for name in self._parts:
                self._folder.remove(name)
            self._parts, self._name = {}, ""


def _next_name(folder: Storage) -> str:
    """Sorts after what is there, and is nobody else's."""
    last = max((int(name[:5]) for name in folder.names(".jsonl")), default=-1)
    return f"{last + 1:05d}-{uuid.uuid4().hex[:8]}"


def _rows(folder: Storage, name: str) -> Iterator[Json]:
    whole, _, _ = folder.read_bytes(name).rpartition(b"\n")
    with boundary(StorageError, f"parsing {folder.url}/{name}"):
        yield from map(orjson.loads, whole.splitlines())
