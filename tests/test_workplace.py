"""A curation's folder for parts: kept for the next try, held by one at a time, swept in the end."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flywheel.curation.workplace import workplace
from flywheel.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def stop(storage: Storage, key: str | None) -> str:
    """Write a part and fail; gives the folder's URL."""
    with suppress(KeyboardInterrupt), workplace(storage, key) as folder:
        folder.write_bytes("part", b"x")
        raise KeyboardInterrupt
    return folder.url


def holder(pid: int, started: float, host: str, seen: float) -> dict[str, object]:
    return {"pid": pid, "started": started, "host": host, "seen": seen}


def test_success_leaves_nothing(storage: Storage) -> None:
    with workplace(storage, "k") as folder:
        folder.write_bytes("part", b"x")
    assert storage.at("scratch").names() == []


def test_the_next_try_finds_what_a_stopped_one_wrote(storage: Storage) -> None:
    stop(storage, "k")
    with workplace(storage, "k") as folder:
        assert folder.read_bytes("part") == b"x"


def test_without_a_key_nothing_is_kept(storage: Storage) -> None:
    stop(storage, None)
    assert storage.at("scratch").names() == []


def test_a_second_one_beside_it_works_elsewhere(storage: Storage) -> None:
    with workplace(storage, "k") as first, workplace(storage, "k") as second:
        assert first.url != second.url
    assert storage.at("scratch").names() == []


def test_a_killed_ones_folder_is_taken_over(storage: Storage) -> None:
    code = (
        "import os, sys; from flywheel.curation.workplace import workplace\n"
        "from flywheel.storage import Storage\n"
        "with workplace(Storage(sys.argv[1]), 'k') as folder:\n"
        "    folder.write_bytes('part', b'x'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, storage.url], check=False)
    assert storage.at("scratch", "k").read_json("holder.json")["pid"]
    with workplace(storage, "k") as folder:
        assert folder.read_bytes("part") == b"x"


@pytest.mark.parametrize(("age_s", "same"), [(3600, False), (25 * 3600, True)])
def test_a_holder_on_another_machine_is_believed_for_a_day(
    storage: Storage, age_s: float, same: bool
) -> None:
    place = storage.at("scratch", "k")
    place.write_json("holder.json", holder(1, 0.0, "elsewhere", time.time() - age_s))
    with workplace(storage, "k") as folder:
        assert (folder.url == place.url) is same


def test_what_nobody_went_on_with_is_swept_after_a_week(storage: Storage) -> None:
    week = 7 * 24 * 3600
    me = psutil.Process()
    for name, age_s in {"old": week + 60, "recent": week - 3600}.items():
        folder = storage.at("scratch", name)
        folder.write_json("holder.json", {"seen": time.time() - age_s})
    alive = holder(me.pid, me.create_time(), "", time.time() - week - 60)
    storage.at("scratch", "alive").write_json("holder.json", alive | {"host": socket.gethostname()})
    with workplace(storage, "k"):
        assert storage.at("scratch").names() == ["alive", "k", "recent"]
