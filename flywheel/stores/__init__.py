"""Where logs live. A store knows its parts and what is in them; curation reads the parts apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """What a store holds of one workload."""

    workload_id: str
    """Empty for the lines that name no workload."""
    records: int = 0
    clients: dict[str, int] = field(default_factory=dict)
    """Records by client_id."""
    classes: dict[str, int] = field(default_factory=dict)
    """Records by the first tool's name, or ``no_tool``."""
    first: float | None = None
    """Timestamp of the oldest record, seconds since the epoch."""
    last: float | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    """Lines of this workload that are no Record, by reason."""


class LogStore(Protocol):
    """A place that holds log lines.

    A store pickles, and gives the same lines on every node. It changes nothing and keeps nothing
    open between calls.
    """

    def paths(self) -> list[str]:
        """Sorted names of the store's parts, each readable on its own on any node.

        Raises:
            DataError: There is nothing at this place, or it cannot be reached.
        """
        ...

    def read(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Every line of one part that is not blank, with its position there, counted from 1.

        Raises:
            DataError: The part cannot be read.
        """
        ...

    def workloads(self) -> list[WorkloadSummary]:
        """What is in the store, by workload_id; lines that name no workload come last.

        Raises:
            DataError: There is nothing at this place, or it cannot be read.
        """
        ...


def open_store(url: str) -> LogStore:
    """The store at a file, folder, glob or fsspec URL, or ``sample://``; nothing is read yet.

    Raises:
        DataError: The URL's protocol is unknown or its package is not installed.
    """
    from flywheel.stores.files import FileStore
    from flywheel.stores.sample import SampleStore

    return SampleStore(url) if url.startswith("sample://") else FileStore(url)
