"""Logs in an index of Elasticsearch 8 or 9: ``elasticsearch://host:9200/index``.

``elasticsearch+https://`` speaks TLS. Credentials come from the environment:
``ELASTICSEARCH_API_KEY``, or ``ELASTICSEARCH_USERNAME`` and ``ELASTICSEARCH_PASSWORD``, and
``ELASTICSEARCH_CA_CERTS`` (a file) where the server's certificate is not a public one.
``?env=OTHER`` reads ``OTHER_API_KEY`` and so on.

**Reading.** A shard is a slice of the index. Each slice opens its own point in time, so a slice
must be made of the same documents whoever opens it and whenever: the server's default slices go by
Lucene's internal numbers, which differ between points in time and between replicas. Slices here go
by ``timestamp``, which a logged document keeps; those without one are in the first. So all slices
together hold each document once, and a slice whose point in time was lost (a restart, a reader that
paused too long) can be begun again by itself. What it had given by then is known by 8 bytes per
document and is not given twice. (A document with a list of timestamps might stand in two slices;
none is written here.) Where ``timestamp`` is not mapped as a date or number, one slice is all.

**Writing.** Documents are created under ids that are their content's hash: one that is there
already is a conflict, hence unchanged. One whose answer was lost on the way counts so, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl, urlsplit

from elastic_transport import ApiError
from elasticsearch import Elasticsearch
from elasticsearch.helpers import streaming_bulk

from flywheel.errors import DataError
from flywheel.stores import Appended, Chunk, Query, Shard, WorkloadSummary
from flywheel.stores.elasticsearch.connecting import BUSY, WAITS_S, Patient, Server, reason
from flywheel.stores.elasticsearch.mapping import FIELDS, TEMPLATE, form_of_time, where
from flywheel.stores.elasticsearch.paging import RawSources, chunk, each_once
from flywheel.stores.summary import summarise
from flywheel.types import Json, content_hash

__all__ = ["ElasticsearchStore"]

_MOST_SLICES = 1024
_BATCH_DOCUMENTS, _BATCH_BYTES = 1_000, 1_000_000
"""Below what proxies before a server let through by default."""


class ElasticsearchStore:
    """An index, alias or pattern of indices; see the module."""

    def __init__(self, url: str) -> None:
        """Take the URL apart; nothing is sent.

        Raises:
            DataError: It names no index, or holds what does not belong there.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.username is not None or options.keys() - {"env"}:
            # The URL is not quoted: a secret may stand in it.
            raise DataError(
                "log store elasticsearch: credentials are read from the environment "
                "(ELASTICSEARCH_API_KEY, or ELASTICSEARCH_USERNAME and ELASTICSEARCH_PASSWORD), "
                "never from the URL; it may only say ?env=NAME, to read NAME_API_KEY and so on"
            )
        try:
            port = parts.port or 9200
        except ValueError:
            port = 0
        prefix, _, self._index = parts.path.rpartition("/")
        if not (parts.hostname and port and self._index):
            raise DataError(f"log store {url}: must look like {parts.scheme}://host:9200/index")
        scheme = "https" if parts.scheme.endswith("https") else "http"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = url
        address = f"{scheme}://{host}:{port}{prefix}"
        self._server = Server(url, address, options.get("env", "ELASTICSEARCH"))

    def __reduce__(self) -> tuple[type[ElasticsearchStore], tuple[str]]:
        return (ElasticsearchStore, (self.url,))

    def workloads(self) -> list[WorkloadSummary]:
        """See `LogStore`. All is read: only a parsed document tells whether it is a Record."""
        return summarise(self)

    def state(self) -> str | None:
        """Documents come and go, and slices with them. See `LogStore`."""
        return None

    def shards(self, query: Query, readers: int) -> list[Shard]:
        """See `LogStore`. An alias is resolved here, so that all slices are of the same indices."""
        with self._server.client("counting its documents") as client:
            mappings = client.indices.get_mapping(index=self._index).body
            if not mappings:
                raise DataError(f"log store {self.url}: there is no such index")
            names = ",".join(sorted(mappings))
            total: int = client.count(index=names, query=where(query, mappings))["count"]
        most = 1 if form_of_time(mappings) is None else _MOST_SLICES
        slices = max(1, min(readers, total, most))
        return [Shard(names, i, slices, total // slices) for i in range(slices)]

    def scan(self, shard: Shard, query: Query) -> Iterator[Chunk]:
        """See `LogStore`. A page is a chunk; ``sources`` are index and document id."""
        patient = {"serializer": RawSources(), "transport_class": Patient}
        with self._server.client(f"reading {shard}", **patient) as client:
            mappings = client.indices.get_mapping(index=shard.source).body
            search: Json = {
                "query": where(query, mappings),
                "sort": [{"_shard_doc": "asc"}],
                "source": FIELDS,
                "track_total_hits": False,
                # A part of the answer would be taken for the whole.
                "allow_partial_search_results": False,
            }
            if shard.end > 1:
                search["slice"] = {"field": "timestamp", "id": shard.start, "max": shard.end}
            for hits in each_once(client, shard.source, search):
                yield chunk(hits)

    def append(self, documents: Iterable[Json], progress: Callable[[int], None]) -> Appended:
        """See `LogStore`. Makes an index template and the index if they are not there."""
        refused: list[tuple[str, str]] = []
        written = unchanged = 0
        with self._server.client("writing") as client:
            self._prepare(client)
            for ok, result in streaming_bulk(
                client,
                _creations(documents, refused),
                index=self._index,
                chunk_size=_BATCH_DOCUMENTS,
                max_chunk_bytes=_BATCH_BYTES,
                raise_on_error=False,
                ignore_status=413,
                # Of single documents; `Waiting` repeats whole requests.
                max_retries=len(WAITS_S),
                initial_backoff=WAITS_S[0],
                max_backoff=WAITS_S[-1],
                retry_on_status=BUSY,
            ):
                item = result["create"]
                if ok:
                    written += 1
                elif item["status"] == 409:
                    unchanged += 1
                elif item["status"] in (401, 403, *BUSY):
                    raise DataError(f"log store {self.url}: cannot be written: {reason(item)}")
                else:
                    refused.append((item["_id"], reason(item)))
                progress(written + unchanged + len(refused))
            client.indices.refresh(index=self._index)
        return Appended(written, unchanged, refused)

    def _prepare(self, client: Elasticsearch) -> None:
        if client.indices.exists(index=self._index):
            return
        name = f"flywheel-{self._index}"
        if not client.indices.exists_index_template(name=name):
            client.indices.put_index_template(
                name=name, index_patterns=[self._index], priority=300, template=TEMPLATE
            )
        try:
            client.indices.create(index=self._index)
        except ApiError as error:
            if error.message != "resource_already_exists_exception":
                raise


def _creations(documents: Iterable[Json], refused: list[tuple[str, str]]) -> Iterator[Json]:
    """What to send; documents that are no JSON, or might stand in two slices, are noted instead."""
    for document in documents:
        name = content_hash(document)
        if isinstance(document.get("timestamp"), list):
            refused.append((name, "timestamp is a list"))
            continue
        try:
            source = _json(document)
        except ValueError as error:
            refused.append((name, str(error)))
        else:
            yield {"_op_type": "create", "_id": name, "_source": source}


def _json(document: Json) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can carry
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
