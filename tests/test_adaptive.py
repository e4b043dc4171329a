"""When a trial is asked no further, and that nothing changes where that is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flywheel import adaptive, folders, trials
from flywheel.config import Experiment, validate
from flywheel.errors import ConfigError
from flywheel.folders import Desk
from flywheel.inference import read
from flywheel.planning import plan
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, sample_record, text_reply, tool_reply
from flywheel.types import Json, Record, Trial

RECORDS = sorted(
    (
        sample_record(f"Where is A-{i}?", tool_reply("track_order", {"order_id": f"A-{i}"}))
        for i in range(100)
    ),
    key=lambda record: record.id,
)


def experiment(url: str, **ranking: Any) -> Experiment:
    candidate = {"model": "fake", "endpoint": url, "concurrency": 8, "timeout_s": 5}
    base: Json = {"name": "t", "logs": "l", "workload": "w", "methods": {"base": {}}}
    return validate({**base, "candidates": [candidate], "ranking": ranking}, "t.yaml")


def wrong(body: Json) -> Json:
    return text_reply("I do not know")


def right(body: Json) -> Json:
    return tool_reply("track_order", {"order_id": body["messages"][-1]["content"][9:-1]})


def answered(folder: Path, answer: Any, **ranking: Any) -> tuple[Desk, Trial]:
    desk = Desk(Storage(str(folder)), "run")
    rows = [record.to_row() for record in RECORDS]
    desk.storage.at("datasets", "f").write_table("eval/0.parquet", pa.Table.from_pylist(rows))
    with FakeEndpoint(answer) as fake:
        (trial,) = plan(experiment(fake.url, **ranking), "f")
        trials.answer(trial, desk, fake.endpoint(), lambda done, total: None)
    return desk, trial


def test_a_trial_that_is_surely_worse_is_asked_no_further(tmp_path: Path) -> None:
    desk, trial = answered(tmp_path, wrong, adaptive=True)
    folder = desk.folder(trial)
    assert folders.read_stop(folder) == {"asked": 32, "of": 100}
    assert len(read(folder.at("completions"))) == 32
    accuracy = [s for s in folders.read_scores(folder) if s.metric == "function_name"]
    assert {s.record_id for s in accuracy} == {record.id for record in RECORDS[:32]}


def test_a_trial_that_is_not_is_asked_all_as_without(tmp_path: Path) -> None:
    found = []
    for name, on in (("on", True), ("off", False)):
        desk, trial = answered(tmp_path / name, right, adaptive=on)
        folder = desk.folder(trial)
        assert folders.read_stop(folder) == {}
        found.append({(s.record_id, s.metric, s.value) for s in folders.read_scores(folder)})
    assert found[0] == found[1]
    assert len({record for record, _, _ in found[0]}) == 100


def test_where_it_is_off_trials_are_what_they_were() -> None:
    (off,) = plan(experiment("http://a/v1"), "f")
    (on,) = plan(experiment("http://a/v1", adaptive=True), "f")
    assert "adaptive" not in off.settings
    assert off.key != on.key


def test_a_metric_that_needs_a_judge_stops_nobody(tmp_path: Path) -> None:
    desk, trial = answered(tmp_path, wrong, adaptive=True, metric="similarity")
    assert folders.read_stop(desk.folder(trial)) == {}


def in_conversations(size: int) -> list[Record]:
    """The same records, so many of each conversation, mixed."""
    parts = max(1, len(RECORDS) // size)
    return [
        Record(
            r.timestamp,
            r.workload_id,
            r.client_id,
            {**r.request, "metadata": {"conversation_id": str(i % parts)}},
            r.response,
        )
        for i, r in enumerate(RECORDS)
    ]


@pytest.mark.parametrize("size", [1, 5, 100])
def test_rounds_hold_whole_conversations(size: int) -> None:
    rule = adaptive.rule(experiment("http://a/v1", adaptive=True))["adaptive"]
    records = in_conversations(size)
    ordered, rounds = adaptive.order(records, rule, concurrency=8)
    assert {r.id for r in ordered} == {r.id for r in records}
    assert rounds[-1] == 100
    seen: set[str] = set()
    for start, end in zip([0, *rounds], rounds, strict=False):
        names = {r.request["metadata"]["conversation_id"] for r in ordered[start:end]}
        assert not names & seen
        seen |= names
    assert all(b - a >= 32 for a, b in zip([0, *rounds], rounds[:-1], strict=False))


def test_it_needs_the_logged_answers_to_compare_with() -> None:
    with pytest.raises(ConfigError, match=r"ranking\.adaptive compares with logged answers"):
        experiment("http://a/v1", adaptive=True, baseline="fake")
