from __future__ import annotations

import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from flywheel.config import Experiment, validate
from flywheel.curation import COMPARING, READING, WRITING, curate, load_manifest, load_split
from flywheel.datasets import SPLITS, Manifest
from flywheel.errors import DataError
from flywheel.sample_logs import ROUTER, TICKETS, SampleSummary, write_sample_logs
from flywheel.storage import Storage
from tests.benchmarks import traffic

LINE = json.dumps(
    {
        "timestamp": 1_700_000_000,
        "workload_id": ROUTER,
        "client_id": "c",
        "request": {"messages": [{"role": "user", "content": "Where is my parcel?"}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": "here"}}]},
    }
).encode()

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def experiment(logs: Path | str, workload: str = ROUTER, **fields: Any) -> Experiment:
    base = {"name": "t", "candidates": [{"model": "m"}], "methods": {"base": {}}}
    return validate({**base, "logs": str(logs), "workload": workload, **fields}, "test")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample_logs(tmp_path_factory.mktemp("logs"), records=600)


@pytest.fixture(scope="module")
def kept(sample: SampleSummary, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("kept")))


@pytest.fixture(scope="module")
def manifest(sample: SampleSummary, kept: Storage, ray_session: None) -> Manifest:
    return curate(experiment(sample.directory), kept)


def test_the_manifest_counts_what_was_planted(sample: SampleSummary, manifest: Manifest) -> None:
    assert manifest.lines == sample.lines
    assert manifest.records == sample.records[ROUTER]
    assert manifest.rejected == sample.rejected
    assert manifest.other_workloads == 600 - sample.records[ROUTER]
    assert manifest.masked == sample.personal[ROUTER]
    repeats = {k: n for k, n in manifest.duplicates.items() if k != "near"}
    assert repeats == sample.duplicates[ROUTER]
    dropped = sum(manifest.duplicates.values()) + manifest.over_limit
    assert manifest.contradictions["rejected"] == 0
    assert manifest.curated + dropped == manifest.records
    assert manifest.production["requests"] == manifest.curated
    assert not any(n for pair in manifest.leak_check.values() for n in pair.values())


def test_a_dataset_is_read_back_as_it_was_counted(kept: Storage, manifest: Manifest) -> None:
    assert load_manifest(kept, manifest.fingerprint) == manifest
    for split in SPLITS:
        records = load_split(kept, manifest.fingerprint, split)
        assert len(records) == manifest.splits[split]
        assert [r.id for r in records] == sorted(r.id for r in records)
    folder = kept.at("datasets", manifest.fingerprint)
    assert set(folder.read_table("eval")["class"].to_pylist()) == set(manifest.class_mix["eval"])


def test_rejections_name_the_line_they_stand_for(
    sample: SampleSummary, kept: Storage, manifest: Manifest
) -> None:
    rows = kept.at("datasets", manifest.fingerprint).read_table("rejections").to_pylist()
    assert len(rows) == sum(sample.rejected.values())
    for row in rows:
        line = Path(row["source"]).read_bytes()[row["offset"] :].splitlines()[0].decode()
        if row["reason"] == "unknown_role":
            assert "shopkeeper" in line
        if row["reason"] == "bad_timestamp":
            assert "last week" in line


def test_no_raw_personal_data_is_on_disk(kept: Storage, manifest: Manifest) -> None:
    folder = kept.at("datasets", manifest.fingerprint)
    for name in (*SPLITS, "rejections"):
        text = str(folder.read_table(name).to_pylist())
        assert "@" not in text
        assert not re.search(r"555[ -]01", text)


def files_of(storage: Storage, fingerprint: str, names: tuple[str, ...]) -> dict[str, bytes]:
    folder = storage.at("datasets", fingerprint)
    return {
        f"{name}/{part}": folder.read_bytes(f"{name}/{part}")
        for name in names
        for part in folder.at(name).names()
    }


def test_other_shards_in_another_order_give_the_same_bytes(
    sample: SampleSummary, kept: Storage, manifest: Manifest, tmp_path: Path
) -> None:
    lines = [line for f in sample.files for line in Path(f).read_bytes().splitlines(keepends=True)]
    random.Random(1).shuffle(lines)
    (tmp_path / "logs").mkdir()
    for shard in range(3):
        with gzip.open(tmp_path / "logs" / f"{9 - shard}.jsonl.gz", "wb") as file:
            file.write(b"\n".join(lines[shard::3]))
    storage = Storage(str(tmp_path / "out"))
    again = curate(experiment(tmp_path / "logs"), storage)
    assert again == manifest
    files = files_of(kept, manifest.fingerprint, SPLITS)
    assert files_of(storage, again.fingerprint, SPLITS) == files
    assert len(files) == 3


def test_a_finished_dataset_is_not_written_again(
    sample: SampleSummary, kept: Storage, manifest: Manifest
) -> None:
    stages: list[str] = []
    wanted = experiment(sample.directory)
    assert curate(wanted, kept, lambda stage, *_: stages.append(stage)) == manifest
    assert READING in stages
    assert WRITING not in stages


def test_more_rejections_renew_the_manifest_of_the_same_dataset(
    sample: SampleSummary, manifest: Manifest, kept: Storage, tmp_path: Path
) -> None:
    for path in map(Path, sample.files):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "late.jsonl").write_bytes(b"\n{}\n[]\n")
    later = curate(experiment(tmp_path), kept)
    assert later.fingerprint == manifest.fingerprint
    assert later.lines == manifest.lines + 2
    assert load_manifest(kept, later.fingerprint) == later
    rows = kept.at("datasets", later.fingerprint).read_table("rejections")
    assert rows.num_rows == sum(later.rejected.values())


