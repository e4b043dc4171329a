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
import math
import os
import random
import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import numpy as np
from elastic_transport import (
    ApiError,
    ConnectionError,  # noqa: A004 -- the library's own
    ConnectionTimeout,
    JsonSerializer,
    TlsError,
    Transport,
    TransportApiResponse,
    TransportError,
)
from elasticsearch import Elasticsearch
from elasticsearch.helpers import streaming_bulk

from flywheel.errors import DataError
from flywheel.redaction import mask_text
from flywheel.stores import Appended, Chunk, Query, Shard, WorkloadSummary
from flywheel.stores.summary import summarise
from flywheel.types import Json, content_hash

FIELDS = ["timestamp", "workload_id", "client_id", "request", "response"]
"""What is read of a document."""

TEMPLATE: Json = {
    "settings": {"index.mapping.ignore_malformed": True},
    "mappings": {
        "dynamic": False,
        "properties": {
            "timestamp": {"type": "date", "format": "epoch_second||strict_date_optional_time"},
            "workload_id": {"type": "keyword"},
            "client_id": {"type": "keyword"},
            "request": {"type": "object", "enabled": False},
            "response": {"type": "object", "enabled": False},
        },
    },
}
"""How an index made here is mapped. Further fields, and timestamps that are none, do no harm."""

WAITS_S = (0.25, 0.5, 1, 2, 4, 8, 16, 16, 16, 16)
"""Pauses before asking again; a server that has never answered gets only the first few."""

PAGE_BYTES = 8 * 2**20
"""About what a page should hold; how many documents that is, the pages before tell."""

_FIRST_PAGE, _LARGEST_PAGE, _GROWTH = 50, 5_000, 8
_MOST_SLICES = 1024
_KEEP_ALIVE = "5m"
_REOPENINGS = 3
"""How often in a row a point in time may be lost without a new document being read."""

_BATCH_DOCUMENTS, _BATCH_BYTES = 1_000, 1_000_000
"""Below what proxies before a server let through by default."""

