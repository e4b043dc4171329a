"""The synthetic traffic of `flywheel.sample_logs` as a store: ``sample://3000`` (``?seed=1``).

Every node makes the same lines by itself, so a demonstration needs no files that all nodes reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

from flywheel.errors import DataError
from flywheel.sample_logs import sample_shards
from flywheel.stores import Appended, Chunk, Query, Shard, WorkloadSummary
from flywheel.stores.lines import read_lines
from flywheel.stores.summary import summarise
from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class SampleStore:
    """As many records as the URL says, in the shards that `write_sample_logs` would write."""

    url: str

    def workloads(self) -> list[WorkloadSummary]:
        """See `LogStore`."""
        return summarise(self)

    def state(self) -> str | None:
        """See `LogStore`."""
        return self.url

    def shards(self, query: Query, readers: int) -> list[Shard]:
        """See `LogStore`."""
        return [Shard(source, size=len(data)) for source, data in self._files().items()]

    def scan(self, shard: Shard, query: Query) -> Iterator[Chunk]:
        """See `LogStore`."""
        data = self._files()[shard.source]
        return read_lines(BytesIO(data), shard.source, shard.start, shard.end)

    def append(self, documents: Iterable[Json], progress: Callable[[int], None]) -> Appended:
        """Refused: these lines are made up anew each time. See `LogStore`."""
        raise DataError(f"{self.url}: the sample logs cannot be added to")

    def _files(self) -> dict[str, bytes]:
        parts = urlsplit(self.url)
        try:
            seed = int(parse_qs(parts.query).get("seed", ["0"])[0])
            shards = sample_shards(int(parts.netloc), seed)
        except ValueError as error:
            raise DataError(f"{self.url}: must look like sample://3000?seed=0 ({error})") from None
        return {
            f"{self.url}#shop-{i:05d}.jsonl": "".join(f"{line}\n" for line in lines).encode()
            for i, lines in enumerate(shards)
        }
