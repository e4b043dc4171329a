"""A ground-truth file in place of production's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flywheel import folders, trials
from flywheel.config import Experiment, RankingConfig, validate
from flywheel.errors import ConfigError, StorageError
from flywheel.folders import Desk
from flywheel.leaderboard import Leaderboard, Verdict, rank, table, verdict
from flywheel.planning import plan
from flywheel.scoring import Scorer, chosen, references
from flywheel.statistics import estimate
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, sample_record, text_reply, tool_reply
from flywheel.types import Completion, Json, Score, ScoreStatus, Trial, TrialResult

RECORDS = sorted(
    (sample_record(f"question {i}", text_reply(f"label {i % 2}")) for i in range(20)),
    key=lambda record: record.id,
)


def write(path: Path, *rows: Any) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def truth(path: Path, expected: dict[str, Any]) -> str:
    return write(path, *({"id": name, "expected": said} for name, said in expected.items()))


def experiment(url: str, path: str, **ranking: Any) -> Experiment:
    return validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "methods": {"base": {}},
            "candidates": [{"model": "fake", "endpoint": url}],
            "scoring": {"references": path},
            "ranking": ranking,
        },
        "t.yaml",
    )


def test_the_file_says_what_is_right_and_what_it_does_not_name_is_unscored(tmp_path: Path):
    first, second = RECORDS[:2]
    found = references.read(truth(tmp_path / "t.jsonl", {first.id: "gold"}), masking=True)
    scorer = Scorer(chosen.bound(None, labels=True), references=found)
    (right, *_), (lost, *_) = (
        scorer.score(record, Completion(record.id, text_reply("Gold!"))) for record in RECORDS[:2]
    )
    assert (right.record_id, right.value) == (first.id, 1.0)
    assert (lost.value, lost.status, lost.reason) == (
        None,
        ScoreStatus.UNSCORED,
        "no_reference",
    )
    failed = scorer.score(second, Completion(second.id, error="timeout"))
    assert {score.status for score in failed} == {ScoreStatus.FAILED}


def test_a_call_may_be_what_is_right(tmp_path: Path):
    record = sample_record("Where is A-1?")
    gold = tool_reply("track_order", {"order_id": "A-1"})
    found = references.read(truth(tmp_path / "t.jsonl", {record.id: gold}), masking=True)
    scorer = Scorer(chosen.bound(None, labels=False), references=found)
    by_name = {s.metric: s.value for s in scorer.score(record, Completion(record.id, gold))}
    assert by_name["function_name_and_args_accuracy"] == 1
    assert "exact_match" not in by_name


def test_answers_are_masked_as_records_are(tmp_path: Path):
    path = truth(tmp_path / "t.jsonl", {"a": "Write to jane.roe@example.com", "b": "<EMAIL_1>"})
    masked = references.read(path, masking=True).messages
    assert [message["content"] for message in masked.values()] == [
        "Write to <EMAIL_1>",
        "<EMAIL_1>",
    ]
    plain = references.read(path, masking=False)
    assert plain.messages["a"]["content"] == "Write to jane.roe@example.com"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "t.jsonl:2: is no JSON"),
        ([1], r't.jsonl:2: must be an object with "id" and "expected"'),
        ({"id": "a"}, "and nothing else"),
        ({"id": "a", "expected": "x", "extra": 1}, "and nothing else"),
        ({"id": 7, "expected": "x"}, "id must be the id of a record"),
        ({"id": "first", "expected": "x"}, "record first is there twice"),
        ({"id": "a", "expected": 7}, "expected must be a text, or a message"),
        ({"id": "a", "expected": {"text": "x"}}, "expected must be a text, or a message"),
        ({"id": "a", "expected": {"content": 7}}, "content must be text"),
        ({"id": "a", "expected": {"tool_calls": [{"name": "f"}]}}, "tool_calls must be calls"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, message: str):
    path = write(tmp_path / "t.jsonl", {"id": "first", "expected": "x"}, row)
    with pytest.raises(ConfigError, match=message):
        references.read(path, masking=True)


def test_a_file_that_is_not_there_or_empty_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"scoring\.references: .* cannot be read"):
        plan(experiment("http://a/v1", str(tmp_path / "gone.jsonl")), "f")
    with pytest.raises(ConfigError, match="holds no answer"):
        plan(experiment("http://a/v1", write(tmp_path / "t.jsonl", "")), "f")


def test_what_the_file_says_is_part_of_every_trials_key(tmp_path: Path):
    keys = set()
    for name, said in (("a", "x"), ("b", "x"), ("c", "y")):
        path = truth(tmp_path / f"{name}.jsonl", {"r": said})
        (trial,) = plan(experiment("http://a/v1", path), "f")
        keys.add(trial.key)
    assert len(keys) == 2  # by content, not by name


def test_adaptive_evaluation_is_not_for_references(tmp_path: Path):
    with pytest.raises(ConfigError, match="compares with logged answers"):
        experiment("http://a/v1", "t.jsonl", adaptive=True)


def answered(tmp_path: Path, expected: dict[str, Any], kept: Any = None) -> tuple[Desk, Trial]:
    desk = Desk(Storage(str(tmp_path)), "run")
    rows = [record.to_row() for record in RECORDS]
    dataset = desk.storage.at("datasets", "f")
    dataset.write_table("eval/0.parquet", pa.Table.from_pylist(rows))
    dataset.write_json("manifest.json", {"class_mix": {"curated": {"label 0": 9, "label 1": 9}}})
    path = truth(tmp_path / "t.jsonl", expected)
    found = references.read(path, masking=True)
    desk.run.write_lines(folders.REFERENCES, found.rows() if kept is None else kept)
    with FakeEndpoint(lambda body: text_reply("label 1")) as fake:
        (trial,) = plan(experiment(fake.url, path), "f")
        trials.answer(trial, desk, fake.endpoint(), lambda done, total: None)
    return desk, trial


def test_a_trial_and_production_itself_are_scored_by_the_file(tmp_path: Path):
    desk, trial = answered(tmp_path, {record.id: "label 1" for record in RECORDS})
    scores = folders.read_scores(desk.folder(trial))
    assert {(s.metric, s.value) for s in scores} == {("exact_match", 1.0), ("label_accuracy", 1.0)}
    logged = [s for s in trials.production_scores(trial, desk) if s.metric == "label_accuracy"]
    assert sum(s.value or 0 for s in logged) == 10


def test_a_file_that_is_not_the_runs_own_is_refused(tmp_path: Path):
    other: list[Json] = [{"id": "x", "expected": text_reply("y")}]
    with pytest.raises(StorageError, match="is not what the run began with"):
        answered(tmp_path, {RECORDS[0].id: "label 1"}, other)


def board(right: int, logged: int, n: int = 200, **ranking: Any) -> Leaderboard:
    """A trial that has the first so many right, production the last so many."""
    name = "label_accuracy"
    mine = [Score(str(i), name, float(i < right)) for i in range(n)]
    production = [Score(str(i), name, float(i >= n - logged)) for i in range(n)]
    trial = Trial("c", "m", "base", {}, "d", 0)
    result = TrialResult(trial, "succeeded", metrics={name: estimate(mine)})
    config = RankingConfig(**ranking)
    return rank([result], {trial.key: mine}, config, logged=production)


@pytest.mark.parametrize(
    ("right", "logged", "said"),
    [
        (180, 180, Verdict.NOT_INFERIOR),  # as good as production, though far from 1
        (120, 180, Verdict.INFERIOR),
        (180, 120, Verdict.NOT_INFERIOR),
    ],
)
def test_production_is_measured_and_not_right_by_definition(right, logged, said):
    (row,) = board(right, logged).rows
    assert row.verdict is said
    assert row.to_production is not None
    assert row.to_production.value == pytest.approx((right - logged) / 200)
    assert row.to_production.p_value is not None


def test_the_board_shows_how_production_does():
    found = board(180, 170)
    _, rows = table(found)
    assert rows[-1][1:3] == ["production", "0.85 [0.79, 0.89]"]
    assert "within 0.1 of production (0.85)" in verdict(found)
    assert Leaderboard.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_without_a_file_production_is_right_by_definition():
    old = board(180, 170).to_json()
    del old["logged"]
    assert Leaderboard.from_json(old).logged is None
