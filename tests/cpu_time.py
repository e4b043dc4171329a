"""How much CPU time a block may take, whatever else the process does.

For tests that hold a bound against hostile input. Other threads (servers that earlier tests
started) don't count, nor does garbage collection, which walks all that earlier tests left behind.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_within(seconds: float) -> Iterator[None]:
    """Fail if this thread needs more CPU time than `seconds` for the block."""
    gc.disable()
    started = time.thread_time()
    try:
        yield
        needed = time.thread_time() - started
    finally:
        gc.enable()
    assert needed < seconds, f"{needed:.2f} s of CPU time, allowed are {seconds}"
