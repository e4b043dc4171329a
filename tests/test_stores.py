from __future__ import annotations

import gzip
import io
import json
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel.errors import DataError
from flywheel.sample_logs import write_sample_logs
from flywheel.stores import Appended, Chunk, LogStore, Query, Shard, open_store
from flywheel.stores.files import FileStore
from flywheel.stores.lines import BLOCK, MAX_LINE, read_lines

ALL = Query()


def read(store: LogStore, readers: int = 1) -> list[tuple[str, int, bytes]]:
    """Every line of a store with the name of its file and its offset there."""
    return [
        (Path(chunk.source(i)).name, chunk.offsets[i], line)
        for shard in store.shards(ALL, readers)
        for chunk in store.scan(shard, ALL)
        for i, line in enumerate(chunk.lines)
    ]


def lines(chunks: Iterator[Chunk]) -> list[tuple[int, bytes]]:
    return [pair for chunk in chunks for pair in zip(chunk.offsets, chunk.lines, strict=True)]


def naive(content: bytes, limit: int = MAX_LINE) -> list[tuple[int, bytes]]:
    """One line after the other, with nothing clever about it."""
    found, at = [], 0
    for line in content.split(b"\n"):
        kept = line[:limit]
        if at == 0:
            kept = kept.removeprefix(b"\xef\xbb\xbf")
        if kept.strip():
            found.append((at, kept))
        at += len(line) + 1
    return found


PIECES = st.sampled_from(
    [
        b"",
        b"\r",
        b"  ",
        b"{}",
        b"\xef\xbb\xbf[]",
        b'{"a": 1}\r',
        b"x" * 31,
        b"y" * 40 + b"\r",
        b"z" * 200,
        b" " * 50,
    ]
)
CONTENT = st.builds(
    lambda mark, parts, end: mark + b"\n".join(parts) + end,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(PIECES | st.binary(max_size=20), max_size=12),
    st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]),
)


