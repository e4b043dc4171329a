"""What any log store holds, found by reading all of it once."""

from __future__ import annotations

from collections import Counter, defaultdict

from flywheel.datasets import tool_of
from flywheel.records import parse_line, workload_of
from flywheel.stores import LogStore, WorkloadSummary
from flywheel.types import Record, Rejection


def summarise(store: LogStore) -> list[WorkloadSummary]:
    """Summaries by workload_id; lines that name no workload come last."""
    records: defaultdict[str, list[tuple[str, str, float]]] = defaultdict(list)
    rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in store.paths():
        for position, line in store.read(path):
            match parse_line(line, path, position):
                case Record() as record:
                    seen = (record.client_id, tool_of(record), record.timestamp)
                    records[record.workload_id].append(seen)
                case Rejection() as rejection:
                    rejected[workload_of(line)][rejection.reason] += 1
    names = sorted({*records, *rejected}, key=lambda name: (not name, name))
    return [_summary(name, records[name], rejected[name]) for name in names]


def _summary(
    name: str, seen: list[tuple[str, str, float]], rejected: Counter[str]
) -> WorkloadSummary:
    times = [timestamp for _, _, timestamp in seen]
    return WorkloadSummary(
        workload_id=name,
        records=len(seen),
        clients=dict(Counter(client for client, _, _ in seen).most_common()),
        classes=dict(Counter(tool for _, tool, _ in seen).most_common()),
        first=min(times, default=None),
        last=max(times, default=None),
        rejected={str(reason): n for reason, n in sorted(rejected.items())},
    )
