from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from flywheel.datasets import Keys
from flywheel.datasets.duplicates import deduplicate
from flywheel.records import parse_line
from flywheel.redaction import redact
from flywheel.sample_logs import ANSWERS, ROUTER, TICKETS, SampleSummary, write_sample_logs
from flywheel.stores import Query, open_store
from flywheel.types import Record, Rejection


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample_logs(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def parsed(sample: SampleSummary) -> list[Record | Rejection]:
    store, everything = open_store(sample.directory), Query()
    return [
        parse_line(line, chunk.source(i), chunk.offsets[i])
        for shard in store.shards(everything, readers=2)
        for chunk in store.scan(shard, everything)
        for i, line in enumerate(chunk.lines)
    ]


def test_three_workloads_have_3000_records_in_four_files(sample: SampleSummary) -> None:
    assert sample.records == {ROUTER: 1500, TICKETS: 900, ANSWERS: 600}
    assert len(sample.files) == 4
    assert sample.lines == 3000 + sum(sample.rejected.values())


def test_curation_counts_what_was_planted(
    sample: SampleSummary, parsed: list[Record | Rejection]
) -> None:
    assert len(parsed) == sample.lines
    rejected = Counter(str(r.reason) for r in parsed if isinstance(r, Rejection))
    assert rejected == sample.rejected
    clean: defaultdict[str, list[Record]] = defaultdict(list)
    masked: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in (r for r in parsed if isinstance(r, Record)):
        masked_record, found = redact(record)
        clean[record.workload_id].append(masked_record)
        masked[record.workload_id] += found
    assert masked == sample.personal
    assert {name: len(own) for name, own in clean.items()} == sample.records
    none = np.empty((0, 2), np.int64)
    kept = {name: deduplicate(Keys.of(own), none) for name, own in clean.items()}
    for name, planted in sample.duplicates.items():
        assert kept[name].duplicates == {**planted, "near": 0}


def test_arguments_of_a_routed_call_stand_in_the_query(parsed: list[Record | Rejection]) -> None:
    routed = [r for r in parsed if isinstance(r, Record) and r.workload_id == ROUTER]
    for record in (redact(r)[0] for r in routed):
        query = record.messages[-1]["content"].casefold()
        (call,) = record.answer["tool_calls"]
        for value in call["function"]["arguments"].strip('{}"').split('","'):
            _, _, said = value.partition('":"')
            assert said.casefold() in " ".join(query.split())


def test_the_router_has_more_than_a_thousand_queries_of_ordinary_length(
    parsed: list[Record | Rejection],
) -> None:
    queries = {
        r.messages[-1]["content"]
        for r in parsed
        if isinstance(r, Record) and r.workload_id == ROUTER
    }
    assert len(queries) > 1000
    assert all(5 <= len(query.split()) <= 30 for query in queries)


def test_tickets_have_eight_topics(parsed: list[Record | Rejection]) -> None:
    answers = {
        r.answer["content"] for r in parsed if isinstance(r, Record) and r.workload_id == TICKETS
    }
    assert len(answers) == 8


def test_the_same_seed_writes_the_same_bytes(sample: SampleSummary, tmp_path: Path) -> None:
    again, other = write_sample_logs(tmp_path / "a"), write_sample_logs(tmp_path / "b", seed=1)

    def content(summary: SampleSummary) -> list[bytes]:
        return [Path(file).read_bytes() for file in summary.files]

    assert content(again) == content(sample)
    assert content(other) != content(sample)


def test_it_says_that_it_is_synthetic(sample: SampleSummary) -> None:
    assert "synthetic" in sample.notice
    assert (Path(sample.directory) / "README.txt").read_text() == sample.notice


@pytest.mark.parametrize("records", [100, 5000])
def test_sizes_from_100_to_5000_work(records: int, tmp_path: Path) -> None:
    assert sum(write_sample_logs(tmp_path, records).records.values()) == records


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="100 to 5000"):
        write_sample_logs(tmp_path, 99)


def test_a_store_lists_its_workloads(sample: SampleSummary) -> None:
    found = open_store(sample.directory).workloads()
    assert [w.workload_id for w in found] == [ANSWERS, ROUTER, TICKETS, ""]
    assert {w.workload_id: w.records for w in found if w.records} == sample.records
    rejected = sum((Counter(w.rejected) for w in found), Counter[str]())
    assert rejected == sample.rejected
    router = found[1]
    assert set(router.clients) == {"shop-web", "shop-app"}
    assert len(router.classes) == 5
    assert router.first is not None
    assert router.last is not None
    assert 1767225600 <= router.first < router.last < 1769904000
