"""Run a command and measure its wall time and the peak memory of everything it starts.

Daemons that leave their parent are counted too: while a command runs, this process adopts its
orphans (``PR_SET_CHILD_SUBREAPER``), so all it ever started stays below here. Memory is what they
use together, a shared page counted once: the processes' own pages (``RssAnon``), their proportional
share of mapped files (``Pss_File``), and what /dev/shm has grown by (Ray's object store, whoever
maps it). The kernel walks all pages of a process to tell its share of files, which would slow down
what is measured; it changes little once a program is loaded, so it is read less often. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import IO

import psutil

INTERVAL_S = 0.25
FILES_EVERY_S = 5.0
"""Seconds for which a process's share of files is taken as it was."""

_SET_CHILD_SUBREAPER = 36
"""See prctl(2)."""
_SHARED = Path("/dev/shm")  # noqa: S108 -- only its size is read


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took."""

    seconds: float
    """From its start to its end."""
    peak_bytes: int
    sampling_s: float
    """Processor time that watching it cost."""
    output: str
    """What it wrote to standard output."""


class MeasurementError(Exception):
    """The command failed; says how, and the end of what it wrote."""


def measure(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    interval_s: float = INTERVAL_S,
    timeout_s: float = 3600,
) -> Measured:
    """Run a command in a process group of its own; whatever it leaves behind is ended.

    One at a time: every child of this process that is not there yet counts as the command's.

    Args:
        command: Program and arguments.
        cwd: Where it runs.
        env: Added to this process's environment.
        interval_s: Seconds between two samples.
        timeout_s: Seconds after which it is ended.

    Raises:
        MeasurementError: The command ended with a code other than 0, or not in time.
    """
    others = _children()
    _adopt_orphans(True)
    try:
        with (
            TemporaryFile("w+") as output,
            TemporaryFile("w+") as errors,
            _Sampler(_Gauge(others), interval_s) as sampler,
        ):
            start = time.perf_counter()
            code = subprocess.run(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdout=output,
                stderr=errors,
                timeout=timeout_s,
                check=False,
                process_group=0,
            ).returncode
            seconds = time.perf_counter() - start
            if code != 0:
                raise MeasurementError(f"{command} ended with {code}: {_text(errors)[-2000:]}")
            text = _text(output)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{command} took more than {timeout_s:g} s") from None
    finally:
        _end(_children() - others)
        _adopt_orphans(False)
    return Measured(seconds, sampler.peak, sampler.spent_s, text)


class _Sampler(Thread):
    """Calls a gauge at intervals and keeps the highest reading, as long as its block runs."""

    def __init__(self, gauge: Callable[[], int], interval_s: float) -> None:
        super().__init__(daemon=True)
        self.peak, self.spent_s = 0, 0.0
        self._gauge, self._interval_s, self._over = gauge, interval_s, Event()

    def run(self) -> None:
        while not self._over.wait(self._interval_s):
            self.peak = max(self.peak, self._gauge())
            self.spent_s = time.thread_time()

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _adopt_orphans(whether: bool) -> None:
    """Let orphans below this process become its children instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


class _Gauge:
    """Bytes in use by all children but those that were there before."""

    def __init__(self, others: set[psutil.Process]) -> None:
        self._others, self._shared = others, _shared_in_use()
        self._files: dict[psutil.Process, tuple[float, int]] = {}
        """When it was read, and the share."""

    def __call__(self) -> int:
        processes = _children() - self._others
        own = sum(_kibibytes(process.pid, "status", "RssAnon:") for process in processes)
        files = sum(map(self._file_share, processes))
        return (own + files) * 1024 + max(0, _shared_in_use() - self._shared)

    def _file_share(self, process: psutil.Process) -> int:
        now = time.monotonic()
        read, share = self._files.get(process, (-FILES_EVERY_S, 0))
        if now - read >= FILES_EVERY_S:
            share = _kibibytes(process.pid, "smaps_rollup", "Pss_File:")
            self._files[process] = now, share
        return share


def _kibibytes(pid: int, table: str, name: str) -> int:
    """A line of a process's table; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/{table}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = text.partition(name)
    return int(rest.split(maxsplit=1)[0]) if found else 0


def _shared_in_use() -> int:
    space = os.statvfs(_SHARED)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=10)
