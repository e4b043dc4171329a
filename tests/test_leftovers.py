"""Shared memory that killed processes would leave behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SHARED = Path("/dev/shm")  # noqa: S108
ENGINE = """
import subprocess, sys, time
from flywheel.serving import leftovers

WORKER = '''
import time
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=4096)
print(segment.name, flush=True)
time.sleep(60)
'''
worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
name = worker.stdout.readline().strip()
with leftovers.removed_with_this_process():
    pass
print(name, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no /dev/shm")
def test_what_a_killed_engine_shared_is_removed_and_not_before() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        segment = SHARED / engine.stdout.readline().strip()
        for child in psutil.Process(engine.pid).children(recursive=True):
            child.kill()  # Python's resource tracker among them
        time.sleep(0.2)
        assert segment.exists()
        engine.kill()
    deadline = time.monotonic() + 10
    while segment.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