_BUSY = (429, 502, 503, 504)
_WAITS_UNMET = 3
_COMPATIBLE = re.compile(r"compatible-with=\d+")
_MILLISECONDS_FROM = 10**11
"""From here on a timestamp is in milliseconds, as `flywheel.records` has it."""


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
        self._server = f"{scheme}://{host}:{port}{prefix}"
        self._env = options.get("env", "ELASTICSEARCH")

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
        with self._client("counting its documents") as client:
            mappings = client.indices.get_mapping(index=self._index).body
            if not mappings:
                raise DataError(f"log store {self.url}: there is no such index")
            names = ",".join(sorted(mappings))
            total: int = client.count(index=names, query=_where(query, mappings))["count"]
        most = 1 if _form_of_time(_properties(mappings)) is None else _MOST_SLICES
        slices = max(1, min(readers, total, most))
        return [Shard(names, i, slices, total // slices) for i in range(slices)]

    def scan(self, shard: Shard, query: Query) -> Iterator[Chunk]:
        """See `LogStore`. A page is a chunk; ``sources`` are index and document id."""
        options = {"serializer": _RawSources(), "transport_class": _Patient}
        with self._client(f"reading {shard}", **options) as client:
            mappings = client.indices.get_mapping(index=shard.source).body
            search: Json = {
                "query": _where(query, mappings),
                "sort": [{"_shard_doc": "asc"}],
                "source": FIELDS,
                "track_total_hits": False,
                # A part of the answer would be taken for the whole.
                "allow_partial_search_results": False,
            }
            if shard.end > 1:
                search["slice"] = {"field": "timestamp", "id": shard.start, "max": shard.end}
            for hits in _each_once(client, shard.source, search):
                yield _chunk(hits)

    def append(self, documents: Iterable[Json], progress: Callable[[int], None]) -> Appended:
        """See `LogStore`. Makes an index template and the index if they are not there."""
        refused: list[tuple[str, str]] = []
        written = unchanged = 0
        with self._client("writing") as client:
            self._prepare(client)
            for ok, result in streaming_bulk(
                client,
                _creations(documents, refused),
                index=self._index,
                chunk_size=_BATCH_DOCUMENTS,
                max_chunk_bytes=_BATCH_BYTES,
                raise_on_error=False,
                ignore_status=413,
                # Of single documents; `_Transport` repeats whole requests.
                max_retries=len(WAITS_S),
                initial_backoff=WAITS_S[0],
                max_backoff=WAITS_S[-1],
                retry_on_status=_BUSY,
            ):
                item = result["create"]
                if ok:
                    written += 1
                elif item["status"] == 409:
                    unchanged += 1
                elif item["status"] in (401, 403, *_BUSY):
                    raise DataError(f"log store {self.url}: cannot be written: {_reason(item)}")
                else:
                    refused.append((item["_id"], _reason(item)))
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

    @contextmanager
    def _client(self, doing: str, **options: Any) -> Iterator[Elasticsearch]:
        """A connection for the block; what goes wrong there leaves it as one sentence."""
        credentials = self._credentials()
        try:
            with Elasticsearch(
                self._server,
                request_timeout=60,
                **{"transport_class": _Transport, **credentials, **options},
            ) as client:
                yield client
        except ApiError as error:
            raise DataError(f"log store {self.url}: {self._answer(error, doing)}") from error
        except TransportError as error:
            fault = f"{type(error).__name__} while {doing}: {str(error.message)[:300]}"
            raise DataError(f"log store {self.url}: {fault}") from error

    def _credentials(self) -> Json:
        key, user, password, authority = (
            os.environ.get(f"{self._env}_{name}", "").strip()
            for name in ("API_KEY", "USERNAME", "PASSWORD", "CA_CERTS")
        )
        found: Json = {}
        if key:
            found["api_key"] = key
        elif user and password:
            found["basic_auth"] = (user, password)
        elif user or password:
            missing = f"{self._env}_{'PASSWORD' if user else 'USERNAME'}"
            raise DataError(f"log store {self.url}: {missing} is not set")
        if authority and self._server.startswith("https"):
            if not Path(authority).is_file():
                raise DataError(f"log store {self.url}: {self._env}_CA_CERTS names no file")
            found["ca_certs"] = authority
        return found

    def _answer(self, error: ApiError, doing: str) -> str:
        """What the server said, as it goes on after the store's name."""
        env, reason = self._env, _reason(error.body)
        if error.meta.status == 401:
            given = self._credentials().keys() & {"api_key", "basic_auth"}
            fault = (
                f"does not accept the credentials ({reason})" if given else "asks for credentials"
            )
            return f"it {fault}; set {env}_API_KEY, or {env}_USERNAME and {env}_PASSWORD"
        if error.meta.status == 403:
            return f"the credentials do not allow {doing} ({reason})"
        return f"it answered {error.meta.status} while {doing}: {reason}"


class _Transport(Transport):
    """The client's transport, for servers of version 8 too, and patient with all of them.

    The client asks for answers in the form of its own major version, which an older server
    refuses; both 8 and 9 give version 8's. It repeats requests, but does not wait before it does.
    """

    _met = False
    """Whether the server ever answered; an address where nobody listens is soon given up."""
    _gave_up = False
    """Then nothing is waited for any more."""

    def perform_request(self, method: str, target: str, **options: Any) -> TransportApiResponse:
        """Send a request, again while the server is busy or away."""
        said = options["headers"]
        options["headers"] = {k: _COMPATIBLE.sub("compatible-with=8", v) for k, v in said.items()}
        options["max_retries"] = 0
        for tried, wait in enumerate(() if self._gave_up else WAITS_S):
            try:
                reply = super().perform_request(method, target, **options)
            except TlsError:
                raise
            except (ConnectionError, ConnectionTimeout):
                if not self._met and tried == _WAITS_UNMET:
                    raise
            else:
                self._met = True
                if reply.meta.status not in _BUSY:
                    return reply
            time.sleep(wait * random.uniform(0.5, 1))
        self._gave_up = True
        reply = super().perform_request(method, target, **options)
        self._gave_up = reply.meta.status in _BUSY
        return reply


class _Patient(_Transport):
    """For an address where a server was found before, be it on another node."""

    _met = True


class _Hit(msgspec.Struct):
    """A document found; its source stays the text that came, keys in the order stored."""

    index: str = msgspec.field(name="_index")
    id: str = msgspec.field(name="_id")
    sort: list[Any]
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))

    @property
    def place(self) -> str:
        return f"{self.index}/{self.id}"

    @property
    def mark(self) -> int:
        """64 bits that stand for the place while this process lives."""
        return hash(self.place)


class _Hits(msgspec.Struct):
    hits: list[_Hit]


class _RawSources(JsonSerializer):
    """Decodes answers, but not the documents in them."""

    _parts = msgspec.json.Decoder(dict[str, msgspec.Raw])
    _hits = msgspec.json.Decoder(_Hits)

    def json_loads(self, data: bytes) -> Any:
        """An object whose ``hits``, if it answers a search, are `_Hits`."""
        try:
            parts = self._parts.decode(data)
            hits = parts.pop("hits", None) if "took" in parts else None
            answer: Json = {name: msgspec.json.decode(part) for name, part in parts.items()}
            return answer if hits is None else {**answer, "hits": self._hits.decode(hits)}
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None


def _each_once(client: Elasticsearch, index: str, search: Json) -> Iterator[list[_Hit]]:
    """All pages; where a point in time is lost, from the beginning, without what was given."""
    given = array("q")
    in_vain = 0
    while True:
        before = len(given)
        known = np.sort(np.frombuffer(given, np.int64)) if before else None
        try:
            for page in _pages(client, index, search):
                if new := page if known is None else _unknown(page, known):
                    given.extend(hit.mark for hit in new)
                    yield new
        except ApiError as error:
            in_vain = in_vain + 1 if len(given) == before else 0
            if not _is_lost(error) or in_vain == _REOPENINGS:
                raise
        else:
            return


