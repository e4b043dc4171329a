"""Shared memory of an engine whose processes were killed, and who gives it back.

vLLM's processes talk through segments in ``/dev/shm`` that outlive them. Python's resource tracker
would remove them, but Ray kills it together with the replica that it is a child of.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil

_SEGMENTS = "/dev/shm/psm_"  # noqa: S108 -- Python's own prefix
_LOOK_EVERY_S = 1.0
_WAIT = 'exec 3<&0; (while read -r path <&3; do set -- "$@" "$path"; done; rm -f -- "$@") &'
"""Leaves a process behind that is nobody's child, and removes what it has read at the end of it."""


@contextmanager
def removed_with_this_process() -> Iterator[None]:
    """What children share while this lasts is removed when this process has ended, however."""
    read, write = os.pipe()  # `write` stays open for as long as this process lives
    command = ["/bin/sh", "-c", _WAIT]
    subprocess.run(command, stdin=read, start_new_session=True, check=True)  # noqa: S603
    os.close(read)
    over = Event()
    watcher = Thread(target=_note, args=(write, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _note(write: int, over: Event) -> None:
    noted: set[str] = set()
    last = False
    while not last:
        last = over.wait(_LOOK_EVERY_S)
        shared = set().union(*map(_shared_by, psutil.Process().children(recursive=True)))
        os.write(write, "".join(f"{path}\n" for path in shared - noted).encode())
        noted |= shared


def _shared_by(process: psutil.Process) -> set[str]:
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    except OSError:  # it has just ended
        return set()
    return {line.split()[5] for line in lines if _SEGMENTS in line}
