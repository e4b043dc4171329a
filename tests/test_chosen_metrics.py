"""What an experiment asks to be scored by: names, parameters, and functions of its own."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.config import Experiment, validate
from flywheel.errors import ConfigError, FlywheelError
from flywheel.planning import plan
from flywheel.scoring import LABEL_METRICS, METRICS, TEXT_METRICS, TOOL_METRICS, Scorer, chosen
from flywheel.testing import sample_record, text_reply
from flywheel.types import Completion, Json, Score, ScoreStatus

OWN = '''
def politeness(case, *, word: str = "please", bonus: float = 0.0):
    """1 if the answer is polite."""
    return min(1.0, float(word in case.answer) + bonus)

def verdictless(case):
    return None

def odd(case, *, value):
    return float(value)

def broken(case):
    raise RuntimeError("of <b>its</b> own " + "x" * 1000)

def wordy(case):
    return "good"

def sure(case):
    return True

def positional(case, word):
    return 1.0

def nothing():
    return 1.0

def untold(case, *, kind=object()):
    return 1.0

not_a_function = 7
'''


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A module of the user's, importable as PYTHONPATH would make it."""
    (tmp_path / "own_metrics.py").write_text(OWN)
    (tmp_path / "raises.py").write_text("raise OSError('no licence')")
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("own_metrics", None)


def experiment(*metrics: Any, **scoring: Any) -> Experiment:
    return validate(
        {
            "name": "t",
            "logs": "l",
            "workload": "w",
            "methods": {"base": {}},
            "candidates": [{"model": "fake", "endpoint": "http://a/v1"}],
            "scoring": {**({"metrics": list(metrics)} if metrics else {}), **scoring},
        },
        "t.yaml",
    )


def asked(*metrics: Any) -> list[Json]:
    return chosen.asked(experiment(*metrics).scoring.metrics or [])


def scores(*metrics: Any, answer: str = "yes please") -> dict[str, Score]:
    scorer = Scorer(chosen.bound(asked(*metrics), labels=False))
    record = sample_record("?", text_reply("yes"))
    found = scorer.score(record, Completion(record.id, text_reply(answer)))
    return {score.metric: score for score in found}


def names(metrics: list[Json] | None, *, labels: bool) -> set[str]:
    return {bound.name for bound in chosen.bound(metrics, labels=labels)}


def test_the_default_follows_the_workload():
    assert names(None, labels=False) == {*TOOL_METRICS, *TEXT_METRICS}
    assert names(None, labels=True) == {*TOOL_METRICS, *LABEL_METRICS}


def test_a_list_replaces_the_default_and_may_hold_it():
    assert names(asked("chrf"), labels=False) == {"chrf"}
    assert names(asked("default", "json_f1"), labels=True) == names(None, labels=True) | {"json_f1"}


def test_a_metric_may_stand_twice_under_two_names():
    found = scores(
        {"metric": "regex_match", "name": "polite", "parameters": {"pattern": "please"}},
        {"metric": "regex_match", "name": "rude", "parameters": {"pattern": "damn"}},
    )
    assert {name: score.value for name, score in found.items()} == {"polite": 1, "rude": 0}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("blue", r"scoring\.metrics\.0\.metric: there is no 'blue'; allowed: default, function_"),
        ({"metric": "chrf", "parameters": {"n": 1}}, r"parameters\.n: there is no such parameter"),
        ({"metric": "chrf", "parameters": {"beta": -1}}, r"beta: Input should be greater than 0"),
        ({"metric": "chrf", "parameters": {"char_order": "x"}}, r"char_order: .*got 'x'"),
        ("regex_match", r"parameters\.pattern: is required and missing"),
        ({"metric": "regex_match", "parameters": {"pattern": "(a"}}, r"RE2 does not take '\(a'"),
        ({"metric": "regex_match", "parameters": {"pattern": "(?=a)"}}, "RE2 does not take"),
        ({"metric": "regex_match", "parameters": {"pattern": "a" * 3000}}, "longer than 2,000"),
        ({"metric": "json_match", "parameters": {"schema": "gone.json"}}, "gone.json cannot be re"),
        ({"metric": "json_match", "parameters": {"schema": {"type": "x"}}}, "no valid JSON Schema"),
        ({"metric": "chrf", "name": "similarity"}, "'similarity' means another metric"),
        ({"metric": "chrf", "name": "token_f1"}, "'token_f1' means another metric"),
        ({"metric": "default", "name": "x"}, "stands for several metrics"),
        ("gone.module:f", "gone.module cannot be imported"),
        ("math:sqrt", "math has no function 'sqrt'"),
    ],
)
def test_a_wrong_metric_is_refused_before_any_work(metric, message):
    with pytest.raises(ConfigError, match=message):
        plan(experiment(metric), "f")


