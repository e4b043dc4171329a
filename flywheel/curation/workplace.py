"""Where a curation keeps what its readers wrote, so that one that was stopped or killed goes on.

The folder is named by what is read and how: the same logs read in the same way find what an earlier
try finished. One curation at a time works there; a second one beside it gets a folder of its own.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from flywheel.storage import Storage
from flywheel.types import Json

_FOLDER, _HOLDER = "scratch", "holder.json"
_ELSEWHERE_S = 24 * 3600
"""A holder on another machine cannot be asked; for so long it is believed to work."""
_KEPT_S = 7 * 24 * 3600
"""What nobody went on with for so long is removed."""


@contextmanager
def workplace(storage: Storage, key: str | None) -> Iterator[Storage]:
    """A folder for parts, gone once the block succeeds and kept for the next try if it does not.

    Args:
        storage: Where runs keep their files.
        key: Names what is read and how; ``None`` where that cannot be told, so that nothing of an
            earlier try may be used.
    """
    folders = storage.at(_FOLDER)
    _sweep(folders)
    taken = key is None or _held(folders.at(key))
    folder = folders.at(uuid.uuid4().hex if taken else str(key))
    folder.write_json(_HOLDER, _myself())
    try:
        yield folder
    except BaseException:
        if taken:
            folder.remove("")
        else:
            folder.write_json(_HOLDER, {"seen": time.time()})
        raise
    folder.remove("")


def _myself() -> Json:
    started = psutil.Process().create_time()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started,
        "seen": time.time(),
    }


def _held(folder: Storage) -> bool:
    """Whether somebody works there now."""
    if not folder.exists(_HOLDER):
        return False
    holder = folder.read_json(_HOLDER)
    if "pid" not in holder:
        return False
    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["seen"] < _ELSEWHERE_S)
    try:
        return bool(psutil.Process(holder["pid"]).create_time() == holder["started"])
    except psutil.NoSuchProcess:
        return False


def _sweep(folders: Storage) -> None:
    for name in folders.names():
        folder = folders.at(name)
        holder = folder.read_json(_HOLDER) if folder.exists(_HOLDER) else {"seen": 0}
        if time.time() - holder["seen"] > _KEPT_S and not _held(folder):
            folder.remove("")
