"""A storage that is away for a while costs a trial nothing but the wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from flywheel import logs
from flywheel.errors import StorageError
from flywheel.storage import Storage

_STORAGE_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before looking whether a storage is back that failed a step."""
_OUTAGES = 3
"""Of the storage, that one step is waited for."""


def patiently(work: Callable[[], None], folder: Storage) -> None:
    """Begin again once the storage is back: a step finds what it had done, and goes on from there.

    Raises:
        StorageError: It stayed away.
    """
    for _ in range(_OUTAGES):
        try:
            work()
        except StorageError as error:
            _wait_for(folder, error)
        else:
            return
    work()


def _wait_for(folder: Storage, error: StorageError) -> None:
    """Wait until a trial's folder takes its own spec again: nothing is asked that would be lost."""
    for wait_s in _STORAGE_WAITS_S:
        logs.log.warning("storage away", extra=logs.fields(error=str(error), wait_s=wait_s))
        time.sleep(wait_s)
        try:
            folder.write_bytes("spec.json", folder.read_bytes("spec.json"))
        except StorageError:
            continue
        else:
            return
    raise error
