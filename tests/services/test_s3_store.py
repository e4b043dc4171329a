"""Logs in an S3 bucket, over real HTTP to the server of `moto`."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import fsspec
import httpx
import pytest

from flywheel.errors import DataError
from flywheel.sample_logs import write_sample_logs
from flywheel.stores import LogStore, Query, Shard, open_store
from flywheel.stores.files import FileStore

pytestmark = pytest.mark.services

ALL, SHARD = Query(), Shard("s3://logs/x.jsonl")
NUMBERS = b"".join(b'{"n": %d}\n' % n for n in range(2_000_000))


@contextmanager
def server(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running server; where it is stands in the environment, as a user would put it there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    with log.open("wb") as said, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            _wait_for(url, process)
            forget_connections()
            fsspec.filesystem("s3").mkdir("s3://logs")
            yield process
        finally:
            process.terminate()
            process.wait(timeout=20)
            forget_connections()


def forget_connections() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the S3 server did not start within a minute")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with server(tmp_path_factory.mktemp("s3") / "moto.log"):
        yield


def read(store: LogStore, readers: int = 1) -> list[tuple[int, bytes]]:
    return [
        pair
        for shard in store.shards(ALL, readers)
        for chunk in store.scan(shard, ALL)
        for pair in zip(chunk.offsets, chunk.lines, strict=True)
    ]


def put(key: str, content: bytes) -> None:
    fsspec.filesystem("s3").pipe_file(f"s3://logs/{key}", content)


def test_a_bucket_holds_what_the_folder_holds(s3: None, tmp_path: Path) -> None:
    summary = write_sample_logs(tmp_path, 300)
    for file in map(Path, summary.files):
        put(f"shop/day=1/{file.name}.gz", gzip.compress(file.read_bytes()))
    store = open_store("s3://logs/shop")
    assert read(store) == read(open_store(str(tmp_path)))
    assert store.workloads() == open_store(str(tmp_path)).workloads()
    assert len(read(open_store("s3://logs/shop/*/shop-00000.jsonl.gz"))) < summary.lines
    assert str(store.shards(ALL, 1)[0]) == "s3://logs/shop/day=1/shop-00000.jsonl.gz"


def test_a_large_object_is_read_by_ranges(s3: None) -> None:
    put("big/x.jsonl", NUMBERS)
    store = open_store("s3://logs/big/x.jsonl")
    cut = store.shards(ALL, readers=4)
    assert len(cut) >= 2
    found = [line for shard in cut for chunk in store.scan(shard, ALL) for line in chunk.lines]
    assert found == NUMBERS.splitlines()
    odd = [0, 5, 1_000_003, 9_999_999, len(NUMBERS)]
    parts = [Shard("s3://logs/big/x.jsonl", start, end) for start, end in pairwise(odd)]
    assert found == [line for p in parts for c in store.scan(p, ALL) for line in c.lines]


def test_appending_to_a_bucket_twice_changes_nothing(s3: None) -> None:
    store = open_store("s3://logs/appended")
    documents = [{"n": n} for n in range(100)]
    assert store.append(documents, lambda done: None).written == 100
    assert store.append(documents, lambda done: None).unchanged == 100
    assert len(read(store)) == 100


def test_what_is_not_there_is_one_error(s3: None) -> None:
    for url in ("s3://logs/nowhere", "s3://nobodys-bucket/logs"):
        with pytest.raises(DataError, match="no such file or folder"):
            open_store(url).shards(ALL, 1)


def test_an_object_that_is_gone_is_one_error_that_names_it(s3: None) -> None:
    put("gone/x.jsonl", b"{}\n")
    store = open_store("s3://logs/gone")
    (shard,) = store.shards(ALL, 1)
    fsspec.filesystem("s3").rm("s3://logs/gone/x.jsonl")
    with pytest.raises(DataError, match=r"FileNotFoundError while .* s3://logs/gone/x\.jsonl"):
        list(store.scan(shard, ALL))


def test_a_server_that_goes_away_is_one_error_that_names_the_shard(tmp_path: Path) -> None:
    with server(tmp_path / "moto.log") as process:
        put("x.jsonl", NUMBERS)
        chunks = FileStore("s3://logs", retry_after_s=(0.1,)).scan(SHARD, ALL)
        next(chunks)
        process.terminate()
        process.wait(timeout=20)
        with pytest.raises(DataError, match=r"while reading s3://logs/x\.jsonl"):
            list(chunks)