class Pipe(io.BytesIO):
    """What a decompressor is: forward only, with reads as short as it likes."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 1, 7))


@given(CONTENT, st.lists(st.integers(0, 400), max_size=6), st.integers(1, 32), st.booleans())
@example(b"\xef\xbb\xbf{}\n{}", [1, 2, 3, 4], 1, False)
@example(b"x" * 200 + b"\n{}", [33, 34, 150, 200, 201, 202], 16, False)
def test_any_division_of_any_file_gives_the_lines_of_a_naive_reader(
    content: bytes, cuts: list[int], block: int, piped: bool
) -> None:
    cuts = sorted({0, len(content), *(c for c in cuts if c < len(content))})
    found = []
    for start, end in pairwise(cuts):
        file = Pipe(content) if piped else io.BytesIO(content)
        found += lines(read_lines(file, "f", start, end, block=block, limit=32))
    assert found == naive(content, limit=32)
    assert lines(read_lines(io.BytesIO(content), "f", block=block, limit=32)) == found


@given(CONTENT, st.integers(1, 32))
def test_reading_goes_on_anywhere_after_a_line_without_a_loss_or_a_repeat(
    content: bytes, block: int
) -> None:
    expected = naive(content, limit=32)
    for i, (at, _) in enumerate(expected):
        again = read_lines(io.BytesIO(content), "f", at + 1, block=block, limit=32)
        assert lines(again) == expected[i + 1 :]


def test_chunks_are_of_bounded_size_and_say_where_they_are_from() -> None:
    content = b'{"n": 1}\n' * (2 * BLOCK // 9)
    chunks = list(read_lines(io.BytesIO(content), "f"))
    assert len(chunks) >= 2
    assert all(sum(map(len, chunk.lines)) <= BLOCK for chunk in chunks)
    assert {chunk.source(0) for chunk in chunks} == {"f"}


def test_an_overlong_line_is_cut_and_the_next_keeps_its_offset(tmp_path: Path) -> None:
    long, exact = b"x" * (MAX_LINE + 5), b"y" * MAX_LINE
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([long, b"{}", exact, b"{}"]))
    found = [(at, len(line)) for _, at, line in read(open_store(str(tmp_path)), readers=3)]
    starts = [0, MAX_LINE + 6, MAX_LINE + 9, 2 * MAX_LINE + 10]
    assert found == list(zip(starts, [MAX_LINE, 2, MAX_LINE, 2], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 1}\r\n\n  \n{"n": 2}')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 3}\n'))
    (tmp_path / "README.txt").write_text("no log")
    for unfinished in ("_temporary", ".hidden"):
        (tmp_path / unfinished).mkdir()
        (tmp_path / unfinished / "c.jsonl").write_text("{}\n")
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "c.jsonl.zst").write_bytes(pa.compress(b"{}\n", "zstd", asbytes=True))
    return tmp_path


A, B1, B2 = (
    ("a.jsonl.gz", 0, b'{"n": 3}'),
    ("b.jsonl", 0, b'{"n": 1}\r'),
    ("b.jsonl", 14, b'{"n": 2}'),
)
C = ("c.jsonl.zst", 0, b"{}")


def test_a_folder_holds_the_logs_below_it_but_nothing_hidden(folder: Path) -> None:
    assert read(open_store(str(folder))) == [A, B1, B2, C]
    assert read(open_store(f"file://{folder}")) == [A, B1, B2, C]


def test_a_glob_and_a_file_narrow_it_down(folder: Path) -> None:
    assert read(open_store(f"{folder}/*.jsonl")) == [B1, B2]
    assert read(open_store(f"{folder}/*.jsonl*")) == [A, B1, B2]
    assert read(open_store(f"{folder}/a.jsonl.gz")) == [A]
    assert read(open_store(f"{folder}/README.txt")) == [("README.txt", 0, b"no log")]


def test_links_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("links")
    (other / "b.jsonl").symlink_to(folder / "b.jsonl")
    assert read(open_store(str(other))) == [B1, B2]


def test_any_fsspec_url_is_a_store() -> None:
    fsspec.filesystem("memory").pipe_file("/logs/x.jsonl", b"{}\n")
    assert read(open_store("memory://logs")) == [("x.jsonl", 0, b"{}")]
    (shard,) = open_store("memory://logs").shards(ALL, 1)
    assert str(shard) == "memory:///logs/x.jsonl"


def test_a_relative_store_is_the_same_place_for_a_worker_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sent = pickle.dumps(open_store("b.jsonl"))
    monkeypatch.chdir("/")
    assert read(pickle.loads(sent)) == [B1, B2]  # noqa: S301


LOGS = b"".join(b'{"n": %d, "x": "%s"}\n' % (n, b"x" * (n % 90)) for n in range(5_000))
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, 1),
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed_files_give_the_lines_and_offsets_of_plain_ones(
    tmp_path: Path, suffix: str
) -> None:
    compress = COMPRESSED[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(LOGS[:70_001]) + compress(LOGS[70_001:]))  # as loggers append
    store = open_store(str(path))
    assert [(at, line) for _, at, line in read(store, readers=8)] == naive(LOGS)
    (shard,) = store.shards(ALL, 8)
    assert shard.end == -1


def test_large_plain_files_are_cut_so_that_every_reader_has_some_ranges(tmp_path: Path) -> None:
    for name, size in (("a.jsonl", 300), ("b.jsonl", 40)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size * 2**20)  # sparse
    store = open_store(str(tmp_path))
    cut = store.shards(ALL, readers=2)
    sizes = [shard.size for shard in cut]
    assert 8 <= len(cut) <= 12
    assert sum(sizes) == 340 * 2**20
    assert max(sizes) <= 1.1 * 340 / 8 * 2**20
    by_source = [shard for shard in cut if shard.source.endswith("a.jsonl")]
    assert [s.start for s in by_source[1:]] == [s.end for s in by_source[:-1]]
    assert min(s.size for s in store.shards(ALL, readers=1000)) >= 10 * 2**20
    assert max(s.size for s in store.shards(ALL, readers=1)) <= 256 * 2**20


# Parquet

ROWS: list[dict[str, Any]] = [
    {
        "timestamp": 1767225600.5 + n,
        "workload_id": "w",
        "client_id": "c",
        "request": {"messages": [{"role": "user", "content": f"q{n}"}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": "ä"}}]},
    }
    for n in range(5)
]


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> LogStore:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return open_store(str(path))


def test_parquet_rows_are_the_log_lines_they_stand_for(tmp_path: Path) -> None:
    texts = [
        {**row, "request": json.dumps(row["request"]), "response": json.dumps(row["response"])}
        for row in ROWS
    ]
    whole = [{"line": json.dumps(row)} for row in ROWS]
    for number, layout in enumerate((ROWS, texts, whole)):
        found = read(parquet(tmp_path / f"{number}.parquet", layout))
        assert [at for _, at, _ in found] == [0, 1, 2, 3, 4]
        assert [json.loads(line) for _, _, line in found] == ROWS


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_parquet_file_read_in_parts_gives_each_row_once(tmp_path: Path, compression: str) -> None:
    rows = [{"line": f"{n}"} for n in range(2_500)]
    path = tmp_path / "a.parquet"
    store = parquet(path, rows, row_group_size=400, compression=compression)
    for cuts in ([0, 2500], [0, 1, 399, 400, 401, 1999, 2500], [0, 800, 1600, 2500]):
        parts = [Shard(str(path), start, end) for start, end in pairwise(cuts)]
        found = [pair for part in parts for pair in lines(store.scan(part, ALL))]
        assert found == [(n, str(n).encode()) for n in range(2_500)]
    assert lines(store.scan(Shard(str(path), start=2_499), ALL)) == [(2_499, b"2499")]


def test_large_parquet_files_are_cut_between_row_groups(tmp_path: Path) -> None:
    noise = [{"line": "".join(map(chr, range(40, 120))) * 500}] * 1_600
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 200}
    store = parquet(path, noise, **options)
    cut = store.shards(ALL, readers=4)
    assert [(s.start, s.end) for s in cut] == [(0, 400), (400, 800), (800, 1200), (1200, 1600)]


def test_shapes_that_arrow_unites_are_told_apart_again(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"request": {"tools": [{"name": "a", "properties": {"city": "x"}}]}},
        {"request": {"tools": [{"name": "b", "properties": {"order": 1}}]}},
    ]
    found = read(parquet(tmp_path / "a.parquet", rows))
    assert [json.loads(line) for _, _, line in found] == rows


def test_odd_cells_are_odd_lines_and_stop_nothing(tmp_path: Path) -> None:
    injected = b'{"messages": []}, "workload_id": "theirs"'
    table = pa.table(
        {
            "timestamp": pa.array([1_767_225_600_000_000_000] * 3, pa.timestamp("ns")),
            "workload_id": pa.array(["w", "w", None]).dictionary_encode(),
            "request": pa.array([b"{}", injected, b"\xff"], pa.binary()),
            "extra": pa.array([1.5, float("nan"), None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = [json.loads(line) for _, _, line in read(open_store(f"{tmp_path}/a.parquet"))]
    row = {"timestamp": 1767225600.0, "workload_id": "w", "request": {}, "extra": 1.5}
    assert found[0] == row
    assert found[1] == {**row, "request": injected.decode(), "extra": None}
    assert found[2] == {**row, "workload_id": None, "request": "\ufffd", "extra": None}


def test_parquet_of_another_layout_says_what_is_accepted(tmp_path: Path) -> None:
    store = parquet(tmp_path / "a.parquet", [{"prompt": "x", "label": 1}])
    with pytest.raises(DataError, match=r"a\.parquet.* prompt, label; they must be line"):
        read(store)


# Faults


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
        open_store(url.format(tmp_path)).shards(ALL, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(LOGS)[:-500]),
        ("a.jsonl.zst", b"not zstd"),
        ("a.parquet", b"not parquet"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(FileStore(str(tmp_path), retry_after_s=()))


class Flaky(MemoryFileSystem):
    """A remote file system whose connection breaks at some reads."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 -- fsspec's own way
    pseudo_dirs = [""]  # noqa: RUF012
    reads = 0
    fails_at: set[int] = set()  # noqa: RUF012

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        return FlakyFile(self.store[path].getvalue())

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))


class FlakyFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        Flaky.reads += 1
        if Flaky.reads in Flaky.fails_at:
            raise TimeoutError("the line went dead")
        return super().read(size)


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.reads, Flaky.fails_at = 0, set()
    yield Flaky
    Flaky.store.clear()


NOISE = random.Random(0)
LARGE = b"".join(
    b'{"n": %d, "x": "%s"}\n' % (n, NOISE.randbytes(500).hex().encode()) for n in range(9_000)
)
"""Several blocks, and not much less when compressed."""


@pytest.mark.parametrize("suffix", ["", *COMPRESSED])
def test_a_read_that_fails_is_taken_up_where_it_stopped(flaky: type[Flaky], suffix: str) -> None:
    data = COMPRESSED[suffix](LARGE) if suffix else LARGE
    fsspec.filesystem("flaky").pipe_file(f"/logs/x.jsonl{suffix}", data)
    flaky.fails_at = {1, 3, 60}
    store = FileStore("flaky://logs", retry_after_s=(0, 0, 0))
    found = [(at, line) for _, at, line in read(store)]
    assert found == naive(LARGE)


def test_a_read_that_goes_on_failing_is_one_error_that_names_the_shard(
    flaky: type[Flaky],
) -> None:
    fsspec.filesystem("flaky").pipe_file("/logs/x.jsonl", LARGE)
    flaky.fails_at = set(range(1, 100))
    store = FileStore("flaky://logs", retry_after_s=(0, 0))
    (shard,) = store.shards(ALL, 1)
    told = r"TimeoutError while reading flaky://.*/x\.jsonl \[100, 2000\): the line went dead"
    part = replace(shard, start=100, end=2000)
    with pytest.raises(DataError, match=told):
        list(store.scan(part, ALL))
    assert flaky.reads == 3


