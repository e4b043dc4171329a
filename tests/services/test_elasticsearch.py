"""The Elasticsearch store against a live server: `noida-db`, or the one at ELASTICSEARCH_URL.

Between the two stands a proxy that does to the traffic what networks and busy servers do.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from elasticsearch.helpers import scan as scroll
from recovery import told

from flywheel.config import Experiment, validate
from flywheel.curation import curate
from flywheel.errors import DataError
from flywheel.ingest import ingest
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.storage import Storage
from flywheel.stores import Appended, LogStore, Query, Shard, open_store
from flywheel.stores.elasticsearch import ElasticsearchStore
from flywheel.stores.elasticsearch.mapping import FIELDS
from flywheel.stores.elasticsearch.paging import PAGE_BYTES
from flywheel.types import Json, canonical_json, json_text

pytestmark = pytest.mark.services

ALL = Query()
DROP = 0
"""In place of a status: the connection breaks off."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a live server."""
    if given := os.environ.get("ELASTICSEARCH_URL"):
        yield urlsplit(given).netloc
        return
    if importlib.util.find_spec("noida_db") is None:
        pytest.skip("neither is ELASTICSEARCH_URL set nor noida-db installed")
    # The command of that name is a wrapper that leaves the server behind when it is ended.
    binary = str(importlib.resources.files("noida_db") / "noida-db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("elasticsearch")
    command = [binary, "start", "--only", "elasticsearch", "--data-dir", str(folder)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--elasticsearch-port", str(port)], stdout=log, stderr=log
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        assert process.poll() is None, "the server ended by itself"
        try:
            httpx.get(url, timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.25)
        else:
            return
    pytest.fail("the server did not answer within half a minute")


class Asked:
    """A request as it passes the proxy."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.at = time.monotonic()

    def about(self, part: str) -> bool:
        return part in self.path.partition("?")[0]


Answer = tuple[int, Json] | int | None
"""Status and body, a status, or nothing: then the server answers."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `fault` answers itself."""

    daemon_threads = True

    def __init__(self, target: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Passing)
        self.target = target
        self.fault: Callable[[Asked], Answer] = lambda asked: None
        self.seen: list[Asked] = []

    def url(self, index: str) -> str:
        return f"elasticsearch://127.0.0.1:{self.server_port}/{index}"

    def asked_for(self, part: str) -> list[Asked]:
        return [asked for asked in self.seen if asked.about(part)]

    def send(self, asked: Asked) -> tuple[int, bytes, str]:
        connection = HTTPConnection(self.target, timeout=60)
        try:
            connection.request(asked.method, asked.path, asked.body or None, asked.headers)
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.getheader("Content-Type", "")
        finally:
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are the point."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        proxy = cast(Proxy, self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {k.lower(): v for k, v in self.headers.items() if k.lower() != "host"}
        asked = Asked(self.command, self.path, kept, body)
        proxy.seen.append(asked)
        answer = proxy.fault(asked)
        if answer == DROP:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif answer is None:
            self._reply(*proxy.send(asked))
        else:
            status, said = answer if isinstance(answer, tuple) else (answer, {"error": "a fault"})
            self._reply(status, json.dumps(said).encode(), "application/json")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server) as one:
        Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def index(server: str) -> Iterator[str]:
    """A name not used before; what is made under it goes."""
    name = f"flywheel-test-{uuid.uuid4().hex[:12]}"
    yield name
    httpx.delete(f"http://{server}/{name}")
    httpx.delete(f"http://{server}/_index_template/flywheel-{name}")


@pytest.fixture
def url(server: str, index: str) -> str:
    return f"elasticsearch://{server}/{index}"


def nth(part: str, numbers: set[int], answer: Answer) -> Callable[[Asked], Answer]:
    """Answers some of the requests to a path, counted from 1."""
    count = iter(range(1, 1_000_000))
    return lambda asked: answer if asked.about(part) and next(count) in numbers else None


def a_log(n: int, **fields: Any) -> Json:
    return {
        "timestamp": 1_767_229_480 + n,
        "workload_id": "shop.router",
        "client_id": f"client-{n % 3}",
        "request": {"messages": [{"role": "user", "content": f"zebra {n}"}], "model": "a"},
        "response": {"choices": [{"message": {"role": "assistant", "content": "yes"}}]},
        **fields,
    }


def add(url: str, documents: list[Json]) -> Appended:
    return open_store(url).append(documents, lambda done: None)


def read(store: LogStore, query: Query = ALL, readers: int = 1) -> list[tuple[str, bytes]]:
    """Where each line stands, and the line; in a certain order."""
    return sorted(
        (chunk.source(i), line)
        for shard in store.shards(query, readers)
        for chunk in store.scan(shard, query)
        for i, line in enumerate(chunk.lines)
    )


def numbers(store: LogStore, query: Query) -> list[int]:
    requests = (json.loads(line)["request"] for _, line in read(store, query))
    return sorted(int(request["messages"][0]["content"].split()[1]) for request in requests)


def test_loading_twice_changes_nothing(url: str, tmp_path: Path) -> None:
    logs = write_sample_logs(tmp_path / "logs", records=300)
    first = ingest([str(tmp_path / "logs")], url, lambda done, total: None)
    assert first.lines == logs.lines == first.written + first.unchanged + first.refused
    assert first.refused == logs.rejected["not_json"]
    loaded = read(open_store(url))
    assert len(loaded) == first.written
    again = ingest([str(tmp_path / "logs")], url, lambda done, total: None)
    assert (again.written, again.refused) == (0, first.refused)
    assert again.unchanged == first.written + first.unchanged
    assert read(open_store(url)) == loaded


def test_lines_come_back_as_they_were(url: str) -> None:
    logs = [a_log(1, note="x"), a_log(2, timestamp=1767229480.25), {"request": {"z": 1, "a": "ß☃"}}]
    assert add(url, logs).written == 3
    lines = [line for _, line in read(open_store(url))]
    kept = [{k: v for k, v in log.items() if k in FIELDS} for log in logs]
    assert Counter(canonical_json(json.loads(line)) for line in lines) == Counter(
        map(canonical_json, kept)
    )
    assert all(json_text(json.loads(line)).encode() == line for line in lines)
    if "ELASTICSEARCH_URL" in os.environ:  # noida-db sorts keys
        assert Counter(lines) == Counter(json_text(k).encode() for k in kept)


def test_any_number_of_readers_reads_each_document_once(url: str, index: str) -> None:
    logs = [a_log(n) for n in range(1500)] + [a_log(n, timestamp=7) for n in range(1500, 1600)]
    logs += [{"request": {"messages": [{"content": "nobody's 1"}]}}, {"timestamp": "soon"}]
    assert add(url, logs).written == len(logs)
    store = open_store(url)
    once = read(store)
    assert len(once) == len({place for place, _ in once}) == len(logs)
    for readers in (2, 4):
        shards = store.shards(ALL, readers)
        assert [(s.source, s.start, s.end) for s in shards] == [
            (index, i, readers) for i in range(readers)
        ]
        assert read(store, readers=readers) == once
        assert all(any(store.scan(shard, ALL)) for shard in shards), "a reader had nothing to do"
    with ElasticsearchStore(url)._server.client("scrolling") as client:
        hits = list(scroll(client, index=index))
    scrolled = {f"{hit['_index']}/{hit['_id']}": hit["_source"] for hit in hits}
    assert {place: json.loads(line) for place, line in once} == scrolled


def test_the_server_filters(url: str, proxy: Proxy, index: str) -> None:
    add(
        url,
        [
            *(a_log(n, timestamp=100 + n) for n in range(6)),
            a_log(6, workload_id="shop.other", timestamp=102),
            a_log(7, timestamp=103_000_000_000_000),  # milliseconds of the year 5233
            a_log(8, workload_id=None, timestamp=102),
            a_log(9, client_id=None, timestamp=102),
            a_log(10, timestamp="soon"),
        ],
    )
    store = open_store(proxy.url(index))
    assert numbers(store, ALL) == list(range(11))
    # What names no workload, client or time is found by every query: its rejection counts.
    assert numbers(store, Query(workload="shop.router")) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert numbers(store, Query(workload="shop.other")) == [6, 8]
    assert numbers(store, Query(client="client-1")) == [1, 4, 7, 9, 10]
    assert numbers(store, Query(since=103)) == [3, 4, 5, 7, 10]
    assert numbers(store, Query(until=103)) == [0, 1, 2, 6, 8, 9, 10]
    window = Query("shop.router", "client-2", since=102, until=105)
    assert numbers(store, window) == [2, 8, 9]
    assert sum(shard.size for shard in store.shards(window, 1)) == 3


def test_seconds_milliseconds_and_dates_are_one_time(url: str) -> None:
    moment = 1_767_229_480
    times = [moment, moment * 1000, "2026-01-01T01:04:40Z", moment - 9, (moment - 9) * 1000]
    add(url, [a_log(n, timestamp=at) for n, at in enumerate(times)])
    store = open_store(url)
    assert numbers(store, Query(since=moment)) == [0, 1, 2]
    assert numbers(store, Query(since=moment - 9, until=moment)) == [3, 4]
    assert numbers(store, Query(since=moment - 0.5, until=moment + 0.5)) == [0, 1, 2]


def test_an_index_that_somebody_else_mapped_is_filtered_as_far_as_can_be(
    url: str, server: str, index: str
) -> None:
    # As a server maps documents when nobody told it how.
    text = {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
    properties = {"timestamp": {"type": "long"}, "workload_id": text}
    made = {"mappings": {"dynamic": False, "properties": properties}}
    httpx.put(f"http://{server}/{index}", json=made).raise_for_status()
    add(url, [a_log(0), a_log(1), a_log(2, workload_id="Shop Router"), a_log(3, timestamp=99)])
    store = open_store(url)
    assert numbers(store, Query(workload="Shop Router")) == [2]
    assert numbers(store, Query(workload="shop.router", since=100)) == [0, 1]
    assert numbers(store, Query(client="client-1")) == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", [429, 502, 503, DROP])
def test_a_busy_server_and_lost_connections_are_waited_for(
    proxy: Proxy, index: str, fault: int
) -> None:
    logs = [a_log(n) for n in range(200)]
    proxy.fault = nth("_bulk", {1}, fault)
    assert add(proxy.url(index), logs).written == 200
    store = open_store(proxy.url(index))
    undisturbed = read(store)
    proxy.fault = nth("_search", {2, 3, 5}, fault)
    assert read(store, readers=2) == undisturbed
    proxy.fault = nth("_pit", {1}, fault)
    assert read(store) == undisturbed
    assert len(undisturbed) == 200


def test_documents_that_the_server_is_too_busy_for_are_sent_again(proxy: Proxy, index: str) -> None:
    def busy(asked: Asked) -> Answer:
        if not asked.about("_bulk") or len(proxy.asked_for("_bulk")) > 2:
            return None
        ids = [json.loads(line)["create"]["_id"] for line in asked.body.splitlines()[::2]]
        why = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
        return 200, {
            "errors": True,
            "items": [{"create": {"_id": i, "status": 429, "error": why}} for i in ids],
        }

    proxy.fault = busy
    dealt_with: list[int] = []
    done = open_store(proxy.url(index)).append((a_log(n) for n in range(30)), dealt_with.append)
    assert done == Appended(written=30)
    assert dealt_with[-1] == 30
    assert len(proxy.asked_for("_bulk")) == 3


def test_a_lost_point_in_time_is_reopened_without_a_duplicate(proxy: Proxy, index: str) -> None:
    add(proxy.url(index), [a_log(n) for n in range(400)])
    store = open_store(proxy.url(index))
    undisturbed = read(store, readers=2)
    searches = iter(range(1, 1_000_000))

    def lose(asked: Asked) -> Answer:
        if asked.about("_search") and next(searches) in {2, 3, 6}:
            point = json.dumps({"id": json.loads(asked.body)["pit"]["id"]}).encode()
            proxy.send(Asked("DELETE", "/_pit", {"content-type": "application/json"}, point))
        return None

    proxy.fault = lose
    before = len(proxy.asked_for("_pit"))
    assert read(store, readers=2) == undisturbed
    opened = [a for a in proxy.asked_for("_pit")[before:] if a.method == "POST"]
    assert len(opened) == 2 + 3


def test_a_point_in_time_that_is_always_lost_is_given_up(proxy: Proxy, index: str) -> None:
    add(proxy.url(index), [a_log(n) for n in range(3)])
    gone = {"error": {"root_cause": [{"type": "search_context_missing_exception"}]}}
    proxy.fault = nth("_search", set(range(1, 100)), (404, gone))
    with pytest.raises(DataError, match=rf"reading {index} \[0, 1\): search_context_missing"):
        read(open_store(proxy.url(index)))


def test_what_was_opened_is_closed(proxy: Proxy, index: str) -> None:
    add(proxy.url(index), [a_log(n) for n in range(100)])
    store = open_store(proxy.url(index))
    read(store, readers=2)
    chunks = store.scan(store.shards(ALL, 1)[0], ALL)
    next(chunks)
    cast(Any, chunks).close()
    methods = Counter(asked.method for asked in proxy.asked_for("_pit"))
    assert methods == {"POST": 3, "DELETE": 3}


def test_pages_hold_about_as_many_bytes_as_they_may(proxy: Proxy, index: str) -> None:
    long = "x" * 100_000
    add(proxy.url(index), [a_log(n, response={"text": long}) for n in range(200)])
    store = open_store(proxy.url(index))
    filled = [sum(map(len, c.lines)) for s in store.shards(ALL, 1) for c in store.scan(s, ALL)]
    assert len(filled) > 2
    assert max(filled[1:]) <= PAGE_BYTES
    bodies = [json.loads(asked.body) for asked in proxy.asked_for("_search")]
    assert all(body["_source"] == FIELDS for body in bodies)
    assert all(body["sort"] == [{"_shard_doc": "asc"}] for body in bodies)


def test_refused_documents_are_listed_and_the_others_added(url: str) -> None:
    bad = [
        a_log(1, workload_id={"a": "jane@example.com"}),
        a_log(2, response={"p": float("nan")}),
        a_log(3, timestamp=[1, 2]),
    ]
    done = add(url, [a_log(0), *bad, a_log(4)])
    assert done.written == 2
    assert len(done.refused) == 3
    reasons = " ".join(reason for _, reason in done.refused)
    assert "workload_id" in reasons
    assert "jane@example.com" not in reasons


def test_a_refused_document_is_traced_to_its_line(url: str, tmp_path: Path) -> None:
    lines = [json.dumps(log) for log in (a_log(0), a_log(1, workload_id={"a": 1}))]
    path = tmp_path / "logs.jsonl"
    path.write_text("\n".join([*lines, "{"]))
    report = ingest([str(path)], url, lambda done, total: None)
    assert (report.lines, report.written, report.refused) == (3, 1, 2)
    places = {(refused.source, refused.offset) for refused in report.listed}
    assert places == {(str(path), len(lines[0]) + 1), (str(path), sum(map(len, lines)) + 2)}


def test_extra_fields_and_odd_values_do_not_keep_a_document_out(url: str) -> None:
    odd = [
        a_log(0, timestamp="soon"),
        a_log(1, extra={"deep": [1, "a", {}]}),
        a_log(2, request=None, response="no object"),
        a_log(3, request={"messages": [{"content": {"a": 1}}]}),
        a_log(4, request={"messages": [{"content": "a text where an object was"}]}),
    ]
    assert add(url, odd) == Appended(written=5)
    assert len(read(open_store(url))) == 5


def test_what_a_store_holds_is_the_same_from_files(url: str, tmp_path: Path) -> None:
    write_sample_logs(tmp_path / "logs", records=300)
    ingest([str(tmp_path / "logs")], url, lambda done, total: None)
    found, router = (
        next(one for one in open_store(where).workloads() if one.workload_id == ROUTER)
        for where in (url, str(tmp_path / "logs"))
    )
    assert found.classes.keys() == router.classes.keys()
    assert (found.first, found.last) == (router.first, router.last)
    # Lines that are the same to the letter are one document.
    assert 0 < found.records <= router.records


def test_a_server_of_version_8_is_spoken_to_in_its_form(proxy: Proxy, index: str) -> None:
    def as_version_8(asked: Asked) -> Answer:
        said = asked.headers.get("accept", "") + asked.headers.get("content-type", "")
        return (400, {"error": "media_type_header_exception"}) if "with=9" in said else None

    proxy.fault = as_version_8
    add(proxy.url(index), [a_log(0)])
    assert len(read(open_store(proxy.url(index)))) == 1


def demanding(header: str) -> Callable[[Asked], Answer]:
    def fault(asked: Asked) -> Answer:
        if asked.headers.get("authorization") == header:
            return None
        why = {"type": "security_exception", "reason": "unable to authenticate"}
        return 401, {"error": {"root_cause": [why], **why}, "status": 401}

    return fault


def test_credentials_come_from_the_environment(
    proxy: Proxy, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(proxy.url(index), [a_log(0)])
    store = open_store(proxy.url(index))
    proxy.fault = demanding("ApiKey c2VjcmV0")
    with pytest.raises(DataError, match="asks for credentials; set ELASTICSEARCH_API_KEY") as error:
        store.shards(ALL, 1)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", "d3Jvbmc")
    with pytest.raises(DataError, match="does not accept the credentials") as error:
        read(store)
    assert "d3Jvbmc" not in str(error.value)
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", "c2VjcmV0")
    assert len(read(store)) == 1
    monkeypatch.setenv("OTHER_USERNAME", "jane")
    other = open_store(f"{proxy.url(index)}?env=OTHER")
    with pytest.raises(DataError, match="OTHER_PASSWORD is not set"):
        read(other)
    monkeypatch.setenv("OTHER_PASSWORD", "secret")
    proxy.fault = demanding("Basic amFuZTpzZWNyZXQ=")
    assert len(read(other)) == 1


def test_a_private_certificate_is_named_in_the_environment(
    proxy: Proxy, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "ca.pem")
    made = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", "-x509", *made], check=True, capture_output=True)
    add(proxy.url(index), [a_log(0)])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
    store = open_store(proxy.url(index).replace("elasticsearch:", "elasticsearch+https:"))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"TlsError .* certificate verify failed"):
        store.shards(ALL, 1)
    assert time.monotonic() - began < 5
    monkeypatch.setenv("ELASTICSEARCH_CA_CERTS", str(tmp_path / "missing.pem"))
    with pytest.raises(DataError, match="ELASTICSEARCH_CA_CERTS names no file"):
        store.shards(ALL, 1)
    monkeypatch.setenv("ELASTICSEARCH_CA_CERTS", certificate)
    assert len(read(store)) == 1


def test_what_the_credentials_do_not_allow_is_said(proxy: Proxy, index: str) -> None:
    why = {"type": "security_exception", "reason": "action [indices:data/write] is unauthorized"}
    item = {"create": {"_id": "a", "status": 403, "error": why}}
    proxy.fault = nth("_bulk", {1}, (200, {"errors": True, "items": [item]}))
    with pytest.raises(DataError, match=r"cannot be written: action .* is unauthorized"):
        add(proxy.url(index), [a_log(0)])


def test_a_missing_index_and_an_address_where_nobody_listens_are_sentences(
    url: str, server: str
) -> None:
    with pytest.raises(DataError, match="no such index"):
        open_store(url).shards(ALL, 1)
    with pytest.raises(DataError, match="there is no such index"):
        open_store(f"elasticsearch://{server}/nothing-*").shards(ALL, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(DataError, match="refused"):
        open_store(f"elasticsearch://127.0.0.1:{closed}/logs").shards(ALL, 1)
    assert time.monotonic() - began < 10


def test_an_empty_index_has_a_shard_without_lines(url: str, index: str) -> None:
    assert add(url, []) == Appended()
    store = open_store(url)
    assert store.shards(ALL, 4) == [Shard(index, 0, 1, 0)]
    assert read(store, readers=4) == []


def test_a_pattern_is_read_as_the_indices_it_names(server: str, index: str, url: str) -> None:
    for n in range(2):
        add(f"{url}-{n}", [a_log(n, client_id=str(i)) for i in range(20)])
    store = ElasticsearchStore(f"elasticsearch://{server}/{index}-*")
    (shard, *_) = store.shards(ALL, 2)
    assert shard.source == f"{index}-0,{index}-1"
    found = read(store, readers=2)
    assert len(found) == len({place for place, _ in found}) == 40
    for n in range(2):
        httpx.delete(f"http://{server}/{index}-{n}")
        httpx.delete(f"http://{server}/_index_template/flywheel-{index}-{n}")


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_session")
def test_the_same_dataset_comes_from_files_and_from_the_index_however_many_read(
    tmp_path: Path, url: str
) -> None:
    logs = write_sample_logs(tmp_path / "logs", records=600)
    report = ingest(logs.files, url, lambda *_: None)
    assert report.written + report.unchanged + report.refused == logs.lines
    fingerprints = [
        curate(_experiment(place), Storage(str(tmp_path / "out")), readers=readers).fingerprint
        for place in (logs.directory, url, url)
        for readers in (1, 4)
    ]
    assert fingerprints == fingerprints[:1] * 6


def gone_for(seconds: float, proxy: Proxy, back: list[Proxy]) -> Callable[[Asked], Answer]:
    """From the third page on, connections break and are refused; later there is a new server."""
    pages = iter(range(1, 1_000_000))
    third = 3

    def away() -> None:
        proxy.shutdown()
        proxy.server_close()
        time.sleep(seconds)
        back.append(Proxy(proxy.target, proxy.server_port))
        back[0].serve_forever(0.02)

    def fault(asked: Asked) -> Answer:
        if back or proxy.fault is not fault or not asked.about("_search"):
            return None
        if next(pages) < third:
            return None
        proxy.fault = lambda asked: DROP
        Thread(target=away, daemon=True).start()
        return DROP

    return fault


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("fault", ["busy", "refused"])
def test_a_scan_disturbed_in_its_middle_gives_the_dataset_of_an_undisturbed_one(
    tmp_path: Path, proxy: Proxy, index: str, fault: str
) -> None:
    logs = write_sample_logs(tmp_path / "logs", records=600)
    place = proxy.url(index)
    ingest(logs.files, place, lambda *_: None)
    undisturbed = curate(_experiment(place), Storage(str(tmp_path / "one")), readers=2)
    back: list[Proxy] = []
    before = len(proxy.asked_for("_search"))
    if fault == "busy":
        proxy.fault = nth("_search", {3, 4, 6}, 429)
    else:
        proxy.fault = gone_for(2, proxy, back)
    disturbed = curate(_experiment(place), Storage(str(tmp_path / "two")), readers=2)
    searches = proxy.asked_for("_search")[before:]
    assert disturbed.fingerprint == undisturbed.fingerprint
    assert disturbed.to_json()["rejected"] == undisturbed.to_json()["rejected"]
    if fault == "refused":
        (again,) = back
        there = again.asked_for("_search")
        fault = "Elasticsearch breaks off and refuses connections for 2 s in the middle of a scan"
        told(fault, "the next page", there[0].at - searches[2].at)
        again.shutdown()
        again.server_close()
    else:
        asked: dict[bytes, list[float]] = {}
        for search in searches:
            asked.setdefault(search.body, []).append(search.at)
        pauses = [times[-1] - times[0] for times in asked.values() if len(times) > 1]
        assert pauses
        fault = "Elasticsearch answers 429 in the middle of a scan"
        told(fault, "the page's last request", *pauses)


def _experiment(logs: str) -> Experiment:
    base = {"name": "t", "candidates": [{"model": "m"}], "methods": {"base": {}}}
    return validate({**base, "logs": logs, "workload": ROUTER}, "test")
