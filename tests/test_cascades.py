"""Cascades: what is handed over, what it costs, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import cascades, config, costs, folders, inference, planning, scoring, trials
from flywheel.cascades import NO_ANSWER, UNPARSABLE, UNSURE, VIOLATION, Answered, choose, reason
from flywheel.cascading import Cascade, Cascades, read_handed_over
from flywheel.config import Experiment, validate
from flywheel.errors import ConfigError
from flywheel.folders import Desk
from flywheel.inference.journal import Journal
from flywheel.leaderboard import TOOL_METRIC, Leaderboard, rank
from flywheel.report import Material, read, render
from flywheel.report.disagreements import largest
from flywheel.report.material import featured
from flywheel.report.operations import speeds
from flywheel.statistics import estimates
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, Reply, sample_record, text_reply, tool_reply
from flywheel.types import Completion, Cost, Json, Latency, Record, Trial, TrialResult

RIGHT = tool_reply("track_order", {"order_id": "A-1"})
WRONG = tool_reply("track_order", {"order_id": "B-2"})


def record(i: int) -> Record:
    return sample_record(f"Where is order A-1? {i}", RIGHT)


def answered(i: int, message: Json | None, logprob: float | None = -0.1) -> Answered:
    error = "" if message else "HTTP 500"
    one = record(i)
    return Answered.of(one, Completion(one.id, message, error=error, mean_logprob=logprob))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (RIGHT, ""),
        (WRONG, ""),
        (text_reply("It is on its way."), ""),
        (None, NO_ANSWER),
        (text_reply('<tool_call>{"name": "track_order"'), UNPARSABLE),
        (tool_reply("track_order", {"order_id": 7}), VIOLATION),
        (tool_reply("track_order", {}), VIOLATION),
        (tool_reply("cancel_order", {"order_id": "A-1"}), VIOLATION),
    ],
)
def test_what_looks_wrong_is_handed_over_however_sure_the_model_was(
    message: Json | None, why: str
) -> None:
    assert reason(answered(0, message, 0.0), None) == why
    assert reason(answered(0, message, 0.0), -1.0) == why


def test_an_unsure_answer_is_handed_over_and_one_of_unknown_sureness_too() -> None:
    assert reason(answered(0, RIGHT, -0.5), -0.4) == UNSURE
    assert reason(answered(0, RIGHT, -0.4), -0.4) == ""
    assert reason(answered(0, RIGHT, None), -9.0) == UNSURE
    assert reason(answered(0, RIGHT, None), None) == ""


def val(*answers: tuple[Json | None, float | None]) -> list[Answered]:
    return [answered(i, message, logprob) for i, (message, logprob) in enumerate(answers)]


def test_the_threshold_hands_over_least_of_those_surely_within_the_margin() -> None:
    sure, unsure = [(RIGHT, -0.1)] * 80, [(WRONG, -1.0)] * 20
    rule = choose(val(*sure, *unsure), TOOL_METRIC, "free", 0.1, None)
    assert rule is not None
    assert rule.threshold == -0.1
    assert rule.chosen.handed_over == 0.2
    assert (rule.chosen.agreement.value, rule.chosen.agreement.n) == (1.0, 100)
    assert [point.threshold for point in rule.curve] == [None, -1.0, -0.1]


def test_a_model_that_is_right_anyway_hands_over_only_what_looks_wrong() -> None:
    rule = choose(val(*[(RIGHT, -0.1)] * 60, (None, None)), TOOL_METRIC, "free", 0.1, None)
    assert rule is not None
    assert (rule.threshold, rule.chosen.handed_over) == (None, 1 / 61)


def test_a_cascade_that_would_hand_over_all_is_none() -> None:
    assert choose(val(*[(WRONG, -0.1)] * 60), TOOL_METRIC, "free", 0.1, None) is None
    assert choose(val(*[(RIGHT, -0.1)] * 5), TOOL_METRIC, "free", 0.1, None) is None  # too few


def test_a_server_that_tells_no_log_probabilities_still_makes_a_cascade() -> None:
    broken = tool_reply("track_order", {})
    answers = [(RIGHT, None)] * 70 + [(broken, None)] * 30
    rule = choose(val(*answers), TOOL_METRIC, "free", 0.1, None)
    assert rule is not None
    assert (rule.threshold, rule.chosen.handed_over, len(rule.curve)) == (None, 0.3, 1)


MESSAGES = st.sampled_from([RIGHT, WRONG, None, text_reply("No."), tool_reply("track_order", {})])
ANSWERS = st.lists(
    st.tuples(MESSAGES, st.none() | st.floats(-5, 0, allow_nan=False)), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.floats(-5, 0), st.floats(0, 5))
def test_handing_over_more_never_agrees_less(
    answers: list[tuple[Json | None, float | None]], threshold: float, more: float
) -> None:
    seen = val(*answers)
    agreement = []
    for at in (None, threshold, threshold + more):
        handed = [bool(reason(one, at)) for one in seen]
        found = [
            score.value or 0.0
            for one, over in zip(seen, handed, strict=True)
            for score in cascades.scores(one, over)
            if score.metric == TOOL_METRIC
        ]
        agreement.append((sum(handed), sum(found)))
    assert agreement == sorted(agreement)  # both only grow


@settings(deadline=None, max_examples=25)
@given(ANSWERS, st.floats(0.05, 0.5))
def test_the_chosen_point_is_on_the_curve_and_within_the_margin(
    answers: list[tuple[Json | None, float | None]], margin: float
) -> None:
    rule = choose(val(*answers * 4), TOOL_METRIC, "free", margin, None)
    if rule is not None:
        assert rule.chosen in rule.curve
        assert (rule.chosen.agreement.low or 0.0) > 1 - margin
        assert rule.chosen.handed_over < 1


# -- a run's ----------------------------------------------------------------------------------

PRICE = {"input_per_million": 2.0, "output_per_million": 10.0}
SMALL = Cost(0.1, "tokens")
"""A production request of `sample_record` is 100 tokens in and 10 out: $0.3 per 1,000."""
PRODUCTION = Cost(0.3, "tokens")
EVAL, VAL = 100, 60


def an_experiment(**changes: object) -> Experiment:
    data: Json = {
        "name": "t",
        "logs": "l",
        "workload": "w",
        "candidates": [{"model": "small", "endpoint": "http://h/v1"}],
        "methods": {"base": {}},
        "judge": None,
        "production": {"price": PRICE},
        "cascades": {},
    }
    return validate({**data, **changes}, "t.yaml")


def write(storage: Storage, records: Sequence[Record], split: str) -> None:
    rows = pa.Table.from_pylist([one.to_row() for one in records])
    storage.at("datasets", "f").write_table(f"{split}/00000.parquet", rows)


def a_run(tmp_path: Path, experiment: Experiment, wrong_every: int) -> tuple[Desk, TrialResult]:
    """A trial that has answered; every so many answers are wrong, and unsure."""
    desk = Desk(Storage(str(tmp_path)), "run")
    (trial,) = planning.plan(experiment, "f")
    folder = desk.folder(trial)
    splits = {"eval": range(EVAL), "val": range(EVAL, EVAL + VAL)}
    scores = []
    for split, numbers in splits.items():
        records = [record(i) for i in numbers]
        write(desk.storage, records, split)
        completions = [
            Completion(one.id, WRONG, latency_s=1.0, mean_logprob=-2.0)
            if i % wrong_every == 0
            else Completion(one.id, RIGHT, latency_s=1.0, mean_logprob=-0.1)
            for i, one in zip(numbers, records, strict=True)
        ]
        name = "completions" if split == "eval" else "val"
        folder.at(name).write_lines("0.jsonl", map(asdict, completions))
        if split == "eval":
            pairs = zip(records, completions, strict=True)
            scores = [s for r, c in pairs for s in scoring.score(r, c)]
    folder.at("scores").write_lines(folders.PROGRAMMATIC, map(asdict, scores))
    folder.write_json("answers.json", {"wall_s": 1.0, "latency": None})
    folder.write_json("val.json", {"most": VAL, "wall_s": 1.0})
    cost = costs.compared(SMALL, PRODUCTION)
    latency = Latency(1.0, 1.0, 50.0, 5.0, 16)
    result = TrialResult(trial, "succeeded", "", estimates(scores), latency=latency, cost=cost)
    return desk, result


def asked_again(desk: Desk, experiment: Experiment) -> TrialResult:
    """The baseline, which repeats what production said but for the first record."""
    (again,) = (t for t in planning.plan(experiment, "f") if t.candidate == "big")
    records, folder = [record(i) for i in range(EVAL)], desk.folder(again)
    answers = [Completion(r.id, WRONG if i == 0 else RIGHT, latency_s=3.0)
               for i, r in enumerate(records)]  # fmt: skip
    scores = [s for r, c in zip(records, answers, strict=True) for s in scoring.score(r, c)]
    folder.at("completions").write_lines("0.jsonl", map(asdict, answers))
    folder.at("scores").write_lines(folders.PROGRAMMATIC, map(asdict, scores))
    folder.write_json("answers.json", {"wall_s": 1.0, "latency": None})
    return TrialResult(again, "succeeded", metrics=estimates(scores))


def cascades_of(
    experiment: Experiment, desk: Desk, result: TrialResult, metric: str = TOOL_METRIC
) -> tuple[list[Cascade], list[str]]:
    maker = Cascades(experiment, desk, metric, {}, PRODUCTION)
    return maker.of([result]), maker.notes


def test_a_cascade_is_confirmed_on_eval_and_costs_both_models(tmp_path: Path) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every=5)
    ((made,), notes) = cascades_of(experiment, desk, result)
    told = made.result
    assert notes == []
    assert told.trial.method == "cascade"
    assert told.trial.label == "small cascade of=base logprob=-0.1"
    assert told.metrics[TOOL_METRIC].value == 1.0
    assert told.metrics[TOOL_METRIC].n == EVAL
    assert (told.cascade["handed_over"], told.cascade["reasons"]) == (0.2, {UNSURE: 20})
    assert told.cascade["val"]["handed_over"] == 0.2
    assert told.cascade["of"] == result.key
    assert told.cost is not None
    assert told.cost.per_1k_requests == pytest.approx(0.1 + 0.2 * 0.3)
    assert told.cost.saved_percent == pytest.approx(100 * (0.3 - 0.16) / 0.3)
    assert told.latency is None  # the log does not say how long production took
    assert told.cascade["latency_known"] is False


def test_what_a_cascade_rests_on_lies_as_a_trials_does(tmp_path: Path) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every=5)
    ((made,), _) = cascades_of(experiment, desk, result)
    folder = desk.of(made.result)
    assert folder.url == desk.run.at("cascades", made.result.key).url
    assert desk.of(result).url == desk.folder(result.trial).url
    assert TrialResult.from_json(folder.read_json("result.json")) == made.result
    assert inference.read(folder.at("completions")) == made.completions
    assert folders.read_scores(folder) == made.scores
    assert [made.completions[i].message for i in (0, 1)] == [record(0).answer, RIGHT]
    handed = {record(i).id: UNSURE for i in range(0, EVAL, 5)}
    assert read_handed_over(folder) == made.handed_over == handed
    assert read_handed_over(desk.folder(result.trial)) == {}


def test_a_cascade_is_a_row_and_no_trial(tmp_path: Path) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every=5)
    ((made,), _) = cascades_of(experiment, desk, result)
    scores = {
        result.key: folders.read_scores(desk.folder(result.trial)),
        made.result.key: made.scores,
    }
    board = rank([result, made.result], scores, experiment.ranking, production=PRODUCTION)
    assert board.recommended is not None
    assert board.recommended.result is made.result
    assert not board.rows[1].promising
    assert board.saved == (0, EVAL)
    assert desk.trials.names() == [result.key]
    again = Leaderboard.from_json(board.to_json())
    assert again.rows[0].result == made.result


def browsed(experiment: Experiment, desk: Desk, results: Sequence[TrialResult]) -> Material:
    """What a report of these trials and their cascades is made from."""
    made = Cascades(experiment, desk, TOOL_METRIC, {}, PRODUCTION).of(results)
    scores = {r.key: folders.read_scores(desk.folder(r.trial)) for r in results}
    scores |= {one.result.key: one.scores for one in made}
    rows = [*results, *(one.result for one in made)]
    board = rank(rows, scores, experiment.ranking, production=PRODUCTION)
    dataset = desk.storage.at("datasets", "f")
    dataset.write_json("manifest.json", {"fingerprint": "f"})
    desk.run.write_json("leaderboard.json", board.to_json())
    desk.run.write_bytes("experiment.yaml", config.dump(experiment).encode())
    return read(desk)


def test_a_cascades_disagreements_say_which_model_gave_the_answer(tmp_path: Path) -> None:
    """Of ten records, one was handed over to what did not repeat itself; one was wrong and sure."""
    big = {"model": "big", "endpoint": "http://h/v1"}
    small = {"model": "small", "endpoint": "http://h/v1"}
    experiment = an_experiment(candidates=[small, big], ranking={"baseline": "big"})
    desk, result = a_run(tmp_path, an_experiment(), wrong_every=5)
    answers = desk.folder(result.trial).at("completions")
    sure = [replace(c, message=WRONG) if c.record_id == record(1).id else c
            for c in inference.read(answers)]  # fmt: skip
    answers.write_lines("0.jsonl", map(asdict, sure))
    again = asked_again(desk, experiment)
    material = browsed(experiment, desk, [result, again])
    row = next(row for row in featured(material.board) if row.result.cascade)
    shown = next(one for one in largest(material) if one.row == row)
    assert {item.record: item.by for item in shown.items} == {
        record(0).id: "production, as handed over: unsure",
        record(1).id: "small base itself",
    }
    assert {item.by for one in largest(material) if one.row != row for item in one.items} == {""}
    page = render(material)
    assert f"{row.result.trial.label} answered (small base itself)</h4>" in page
    assert [speed.row.result.trial.method for speed in speeds(material).trials].count("cascade")


def test_a_latency_that_is_not_known_is_not_shown(tmp_path: Path) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every=5)
    material = browsed(experiment, desk, [result])
    assert any(row.result.cascade for row in featured(material.board))
    assert [speed.row.result.key for speed in speeds(material).trials] == [result.key]


def test_one_that_saves_nothing_is_not_recommended(tmp_path: Path) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every=5)
    dear = replace(result, cost=Cost(0.29, "tokens"))
    ((made,), _) = cascades_of(experiment, desk, dear)
    board = rank([made.result], {made.result.key: made.scores}, experiment.ranking)
    assert board.rows[0].blocked == "saves nothing"
    assert not board.rows[0].eligible


def test_production_asked_again_stands_for_what_is_handed_over(tmp_path: Path) -> None:
    """Its own noise is the cascade's, and its time is added."""
    big = {"model": "big", "endpoint": "http://h/v1"}
    small = {"model": "small", "endpoint": "http://h/v1"}
    experiment = an_experiment(candidates=[small, big], ranking={"baseline": "big"})
    desk, result = a_run(tmp_path, an_experiment(), wrong_every=5)
    other = asked_again(desk, experiment)
    maker = Cascades(experiment, desk, TOOL_METRIC, {}, PRODUCTION)
    (made,) = maker.of([result, other])
    assert folders.read_scores(desk.of(made.result)) == made.scores
    assert made.result.metrics[TOOL_METRIC].value == 0.99  # record 0 was handed over
    assert made.result.latency is not None
    assert (made.result.latency.p50_s, made.result.latency.p95_s) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("metric", "wrong_every", "said"),
    [
        (TOOL_METRIC, 1000, "it would hand over nothing"),
        ("similarity", 5, "similarity is not told by a program"),
        (TOOL_METRIC, 1, "on 60 validation records none is within the margin"),
    ],
)
def test_why_there_is_no_cascade_is_said(
    tmp_path: Path, metric: str, wrong_every: int, said: str
) -> None:
    experiment = an_experiment()
    desk, result = a_run(tmp_path, experiment, wrong_every)
    made, (note,) = cascades_of(experiment, desk, result, metric)
    assert made == []
    assert said in note