def test_one_client_is_asked_for(sample: SampleSummary, tmp_path: Path) -> None:
    wanted = experiment(sample.directory, client="shop-web")
    manifest = curate(wanted, Storage(str(tmp_path)))
    records = [
        r for s in SPLITS for r in load_split(Storage(str(tmp_path)), manifest.fingerprint, s)
    ]
    assert {r.client_id for r in records} == {"shop-web"}
    assert manifest.lines == (
        manifest.records + sum(manifest.rejected.values()) + manifest.other_workloads
    )


def test_without_masking_the_text_stays(sample: SampleSummary, tmp_path: Path) -> None:
    wanted = experiment(sample.directory, TICKETS, dataset={"masking": False})
    manifest = curate(wanted, Storage(str(tmp_path)))
    assert manifest.masked == {}
    text = str([load_split(Storage(str(tmp_path)), manifest.fingerprint, s) for s in SPLITS])
    assert "@example" in text


def test_progress_is_told_to_its_end(sample: SampleSummary, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    curate(experiment(sample.directory), Storage(str(tmp_path)), lambda *t: told.append(t))
    stages = [stage for stage, _, _ in told]
    assert list(dict.fromkeys(stages)) == [READING, COMPARING, WRITING]
    for stage in (READING, COMPARING, WRITING):
        done = [(d, t) for s, d, t in told if s == stage]
        assert done[0][0] == 0
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1] > 0


