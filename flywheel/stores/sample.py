"""The synthetic traffic of `flywheel.sample_logs` as a store: ``sample://3000`` (``?seed=1``).

Every node makes the same lines by itself, so a demonstration needs no files that all nodes reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from flywheel.errors import DataError
from flywheel.sample_logs import SHARDS, sample_shards
from flywheel.stores import WorkloadSummary
from flywheel.stores.summary import summarise


@dataclass(frozen=True, slots=True)
class SampleStore:
    """As many records as the URL says, in the shards that `write_sample_logs` would write."""

    url: str

    def paths(self) -> list[str]:
        """See `LogStore`."""
        self._lines()
        return [f"{self.url}#shop-{shard:05d}.jsonl" for shard in range(SHARDS)]

    def read(self, path: str) -> Iterator[tuple[int, bytes]]:
        """See `LogStore`."""
        shard = self._lines()[self.paths().index(path)]
        for position, line in enumerate(shard, start=1):
            yield position, line.encode()

    def workloads(self) -> list[WorkloadSummary]:
        """See `LogStore`."""
        return summarise(self)

    def _lines(self) -> list[list[str]]:
        parts = urlsplit(self.url)
        try:
            seed = int(parse_qs(parts.query).get("seed", ["0"])[0])
            return sample_shards(int(parts.netloc), seed)
        except ValueError as error:
            raise DataError(f"{self.url}: must look like sample://3000?seed=0 ({error})") from None
