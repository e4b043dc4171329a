from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import fsspec
import pytest

from flywheel.errors import DataError
from flywheel.stores import LogStore, open_store
from flywheel.stores.files import MAX_LINE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n  \n{"n": 2}')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 3}\n'))
    (tmp_path / "README.txt").write_text("no log")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.jsonl").write_text("{}\n")
    return tmp_path


def lines(store: LogStore) -> list[tuple[str, int, bytes]]:
    return [(Path(p).name, at, line.strip()) for p in store.paths() for at, line in store.read(p)]


ALL = [("a.jsonl.gz", 1, b'{"n": 3}'), ("b.jsonl", 1, b'{"n": 1}'), ("b.jsonl", 4, b'{"n": 2}')]


def test_a_folder_holds_its_json_lines_plain_or_gzipped(folder: Path) -> None:
    assert lines(open_store(str(folder))) == ALL
    assert lines(open_store(f"file://{folder}")) == ALL


def test_a_glob_and_a_file_narrow_it_down(folder: Path) -> None:
    assert lines(open_store(f"{folder}/*.jsonl")) == ALL[1:]
    assert lines(open_store(f"{folder}/*.jsonl*")) == ALL
    assert lines(open_store(f"{folder}/a.jsonl.gz")) == ALL[:1]
    assert lines(open_store(f"{folder}/README.txt")) == [("README.txt", 1, b"no log")]


def test_any_fsspec_url_is_a_store() -> None:
    fsspec.filesystem("memory").pipe_file("/logs/x.jsonl", b"{}\n")
    assert lines(open_store("memory://logs")) == [("x.jsonl", 1, b"{}")]


def test_a_relative_store_is_the_same_place_for_a_worker_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sent = pickle.dumps(open_store("b.jsonl"))
    monkeypatch.chdir("/")
    assert lines(pickle.loads(sent)) == ALL[1:]  # noqa: S301


def test_an_overlong_line_is_cut_and_the_next_keeps_its_number(tmp_path: Path) -> None:
    long, exact = b"x" * (MAX_LINE + 5), b"y" * MAX_LINE
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([long, b"{}", exact, b"{}"]))
    found = [(at, len(line)) for _, at, line in lines(open_store(str(tmp_path)))]
    assert found == [(1, MAX_LINE), (2, 2), (3, MAX_LINE), (4, 2)]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{}/nowhere", "no such file or folder"),
        ("{}/*.csv", "no such file or folder"),
        ("{}/empty", "the folder holds no"),
        ("nope://x", "opening log store nope://x"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, url: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as error:
        open_store(url.format(tmp_path)).paths()
    assert "\n" not in str(error.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    store = open_store(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        list(store.read(store.paths()[0]))
