from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel import ingest as module
from flywheel.errors import DataError
from flywheel.ingest import Refused, Report, ingest
from flywheel.stores import Query, open_store
from flywheel.types import Json

LOG: Json = {"workload_id": "w", "client_id": "c", "request": {"a": 1}, "response": {}}
CHAT: Json = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def load(files: list[Path], to: Path, **defaults: Any) -> Report:
    to.mkdir(exist_ok=True)
    return ingest([str(f) for f in files], str(to), lambda done, total: None, **defaults)


def written(path: Path, *lines: Json | bytes) -> Path:
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(rows))
    return path


def held(folder: Path) -> Iterator[Json]:
    store = open_store(str(folder))
    for shard in store.shards(Query(), 1):
        for chunk in store.scan(shard, Query()):
            yield from map(json.loads, chunk.lines)


def test_lines_of_the_schema_pass_unchanged_and_others_are_converted(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", LOG, CHAT)
    report = load([path], tmp_path / "out", workload_id="shop", client_id="web")
    assert report == Report(lines=2, written=2)
    first, second = held(tmp_path / "out")
    assert first == LOG
    assert (second["workload_id"], second["client_id"]) == ("shop", "web")
    assert second["response"]["choices"][0]["message"]["content"] == "b"


def test_a_line_that_cannot_be_taken_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    lines = [b"{", LOG, b"[1]", CHAT, {"x": 1}, b'"\xff"', b'{"request": NaN}', b"[" * 5000]
    path = written(tmp_path / "in.jsonl", *lines)
    report = load([path], tmp_path / "out")
    assert (report.lines, report.written, report.refused) == (8, 1, 7)
    assert list(held(tmp_path / "out")) == [LOG]
    assert [refused.source for refused in report.listed] == [str(path)] * 7
    assert report.listed[0].offset == 0
    reasons = [refused.reason for refused in report.listed]
    assert "names no workload_id; give one with --workload-id" in reasons[2]
    assert "no known format" in reasons[3]
    assert all("\n" not in reason and str(path) not in reason for reason in reasons)


def test_loading_again_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", LOG, {**LOG, "client_id": "d"})
    load([path], tmp_path / "out")
    assert load([path], tmp_path / "out") == Report(lines=2, unchanged=2)
    assert len(list(held(tmp_path / "out"))) == 2


def test_nothing_is_written_if_a_file_is_missing_or_no_line_is_good(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a.jsonl", LOG), written(tmp_path / "b.jsonl", b"{", b"[]")
    with pytest.raises(DataError, match="no such file"):
        load([good, tmp_path / "missing.jsonl"], tmp_path / "out")
    with pytest.raises(DataError, match=r"none of 2 lines could be loaded; .*b\.jsonl at 0: "):
        load([bad], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{n}.jsonl", LOG, LOG) for n in range(3)]
    to = tmp_path / "out"
    to.mkdir()
    seen: list[tuple[int, int]] = []
    ingest([str(f) for f in files], str(to), lambda done, total: seen.append((done, total)))
    total = sum(f.stat().st_size for f in files)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert {t for _, t in seen} == {total}


def test_half_a_surrogate_pair_is_mended_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", b'{"request": {"a": "\\ud83d"}}')
    assert load([path], tmp_path / "out").mended == 1
    assert list(held(tmp_path / "out")) == [{"request": {"a": "\ufffd"}}]


def test_a_report_lists_only_so_many(tmp_path: Path) -> None:
    report = Report()
    for n in range(module.LISTED + 5):
        report.refuse("a", n, "is not JSON")
    assert report.refused == module.LISTED + 5
    assert len(report.listed) == module.LISTED
    assert report.listed[-1] == Refused("a", module.LISTED - 1, "is not JSON")