def test_cascades_need_validation_records() -> None:
    with pytest.raises(ConfigError, match=r"raise dataset\.val_ratio"):
        an_experiment(dataset={"val_ratio": 0})


def test_cascades_take_no_ground_truth_file() -> None:
    """What is handed over would count as right whatever the file says."""
    with pytest.raises(ConfigError, match="cascades take production's answers for right"):
        an_experiment(scoring={"references": "truth.jsonl"})


# -- what is asked for them -----------------------------------------------------------------


def with_logprobs(body: Json) -> Reply:
    """A server that tells them, if it is asked to."""
    told = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
    choice: Json = {"message": RIGHT, "finish_reason": "tool_calls"}
    details = {"prompt_tokens": 10, "completion_tokens": 2,
               "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
    extra = {"logprobs": told} if body.get("logprobs") else {}
    return Reply({"choices": [{**choice, **extra}], "usage": details})


def silent(done: int, total: int, val_loss: float | None = None, /) -> None:
    """Nobody watches."""


@pytest.mark.parametrize("logprobs", [True, False])
def test_val_is_asked_for_up_to_the_limit_and_only_once(tmp_path: Path, logprobs: bool) -> None:
    experiment = an_experiment(cascades={"logprobs": logprobs})
    (trial,) = planning.plan(experiment, "f")
    desk = Desk(Storage(str(tmp_path)), "run")
    write(desk.storage, [record(i) for i in range(9)], "val")
    with FakeEndpoint(with_logprobs) as fake:
        for _ in range(2):
            trials.answer_val(trial, desk, fake.endpoint(), 6, silent)
    got = inference.read(desk.folder(trial).at("val"))
    assert len(fake.requests) == len(got) == 6
    assert {one.mean_logprob for one in got} == ({-1.0} if logprobs else {None})
    assert {one.cached_tokens for one in got} == {4}


def test_without_cascades_trials_keep_their_keys() -> None:
    def key(**changes: object) -> str:
        trial: Trial = planning.plan(an_experiment(**changes), "f")[0]
        return trial.key

    assert key(cascades=None) == key(cascades={"logprobs": False})
    assert key(cascades=None) != key(cascades={})


@pytest.mark.parametrize(
    "told",
    [None, "x", [], {"content": None}, {"content": []}, {"content": [{"logprob": "x"}]},
     {"content": [{}]}, {"content": [{"logprob": None}]}, {"content": 3}],
    ids=str,
)  # fmt: skip
def test_odd_log_probabilities_are_unknown_and_the_answer_stands(
    tmp_path: Path, told: object
) -> None:
    choice = {"message": RIGHT, "finish_reason": "stop", "logprobs": told}
    with FakeEndpoint(lambda body: Reply({"choices": [choice]})) as fake:
        asks = [inference.Ask("r", {"messages": []})]
        answers = inference.answer_all(fake.endpoint(), asks, Storage(str(tmp_path)), 1, 5)
    (got,) = answers.completions
    assert (got.error, got.mean_logprob) == ("", None)


def test_completions_written_before_they_told_log_probabilities_are_read(tmp_path: Path) -> None:
    old = asdict(Completion("r", RIGHT))
    for name in ("cached_tokens", "mean_logprob"):
        del old[name]
    storage = Storage(str(tmp_path))
    storage.write_lines("0.jsonl", [old])
    assert inference.read(storage) == [Completion("r", RIGHT)]
    assert Journal(storage)  # and such a folder can be gone on with
