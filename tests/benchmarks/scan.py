"""How fast an index of Elasticsearch is read: by slices in parallel, and by ``helpers.scan``.

Documents of `traffic` are put into an index of their own on the server at ``ELASTICSEARCH_URL``, or
on a ``noida-db`` started here (it answers as Elasticsearch 8). Reader processes are up before the
clock starts; each way is timed twice, in turn, and the better time counts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from elastic_transport import ConnectionError as NotUpError
from elasticsearch import Elasticsearch, helpers

from flywheel.stores import Query, Shard, open_store
from flywheel.types import Json

from .traffic import WORKLOAD

READERS = 2
QUERY = Query(workload=WORKLOAD)
_START_S = 30


def compare(logs: Path, documents: int) -> Json | None:
    """Read so many documents in both ways; None where there is no server.

    Returns:
        ``speedup``, ``documents``, ``readers``, ``server``, and for ``scan`` and ``parallel``
        their ``seconds`` and, where the server was started here, its ``server_cpu_seconds``: as
        many of these as of the others, and the server is what limits.
    """
    with _server() as (url, process):
        if url is None:
            return None
        with _index(url, logs, documents) as (client, name):
            store = _store_url(url, name)
            shards = open_store(store).shards(QUERY, READERS)
            with _pool(1) as one, _pool(READERS) as several:
                work = [(store, shard) for shard in shards]
                scans, parallels = [], []
                for _ in range(2):
                    scans.append(_timed(one, _scan, [(url, name)], documents, process))
                    parallels.append(_timed(several, _read, work, documents, process))
            version = client.info()["version"]["number"]
    scan, parallel = (min(times, key=lambda time: time["seconds"]) for times in (scans, parallels))
    return {
        "speedup": round(scan["seconds"] / parallel["seconds"], 2),
        "documents": documents,
        "readers": READERS,
        "server": f"{'noida-db as ' if process else ''}Elasticsearch {version}",
        "scan": scan,
        "parallel": parallel,
    }


def _scan(place: tuple[str, str]) -> int:
    url, index = place
    query = {"query": {"term": {"workload_id": WORKLOAD}}}
    with _client(url) as client:
        return sum(1 for _ in helpers.scan(client, index=index, query=query))


def _read(part: tuple[str, Shard]) -> int:
    store, shard = part
    return sum(len(chunk.lines) for chunk in open_store(store).scan(shard, QUERY))


def _timed(
    pool: ProcessPoolExecutor,
    read: Callable[[Any], int],
    work: Sequence[Any],
    documents: int,
    server: psutil.Process | None,
) -> Json:
    start, busy = time.perf_counter(), _cpu_seconds(server)
    found = sum(pool.map(read, work))
    seconds, busy = time.perf_counter() - start, _cpu_seconds(server) - busy
    if found != documents:
        raise RuntimeError(f"{read.__name__} found {found} of {documents} documents")
    return {"seconds": seconds, "server_cpu_seconds": busy if server else None}


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are up: each has imported this module."""
    context = get_context("spawn")
    all_up = context.Barrier(processes + 1)
    with ProcessPoolExecutor(processes, context, _meet, (all_up,)) as pool:
        for _ in range(processes):
            pool.submit(int)  # starts one, as none is idle
        _meet(all_up)
        yield pool


def _meet(barrier: Barrier) -> None:
    barrier.wait(timeout=_START_S)


@contextmanager
def _index(url: str, logs: Path, documents: int) -> Iterator[tuple[Elasticsearch, str]]:
    name = f"flywheel-benchmark-{uuid.uuid4().hex[:8]}"
    with _client(url) as client:
        store = open_store(_store_url(url, name))
        try:
            appended = store.append(islice(_documents(logs), documents), lambda _: None)
            if appended.written != documents:
                raise RuntimeError(f"{appended.written} of {documents} documents were written")
            yield client, name
        finally:
            client.indices.delete(index=name, ignore_unavailable=True)
            client.options(ignore_status=404).indices.delete_index_template(name=f"flywheel-{name}")


def _documents(logs: Path) -> Iterator[Json]:
    for path in sorted(logs.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    document = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if document.get("workload_id") == WORKLOAD:
                    yield document


def _store_url(url: str, index: str) -> str:
    scheme, _, host = url.partition("://")
    return f"elasticsearch{'+https' if scheme == 'https' else ''}://{host}/{index}"


def _client(url: str) -> Elasticsearch:
    key = os.environ.get("ELASTICSEARCH_API_KEY")
    user, password = (os.environ.get(f"ELASTICSEARCH_{n}") for n in ("USERNAME", "PASSWORD"))
    login = (user, password) if user and password else None
    return Elasticsearch(url, api_key=key, basic_auth=None if key else login, request_timeout=60)


@contextmanager
def _server() -> Iterator[tuple[str | None, psutil.Process | None]]:
    """A server's URL, and its process if it was started here."""
    url = os.environ.get("ELASTICSEARCH_URL")
    # The command is a wrapper: ending it would leave the server itself behind.
    found = find_spec("noida_db")
    program = None if found is None else Path(str(found.origin)).with_name("noida-db")
    if url or program is None:
        yield (url.rstrip("/") if url else None), None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        options = ["--only", "elasticsearch", "--data-dir", folder]
        process = subprocess.Popen(
            [program, "start", *options, "--elasticsearch-port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=_START_S)


def _wait_for(url: str) -> None:
    end = time.monotonic() + _START_S
    with Elasticsearch(url, max_retries=0) as client:
        while True:
            try:
                client.info()
            except NotUpError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return


def _cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)