def test_ray_data_says_nothing(
    sample: SampleSummary, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    curate(experiment(sample.directory), Storage(str(tmp_path)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workload": "nope"}, r"no record of nope; there are 'shop\.router' \(300\), .*tickets"),
        ({"client": "nope"}, r"no record of shop\.router by nope; there are 'shop-"),
        ({"dataset": {"min_total_records": 500}}, r"shop\.router: 2\d\d of 300 records"),
    ],
)
def test_what_is_not_in_the_logs_is_one_sentence(
    sample: SampleSummary, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        curate(experiment(sample.directory, **fields), Storage(str(tmp_path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "datasets").exists()


def test_a_missing_place_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        curate(experiment(tmp_path / "nowhere"), Storage(str(tmp_path)))
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        curate(experiment(tmp_path), Storage(str(tmp_path)))


def test_a_file_no_worker_can_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"reading .*a\.jsonl\.gz") as error:
        curate(experiment(tmp_path), Storage(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_real_traffic_counts_as_its_readme_says(shared_data: Path, tmp_path: Path) -> None:
    wanted = experiment(shared_data / "assistant_router", "assistant.router")
    manifest = curate(wanted, Storage(str(tmp_path)))
    assert manifest.lines == 2280
    assert manifest.rejected == {
        "not_json": 15,
        "empty_choices": 20,
        "tool_arguments_not_json": 20,
        "bad_timestamp": 10,
        "missing_workload_id": 10,
        "empty_messages": 10,
        "unknown_role": 10,
    }
    assert manifest.records == 2185
    near = manifest.duplicates.pop("near")
    assert manifest.duplicates == {"exact": 2185 - 2054, "normalised": 2054 - 1993}
    assert manifest.curated == 1993 - near
    assert 0 < near < 60
    assert manifest.splits["eval"] == 100
    assert manifest.masked == {}


def test_a_tool_workload_counts_as_planted(tmp_path: Path) -> None:
    planted = traffic.write(tmp_path / "logs", 3000)
    manifest = curate(experiment(tmp_path / "logs", traffic.WORKLOAD), Storage(str(tmp_path / "s")))
    assert manifest.records == planted.records
    assert manifest.rejected == planted.rejected
    assert manifest.masked == planted.personal
    assert manifest.duplicates == {
        "exact": planted.exact,
        "normalised": planted.normalised,
        "near": planted.near,
    }
    assert not any(n for pair in manifest.leak_check.values() for n in pair.values())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no|no record of"),
        ([b"{}", b"[]", b"{"], "there are no valid records at all"),
        ([LINE] * 60, r"1 of 60 records .*min_total_records \(50\)"),
    ],
    ids=["empty", "all rejected", "all duplicates"],
)
def test_logs_that_make_no_dataset_are_one_sentence(
    tmp_path: Path, lines: list[bytes], message: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=message) as error:
        curate(experiment(tmp_path / "a.jsonl"), Storage(str(tmp_path / "out")))
    assert "\n" not in str(error.value)


def test_one_class_is_a_small_dataset(tmp_path: Path) -> None:
    lines = [LINE.replace(b"Where", b"Where %d" % n) for n in range(60)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    manifest = curate(experiment(tmp_path / "a.jsonl"), Storage(str(tmp_path / "out")))
    assert manifest.class_mix["curated"] == {"here": 60 - manifest.duplicates["near"]}
    assert manifest.rare_classes == {}


def test_a_stopped_curation_goes_on_where_it_was(tmp_path: Path) -> None:
    """Files it had read are not read again: here they hold nothing readable any more."""
    logs = tmp_path / "logs"
    write_sample_logs(logs, records=600)
    whole = curate(experiment(logs), Storage(str(tmp_path / "whole")))
    storage = Storage(str(tmp_path / "storage"))

    def stop_comparing(stage: str, done: int, total: int) -> None:
        if stage != READING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(experiment(logs), storage, stop_comparing)
    for path in logs.glob("*.jsonl"):
        stat = path.stat()
        path.write_bytes(b"#" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert curate(experiment(logs), storage) == whole
    assert not storage.at("scratch").names()


def test_logs_that_changed_are_read_anew(tmp_path: Path) -> None:
    logs, storage = tmp_path / "logs", Storage(str(tmp_path / "storage"))
    write_sample_logs(logs, records=600)

    def stop(stage: str, done: int, total: int) -> None:
        if stage != READING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(experiment(logs), storage, stop)
    with (logs / "more.jsonl").open("wb") as file:
        file.write(LINE + b"\n")
    fresh = curate(experiment(logs), Storage(str(tmp_path / "fresh")))
    assert curate(experiment(logs), storage) == fresh