def _unknown(page: list[_Hit], known: np.ndarray) -> list[_Hit]:
    marks = np.array([hit.mark for hit in page], np.int64)
    nearest = known[np.searchsorted(known, marks) % len(known)]
    return [hit for hit, new in zip(page, nearest != marks, strict=True) if new]


def _pages(client: Elasticsearch, index: str, search: Json) -> Iterator[list[_Hit]]:
    """The pages of one point in time, which is closed however this ends."""
    point: str = client.open_point_in_time(index=index, keep_alive=_KEEP_ALIVE)["id"]
    size, after = _FIRST_PAGE, None
    try:
        while True:
            pit = {"id": point, "keep_alive": _KEEP_ALIVE}
            answer = client.search(pit=pit, size=size, search_after=after, **search).body
            point = answer.get("pit_id", point)
            page: list[_Hit] = answer["hits"].hits
            if page:
                yield page
            if len(page) < size:
                return
            after = page[-1].sort
            size = _fitting(size, sum(len(hit.source) for hit in page))
    finally:
        # It may be what was lost; else it ends by itself.
        with suppress(ApiError, TransportError):
            client.close_point_in_time(id=point)


def _fitting(size: int, filled: int) -> int:
    """Documents for the next page, after ``size`` of them filled so many bytes.

    It grows by steps, as a few small documents say little about the next ones.
    """
    return max(1, min(int(size * PAGE_BYTES / max(filled, 1)), _GROWTH * size, _LARGEST_PAGE))


def _chunk(page: list[_Hit]) -> Chunk:
    lines = [msgspec.json.format(bytes(hit.source), indent=-1) for hit in page]
    return Chunk(lines, [0] * len(page), [hit.place for hit in page])


def _is_lost(error: ApiError) -> bool:
    return error.meta.status == 404 and "search_context_missing" in json.dumps(error.body)


def _where(query: Query, mappings: Json) -> Json:
    """The query for the server.

    It leaves no line out that the same query would meet in a file: documents that name no workload
    or client, or have no time, are found too, so that their rejection can be counted. Fields that
    are not mapped so that this can be told are left to the reader.
    """
    properties = _properties(mappings)
    named = [
        *_named(properties, "workload_id", query.workload),
        *_named(properties, "client_id", query.client),
    ]
    return {"bool": {"filter": named, "must_not": _outside(properties, query)}}


def _properties(mappings: Json) -> list[Json]:
    return [index["mappings"].get("properties", {}) for index in mappings.values()]


def _named(properties: list[Json], field: str, value: str | None) -> list[Json]:
    if value is None:
        return []
    names = {_exact(field, mapped.get(field, {}), value) for mapped in properties}
    name = names.pop()
    if name is None or names:
        return []
    absent = {"bool": {"must_not": [{"exists": {"field": field}}]}}
    return [{"bool": {"should": [{"term": {name: value}}, absent], "minimum_should_match": 1}}]


def _exact(field: str, mapping: Json, value: str) -> str | None:
    """The field, or the part of it, by which a text as long as this one is found whole."""
    part = mapping.get("fields", {}).get("keyword", {})
    for name, kind in ((field, mapping), (f"{field}.keyword", part)):
        if kind.get("type") == "keyword" and len(value) <= kind.get("ignore_above", math.inf):
            return name
    return None


def _outside(properties: list[Json], query: Query) -> list[Json]:
    """Times before ``since`` and from ``until`` on, logged in seconds or in milliseconds."""
    form = _form_of_time(properties)
    if form is None:
        return []
    spans: list[Json] = []
    if query.since is not None:
        spans.append({"lt": math.floor(query.since)})
        spans.append({"gte": _MILLISECONDS_FROM, "lt": math.floor(query.since * 1000)})
    if query.until is not None:
        spans.append({"gte": math.ceil(query.until), "lt": _MILLISECONDS_FROM})
        spans.append({"gte": max(math.ceil(query.until * 1000), _MILLISECONDS_FROM)})
    return [{"range": {"timestamp": {**span, **form}}} for span in spans]


def _form_of_time(properties: list[Json]) -> Json | None:
    """How to tell the server a time as it was logged; None where it is no number to it."""
    forms = [_form(mapped.get("timestamp", {})) for mapped in properties]
    return forms[0] if all(form == forms[0] for form in forms) else None


def _form(mapping: Json) -> Json | None:
    named = mapping.get("format", "epoch_millis")
    match mapping.get("type"):
        case "long":
            return {}
        case "date" if "epoch_millis" in named:
            # Seconds were taken for milliseconds, as in the blueprint's own index.
            return {"format": "epoch_millis"}
        case "date" if "epoch_second" in named:
            return {}
    return None


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


def _reason(answer: Any) -> str:
    """Why the server refused, in a few words; they may quote a document, so they are masked."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = (error.get("root_cause") or [error])[0]
        error = error.get("reason") or error.get("type") or error
    return mask_text(str(error)[:300])
