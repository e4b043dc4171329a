"""One folder on any file system: whole files at once, the same behaviour on disk and elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from flywheel.errors import StorageError
from flywheel.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = str(tmp_path / "st") if request.param == "local" else "memory://st"
    yield Storage(url)
    memory = fsspec.filesystem("memory")
    if memory.exists("/st"):
        memory.rm("/st", recursive=True)


def test_opening_creates_nothing(storage: Storage) -> None:
    assert not storage.exists()
    assert storage.names() == []
    assert storage.at("deeper").names() == []


def test_bytes_json_lines_and_tables_come_back_as_written(storage: Storage) -> None:
    storage.write_bytes("a/b.bin", b"\x00\xff")
    storage.write_json("x.json", {"é": [1, None]})
    storage.write_lines("x.jsonl", [{"a": "line\nbreak \u2028 \x85"}, {"b": 2}])
    storage.write_table("t.parquet", pa.table({"n": [1, 2]}))
    assert storage.read_bytes("a/b.bin") == b"\x00\xff"
    assert storage.read_json("x.json") == {"é": [1, None]}
    assert list(storage.read_lines("x.jsonl")) == [{"a": "line\nbreak \u2028 \x85"}, {"b": 2}]
    assert storage.read_table("t.parquet").to_pydict() == {"n": [1, 2]}


def test_a_folder_of_tables_is_read_in_order_of_names(storage: Storage) -> None:
    storage.write_table("eval/00001.parquet", pa.table({"n": [3]}))
    storage.write_table("eval/00000.parquet", pa.table({"n": [1, 2]}))
    storage.write_json("eval/other.json", {})
    assert storage.read_table("eval").to_pydict() == {"n": [1, 2, 3]}
    assert storage.at("eval").read_table().num_rows == 3
    assert storage.read_table("nothing").num_rows == 0


def test_names_are_sorted_and_filtered(storage: Storage) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.json", "sub/x.jsonl", ".hidden.jsonl"):
        storage.write_bytes(name, b"")
    assert storage.names(".jsonl") == ["a.jsonl", "b.jsonl"]
    assert storage.names() == ["a.jsonl", "b.jsonl", "c.json", "sub"]


def test_a_later_write_replaces_and_remove_takes_away(storage: Storage) -> None:
    storage.write_bytes("f", b"old")
    storage.write_bytes("f", b"new")
    assert storage.read_bytes("f") == b"new"
    storage.write_bytes("d/e/f", b"")
    storage.remove("d")
    storage.remove("f")
    storage.remove("never was")
    assert storage.names() == []


def test_it_pickles_as_its_url(storage: Storage) -> None:
    storage.at("a", "b").write_json("x.json", 1)
    copy = pickle.loads(pickle.dumps(storage.at("a", "b")))  # noqa: S301 -- made right here
    assert copy.url == storage.at("a", "b").url
    assert copy.read_json("x.json") == 1


def test_a_folder_travels_to_storage_and_back(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "w.safetensors").write_bytes(b"w")
    (source / "config.json").write_text("{}")
    storage.upload(source, "t1/adapter")
    got = storage.download("t1/adapter", tmp_path / "copy")
    files = {p.relative_to(got).as_posix(): p.read_bytes() for p in got.rglob("*") if p.is_file()}
    assert files == {"deep/w.safetensors": b"w", "config.json": b"{}"}
    assert (got == tmp_path / "copy") is not storage.local


@pytest.mark.parametrize("read", ["read_bytes", "read_json", "read_table"])
def test_a_missing_file_is_a_storage_error_that_names_it(storage: Storage, read: str) -> None:
    with pytest.raises(StorageError, match=r"gone\.parquet"):
        getattr(storage, read)("gone.parquet")


def test_a_broken_json_file_is_a_storage_error_that_names_it(storage: Storage) -> None:
    storage.write_bytes("x.json", b"{")
    with pytest.raises(StorageError, match=r"parsing .*x\.json"):
        storage.read_json("x.json")


def test_text_that_utf8_cannot_carry_does_not_stop_a_write(storage: Storage) -> None:
    storage.write_json("x.json", {"a": "\ud800"})
    assert storage.read_json("x.json") == {"a": "?"}


def test_a_number_that_is_no_json_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        storage.write_json("x.json", float("nan"))
    assert not storage.exists("x.json")


def test_an_unknown_protocol_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="opening storage nope://x"):
        Storage("nope://x")


def test_a_relative_folder_is_kept_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("here")
    monkeypatch.chdir("/")
    assert storage.local
    assert storage.url == f"{tmp_path}/here"


def test_a_failed_local_write_leaves_the_old_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("f", b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        storage.write_bytes("folder", b"a file where a folder is")
    assert storage.read_bytes("f") == b"old"
    assert storage.names() == ["f", "folder"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    from threading import Event, Thread

    storage = Storage(str(tmp_path))
    contents = [letter * 500_000 for letter in (b"a", b"b")]
    storage.write_bytes("f", contents[0])
    stop = Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                storage.write_bytes("f", content)

    writer = Thread(target=write)
    writer.start()
    try:
        assert all(storage.read_bytes("f") in contents for _ in range(40))
    finally:
        stop.set()
        writer.join()