def test_a_file_that_is_gone_is_not_waited_for(folder: Path) -> None:
    store = open_store(f"{folder}/b.jsonl")
    shards = store.shards(ALL, 1)
    (folder / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"FileNotFoundError while reading .*b\.jsonl"):
        list(store.scan(shards[0], ALL))


def test_a_scan_given_up_closes_its_file(folder: Path) -> None:
    store = open_store(f"{folder}/b.jsonl")
    chunks = store.scan(store.shards(ALL, 1)[0], ALL)
    next(chunks)
    del chunks  # an open file would be a ResourceWarning, and so an error


# Appending

DOCUMENTS = [{"workload_id": "w", "n": n, "text": "ä\ud800"} for n in range(10)]


def append(store: LogStore, documents: list[dict[str, Any]]) -> tuple[Appended, list[int]]:
    told: list[int] = []
    return store.append(documents, told.append), told


def test_what_was_appended_is_read_again_and_appending_it_twice_changes_nothing(
    tmp_path: Path,
) -> None:
    store = open_store(str(tmp_path / "new"))
    assert append(store, DOCUMENTS) == (Appended(written=10), [10])
    found = read(store)
    assert [json.loads(line) for _, _, line in found] == DOCUMENTS
    assert append(store, DOCUMENTS) == (Appended(unchanged=10), [10])
    assert read(store) == found
    assert append(store, DOCUMENTS[:1])[0] == Appended(written=1)
    assert len({name for name, _, _ in read(store)}) == 2


def test_what_json_cannot_hold_is_refused_by_id(tmp_path: Path) -> None:
    done, _ = append(open_store(str(tmp_path)), [*DOCUMENTS, {"n": float("nan")}])
    ((identity, reason),) = done.refused
    assert (done.written, len(identity)) == (10, 16)
    assert "not JSON compliant" in reason


def test_appending_works_on_any_file_system() -> None:
    store = open_store("memory://appended")
    assert append(store, DOCUMENTS)[0].written == 10
    assert len(read(store)) == 10


@pytest.mark.parametrize("name", ["new.jsonl", "day=*", "b.jsonl", "README.txt"])
def test_only_a_folder_can_be_appended_to(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="name a folder"):
        append(open_store(f"{folder}/{name}"), DOCUMENTS)


def test_a_folder_that_cannot_be_written_is_one_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"README\.txt/below cannot be written"):
        append(open_store(f"{folder}/README.txt/below"), DOCUMENTS)


# The sample store, and what a store holds


def test_the_sample_store_holds_what_the_sample_command_writes(tmp_path: Path) -> None:
    write_sample_logs(tmp_path, 300, seed=2)
    made, written = open_store("sample://300?seed=2"), open_store(str(tmp_path))
    assert [(at, line) for _, at, line in read(made)] == [
        (at, line) for _, at, line in read(written)
    ]
    assert made.workloads() == written.workloads()
    with pytest.raises(DataError, match="cannot be added to"):
        append(made, DOCUMENTS)


def test_line_breaks_and_marks_of_other_systems_change_no_record(tmp_path: Path) -> None:
    (file, *_) = write_sample_logs(tmp_path, 100).files
    unix = open_store(file).workloads()
    Path(file).write_bytes(b"\xef\xbb\xbf" + Path(file).read_bytes().replace(b"\n", b"\r\n"))
    assert open_store(file).workloads() == unix


@pytest.mark.parametrize("url", ["sample://many", "sample://3000?seed=x", "sample://7"])
def test_a_wrong_sample_url_says_what_it_must_look_like(url: str) -> None:
    with pytest.raises(DataError, match=r"must look like sample://3000\?seed=0"):
        open_store(url).shards(ALL, 1)