def test_the_same_name_twice_is_refused():
    with pytest.raises(ConfigError, match=r"scoring\.metrics\.1: chrf is there twice"):
        plan(experiment("chrf", "chrf"), "f")


@pytest.mark.parametrize("metric", ["a b", "a:b:c", ":f", "os.system('x')", ""])
def test_what_is_no_name_is_refused_when_the_file_is_read(metric):
    with pytest.raises(ConfigError, match=r"scoring\.metrics\.0"):
        experiment({"metric": metric})


def test_a_schema_travels_by_content(tmp_path: Path):
    file = tmp_path / "s.json"
    file.write_text('{"type": "object"}')
    (entry,) = asked({"metric": "json_match", "parameters": {"schema": str(file)}})
    assert entry["parameters"] == {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "must hold an object"), ("{", "is no JSON"), ('{"x": NaN}', "is no JSON")],
)
def test_a_schema_file_that_holds_none_is_refused(tmp_path: Path, text: str, message: str):
    file = tmp_path / "s.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        asked({"metric": "json_match", "parameters": {"schema": str(file)}})


def test_a_function_of_ones_own_is_a_metric(own: Path):
    metric = {"metric": "own_metrics:politeness", "parameters": {"bonus": "0.25"}}
    found = scores(metric, answer="no")
    assert found["politeness"].value == 0.25
    assert scores({**metric, "name": "manners"})["manners"].value == 1


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("verdictless", {}, "the metric gave no value"),
        ("odd", {"value": "nan"}, "the metric gave nan, which does not lie in 0..1"),
        ("odd", {"value": "inf"}, "the metric gave inf, which does not lie in 0..1"),
        ("odd", {"value": -0.1}, "the metric gave -0.1, which does not lie in 0..1"),
        ("odd", {"value": 7}, "the metric gave 7.0, which does not lie in 0..1"),
        ("wordy", {}, "the metric gave 'good', which does not lie in 0..1"),
        ("broken", {}, "RuntimeError in the metric: of <b>its</b> own"),
    ],
)
def test_what_is_no_score_is_unscored_with_its_reason(own: Path, name, parameters, reason):
    found = scores({"metric": f"own_metrics:{name}", "parameters": parameters})[name]
    assert (found.value, found.status) == (None, ScoreStatus.UNSCORED)
    assert found.reason.startswith(reason)
    assert len(found.reason) <= 200


def test_true_is_one(own: Path):
    assert scores("own_metrics:sure")["sure"].value == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises:f", r"raises cannot be imported \(OSError: no licence\)"),
        ("own_metrics:gone", "own_metrics has no function 'gone'"),
        ("own_metrics:not_a_function", "own_metrics has no function"),
        ("own_metrics:positional", "parameters by keyword only"),
        ("own_metrics:nothing", "must take a case"),
        ("own_metrics:untold", "must be JSON, defaults included"),
    ],
)
def test_a_function_that_cannot_be_one_is_refused(own: Path, name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        asked(name)


def test_another_source_is_another_trial_and_never_runs_in_its_place(own: Path):
    (before,) = plan(experiment("own_metrics:politeness"), "f")
    entry = before.settings["scoring"]["metrics"]
    (own / "own_metrics.py").write_text(OWN.replace('"please"', '"kindly"'))
    (after,) = plan(experiment("own_metrics:politeness"), "f")
    assert before.key != after.key
    with pytest.raises(FlywheelError, match="own_metrics is not the same here"):
        chosen.bound(entry, labels=False)


def test_keys_stay_where_nothing_is_asked_and_change_where_something_is():
    (plain,) = plan(experiment(), "f")
    assert plain.settings["scoring"] == {"call_order": "free"}
    (judged,) = plan(experiment(free_text={"longer_than": 100}), "f")
    (other,) = plan(experiment("default"), "f")
    assert plain.key == judged.key != other.key
    assert pickle.loads(pickle.dumps(other)) == other  # noqa: S301 -- our own


def test_every_default_parameter_is_a_finite_json_value():
    for entry in asked("default", *(n for n in METRICS if n != "regex_match")):
        for value in entry.get("parameters", {}).values():
            assert value is None or isinstance(value, str) or math.isfinite(value)


def test_the_documentation_has_a_line_for_every_metric():
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert {name for name in METRICS if not any(f"`{name}`" in row for row in rows)} == set()
