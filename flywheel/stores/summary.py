"""What any log store holds, found by reading all of it once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from flywheel.datasets import tool_of
from flywheel.records import parse_line, workload_of
from flywheel.stores import LogStore, Query, WorkloadSummary
from flywheel.types import Record, Rejection


def summarise(store: LogStore) -> list[WorkloadSummary]:
    """Summaries by workload_id; lines that name no workload come last."""
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    everything = Query()
    for shard in store.shards(everything, readers=1):
        for chunk in store.scan(shard, everything):
            for i, line in enumerate(chunk.lines):
                match parse_line(line, chunk.source(i), chunk.offsets[i]):
                    case Record() as record:
                        tallies[record.workload_id].add(record)
                    case Rejection() as rejection:
                        tallies[workload_of(line)].rejected[str(rejection.reason)] += 1
    names = sorted(tallies, key=lambda name: (not name, name))
    return [tallies[name].summary(name) for name in names]


@dataclass(slots=True)
class _Tally:
    """What was counted of one workload so far."""

    clients: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float | None = None

    def add(self, record: Record) -> None:
        self.clients[record.client_id] += 1
        self.classes[tool_of(record)] += 1
        at = record.timestamp
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)

    def summary(self, name: str) -> WorkloadSummary:
        return WorkloadSummary(
            workload_id=name,
            records=self.clients.total(),
            clients=_commonest_first(self.clients),
            classes=_commonest_first(self.classes),
            first=self.first,
            last=self.last,
            rejected=dict(sorted(self.rejected.items())),
        )


def _commonest_first(counts: Counter[str]) -> dict[str, int]:
    # Equals by name: the order does not depend on which shard was read first.
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
