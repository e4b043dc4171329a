"""What was taken in is on disk, on any file system, and what was cut off is as if never asked."""

from __future__ import annotations

import asyncio
import resource
import uuid
from pathlib import Path

import pytest

from flywheel.errors import StorageError
from flywheel.inference.journal import PARTS, Journal, read
from flywheel.storage import Storage
from flywheel.testing import text_reply
from flywheel.types import Completion


def completion(i: int, text: str = "x") -> Completion:
    return Completion(f"r{i}", text_reply(f"{text} {i}\n\u2028 ü"), "stop", 1, 2, 0.5)


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    local = request.param == "local"
    return Storage(str(tmp_path / "c") if local else f"memory://{uuid.uuid4().hex}/c")


async def taken_in(journal: Journal, completions: list[Completion]) -> None:
    await asyncio.gather(*map(journal.add, completions))


def write(folder: Storage, completions: list[Completion], *, close: bool = True) -> None:
    journal = Journal(folder)
    asyncio.run(taken_in(journal, completions))
    if close:
        journal.close()


def test_everything_is_read_back_once(folder: Storage) -> None:
    some = [completion(i) for i in range(100)]
    write(folder, some)
    assert read(folder) == some
    assert len(folder.names()) == 1


def test_what_was_taken_in_is_there_without_a_close(folder: Storage) -> None:
    async def one_by_one() -> None:
        journal = Journal(folder)
        for i in range(5):
            await journal.add(completion(i))
            assert len(read(folder)) == i + 1

    asyncio.run(one_by_one())


def test_sessions_add_to_each_other_and_the_later_counts(folder: Storage) -> None:
    write(folder, [Completion("r0", error="no"), completion(1)])
    for i in range(12):
        write(folder, [completion(0, f"later {i}")])
    assert read(folder) == [completion(0, "later 11"), completion(1)]


def test_a_journal_that_took_nothing_leaves_nothing(folder: Storage) -> None:
    write(folder, [])
    assert folder.names() == []
    assert read(folder) == []


def test_many_objects_become_shards() -> None:
    folder = Storage(f"memory://{uuid.uuid4().hex}/c")

    async def one_by_one(journal: Journal) -> None:
        for i in range(PARTS + 3):
            await journal.add(completion(i))

    journal = Journal(folder)
    asyncio.run(one_by_one(journal))
    assert len(folder.names()) == 1 + 3
    journal.close()
    assert len(folder.names()) == 2
    assert read(folder) == [completion(i) for i in range(PARTS + 3)]


def test_parts_of_a_killed_session_are_read_beside_their_shard() -> None:
    folder = Storage(f"memory://{uuid.uuid4().hex}/c")
    write(folder, [completion(0)], close=False)
    (part,) = folder.names()
    folder.write_bytes(part.replace(".part-000", ""), folder.read_bytes(part))
    write(folder, [completion(1)])
    assert read(folder) == [completion(0), completion(1)]


def test_a_line_cut_off_at_any_byte_is_as_if_never_written(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    write(folder, [completion(0), completion(1)])
    (name,) = folder.names()
    whole = folder.read_bytes(name)
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        (tmp_path / name).write_bytes(whole[:end])
        assert read(folder) == [completion(0)]


def test_a_line_that_is_damaged_inside_is_told(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    write(folder, [completion(0), completion(1)])
    (name,) = folder.names()
    (tmp_path / name).write_bytes(b"{rubb" + folder.read_bytes(name)[5:])
    with pytest.raises(StorageError, match=f"parsing .*{name}"):
        read(folder)


def test_a_disk_that_was_full_leaves_whole_lines(tmp_path: Path) -> None:
    folder, some = Storage(str(tmp_path)), [completion(i) for i in range(8)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(StorageError, match=r"while writing to .*File too large"):
            asyncio.run(taken_in(journal, some))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = read(folder)
    assert 0 < len(kept) < len(some)
    assert kept == some[: len(kept)]
    journal.close()
    assert read(folder) == some


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="writing to"):
        write(Storage(str(tmp_path / "file" / "c")), [completion(0)])
