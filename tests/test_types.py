"""Identity is content, and what crosses process boundaries pickles."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from flywheel import errors
from flywheel.config import CandidateConfig, validate
from flywheel.folders import Desk
from flywheel.judging import Pair
from flywheel.rendering import Example
from flywheel.serving import Endpoint
from flywheel.serving.engine import EngineSpec
from flywheel.storage import Storage
from flywheel.testing import sample_record
from flywheel.types import (
    Completion,
    Cost,
    Estimate,
    Json,
    Latency,
    Reason,
    Record,
    Rejection,
    Score,
    ScoreStatus,
    Trial,
    TrialResult,
    canonical_json,
    content_hash,
)

TRIAL = Trial(
    "SmolLM2", "org/smol", "lora", {"rank": 8, "epochs": 1.0}, "9f3c", 0, {"engine": {"a": 1}}
)
RESULT = TrialResult(
    TRIAL,
    "succeeded",
    metrics={"similarity": Estimate(0.5, 0.4, 0.6, 100, unscored=3, failed=2)},
    latency=Latency(0.1, 0.2, 300.0, 9.0, 16),
    cost=Cost(0.03, "machine"),
    training={"losses": [2.0, 1.0]},
    provenance={"seed": 0},
    misses={"no_call": {"records": 1, "examples": ["r"]}},
)


def test_equal_json_has_one_text_whatever_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1})
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'


def test_a_hash_stays_what_it_was() -> None:
    assert content_hash({"a": 1}) == "015abd7f5cc57a2d"
    assert content_hash("\ud800") != content_hash("\ud801")
    assert len(content_hash([], 6)) == 6


def test_a_record_is_named_by_its_content() -> None:
    record = sample_record("Where is A-1?")
    assert record.id == sample_record("Where is A-1?").id
    assert record.id != sample_record("Where is A-2?").id
    assert record.id != sample_record("Where is A-1?", timestamp=1.0).id


def test_a_record_survives_the_way_to_parquet_and_back() -> None:
    record = sample_record("Wo ist „A-1“? 😀")
    row = {**record.to_row(), "class": "a further column"}
    assert Record.from_row(row) == record


def test_the_logged_order_of_keys_survives_parquet() -> None:
    request = {"messages": [{"role": "user", "content": "hi"}], "b": 1, "a": {"z": 1, "y": 2}}
    record = Record(0.0, "w", "c", request, {"choices": [{"message": {"content": "x"}}]})
    back = Record.from_row(record.to_row())
    assert list(back.request) == ["messages", "b", "a"]
    assert list(back.request["a"]) == ["z", "y"]


def test_a_record_without_tools_or_usage_has_empty_ones() -> None:
    response = {"choices": [{"message": {"role": "assistant", "content": "x"}}], "usage": None}
    record = Record(0.0, "w", "c", {"messages": [], "tools": None}, response)
    assert (record.tools, record.usage) == ([], {})


@pytest.mark.parametrize(
    "change",
    [
        {"candidate": "other"},
        {"model": "org/other"},
        {"method": "base"},
        {"parameters": {"rank": 16, "epochs": 1.0}},
        {"dataset": "a000"},
        {"seed": 1},
        {"settings": {"engine": {"a": 2}}},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_whatever_decides_a_trials_outcome_changes_its_key(change: Json) -> None:
    assert replace(TRIAL, **change).key != TRIAL.key


def test_the_order_of_parameters_does_not_change_a_trials_key() -> None:
    assert replace(TRIAL, parameters={"epochs": 1.0, "rank": 8}).key == TRIAL.key


def test_a_label_names_candidate_method_and_parameters() -> None:
    assert TRIAL.label == "SmolLM2 lora r=8 epochs=1"
    assert replace(TRIAL, method="base", parameters={}).label == "SmolLM2 base"


@pytest.mark.parametrize(
    "result", [RESULT, TrialResult(TRIAL, "failed", "no room")], ids=["succeeded", "failed"]
)
def test_a_result_survives_its_file(result: TrialResult) -> None:
    data = json.loads(json.dumps(result.to_json()))
    assert TrialResult.from_json(data) == result
    assert data["key"] == TRIAL.key


def test_n_is_scored_plus_unscored_plus_failed() -> None:
    assert RESULT.metrics["similarity"].scored == 95


@pytest.mark.parametrize(
    "value",
    [
        sample_record(),
        Rejection("a.jsonl", 3, Reason.NOT_JSON, "it is no JSON"),
        Completion("r", {"role": "assistant", "content": "x"}),
        Score("r", "similarity", None, ScoreStatus.UNSCORED, "prose"),
        TRIAL,
        RESULT,
        Example("r", [1, 2, 3], 2),
        Pair("q", "a", "b"),
        Endpoint("http://x/v1", "m", "KEY"),
        EngineSpec("m", CandidateConfig(model="org/m"), 1.5, 0),
        validate(
            {
                "name": "t",
                "logs": "l",
                "workload": "w",
                "candidates": [{"model": "m"}],
                "methods": {"icl": {}, "lora": {"rank": [8, 16]}},
            },
            "t.yaml",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_crosses_process_boundaries_pickles(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 -- made right here


def test_a_desk_pickles_with_its_storage() -> None:
    desk = pickle.loads(pickle.dumps(Desk(Storage("memory://desk"), "r1")))  # noqa: S301
    assert (desk.run_id, desk.run.url) == ("r1", "memory:///desk/runs/r1")


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.EngineError, errors.Interrupted])
def test_errors_cross_process_boundaries_with_their_message(
    kind: type[errors.FlywheelError],
) -> None:
    error = pickle.loads(pickle.dumps(kind("x.yaml: seed: is wrong")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == "x.yaml: seed: is wrong"


def test_a_full_disk_is_told_with_what_to_do() -> None:
    with (
        pytest.raises(errors.StorageError, match=r"No space left .*; free some space and run it"),
        errors.boundary(errors.StorageError, "writing a.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_boundary_types_foreign_errors_once_and_lets_ours_pass() -> None:
    def both() -> None:
        with (
            errors.boundary(errors.FlywheelError, "doing everything"),
            errors.boundary(errors.StorageError, "reading a.json"),
        ):
            raise OSError("disk on fire")

    with pytest.raises(
        errors.StorageError, match=r"^OSError while reading a.json: disk on fire$"
    ) as got:
        both()
    assert isinstance(got.value.__cause__, OSError)


def test_wrong_requests_and_failed_work_have_their_exit_codes() -> None:
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FlywheelError)
    }
    assert codes == {
        "FlywheelError": 1,
        "RequestError": 2,
        "ConfigError": 2,
        "DataError": 2,
        "NotRecognised": 2,
        "ModelNotFoundError": 2,
        "ClusterError": 2,
        "StorageError": 1,
        "EngineError": 1,
        "TrainingError": 1,
        "TrialStoppedError": 1,
        "ParityError": 1,
        "Interrupted": 130,
    }
