"""Shared memory of an engine whose processes were killed, and who gives it back.

vLLM's processes talk through segments in ``/dev/shm`` that outlive them. Python's resource tracker
would remove them, but Ray kills it together with the replica that it is a child of.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil

_SEGMENTS = "/dev/shm/psm_"  # noqa: S108 -- Python's own prefix
_WAIT = 'exec 3<&0; (read _ <&3; rm -f -- "$@") &'
"""Leaves a process behind that is nobody's child and waits for the end of what it reads."""


def remove_at_the_end() -> None:
    """Have what this process's children share removed once this process has ended, however."""
    shared = sorted(set().union(*map(_shared_by, psutil.Process().children(recursive=True))))
    if not shared:
        return
    read, _ = os.pipe()  # the other end is open for as long as this process lives
    command = ["/bin/sh", "-c", _WAIT, "sh", *shared]
    subprocess.run(command, stdin=read, start_new_session=True, check=True)  # noqa: S603
    os.close(read)


def _shared_by(process: psutil.Process) -> set[str]:
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    except OSError:  # it has just ended
        return set()
    return {line.split()[-1] for line in lines if _SEGMENTS in line}
