"""Which trials an experiment means, and what one leaves on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flywheel import folders, planning, trials
from flywheel.config import ClientConfig, Experiment, validate
from flywheel.datasets.training import training_rows
from flywheel.errors import ConfigError, EngineError, ModelNotFoundError, TrainingError
from flywheel.folders import Desk
from flywheel.planning import plan
from flywheel.scoring import TOOL_METRICS
from flywheel.serving import Endpoint
from flywheel.statistics import estimate
from flywheel.storage import Storage
from flywheel.testing import FakeEndpoint, Reply, sample_record, text_reply, tool_reply
from flywheel.types import Json, Miss, ScoreStatus, Trial

REMOTE: Json = {"model": "big", "endpoint": "https://api.example/v1"}
GRID: Json = {"rank": [8, 16], "learning_rate": [1e-3, 2e-3], "epochs": 1}


def experiment(**changes: Any) -> Experiment:
    base: Json = {
        "name": "t",
        "logs": "l",
        "workload": "w",
        "candidates": [{"model": "org/small"}],
        "methods": {"base": {}, "icl": {"examples": [1, 3]}, "lora": GRID},
    }
    return validate({**base, **changes}, "t.yaml")


def labels(one: Experiment) -> list[str]:
    return [trial.label for trial in plan(one, "f")]


def keys(**changes: Any) -> set[str]:
    return {trial.key for trial in plan(experiment(**changes), "f")}


def test_trials_are_candidates_by_methods_by_grids_in_order() -> None:
    assert labels(experiment(candidates=[{"model": "org/small"}, {"model": "m", "name": "B"}])) == [
        f"{candidate} {rest}"
        for candidate in ("small", "B")
        for rest in (
            "base",
            "icl k=1",
            "icl k=3",
            "lora r=8 lr=0.001 epochs=1",
            "lora r=8 lr=0.002 epochs=1",
            "lora r=16 lr=0.001 epochs=1",
            "lora r=16 lr=0.002 epochs=1",
        )
    ]


def test_an_endpoint_gets_no_lora() -> None:
    assert {t.method for t in plan(experiment(candidates=[REMOTE]), "f")} == {"base", "icl"}


def test_a_candidate_can_want_fewer_methods() -> None:
    some = experiment(candidates=[{"model": "m", "methods": ["icl"]}, {"model": "n"}])
    assert {t.method for t in plan(some, "f") if t.candidate == "m"} == {"icl"}
    assert {t.method for t in plan(some, "f") if t.candidate == "n"} == {"base", "icl", "lora"}


def test_examples_stand_as_turns_here_and_as_text_elsewhere() -> None:
    both = plan(experiment(candidates=[{"model": "m"}, REMOTE]), "f")
    styles = {t.candidate: t.settings["style"] for t in both if t.method == "icl"}
    assert styles == {"m": "turns", "big": "system"}


def few_shot(**icl: Any) -> set[str]:
    return keys(methods={"icl": {"examples": 4, **icl}})


@pytest.mark.parametrize(
    "changes",
    [
        {"relevance_ratio": 0.5},
        {"selection": "lexical"},
        {"selection": "uniform_distribution"},
        {"embedding_model": None},
        {"embedding_model": "else/embedder"},
        {"max_context_tokens": 4096},
        {"min_examples": 2},
    ],
    ids=str,
)
def test_what_decides_the_examples_makes_another_trial(changes: Json) -> None:
    assert not few_shot() & few_shot(**changes)


def test_without_an_embedding_model_nothing_is_semantic() -> None:
    assert few_shot(embedding_model=None) == few_shot(selection="lexical")


def test_examples_and_ratio_are_a_grid_and_the_plain_nearest_needs_no_name() -> None:
    grid = {"icl": {"examples": [1, 3], "relevance_ratio": [1, 0.7]}}
    assert labels(experiment(methods=grid)) == [
        "small icl k=1",
        "small icl k=1 relevance_ratio=0.7",
        "small icl k=3",
        "small icl k=3 relevance_ratio=0.7",
    ]


def test_people_see_what_is_not_the_default() -> None:
    lora = {"rank": 8, "class_balance": ["natural", "equal"], "max_train_records": [None, 64]}
    assert labels(experiment(methods={"lora": {**lora, "epochs": 1}})) == [
        "small lora r=8 lr=0.001 epochs=1",
        "small lora r=8 lr=0.001 epochs=1 class_balance=equal",
        "small lora r=8 lr=0.001 epochs=1 n=64",
        "small lora r=8 lr=0.001 epochs=1 n=64 class_balance=equal",
    ]
    icl = {"selection": ["lexical", "uniform_distribution"], "order": "nearest_first"}
    assert labels(experiment(methods={"icl": icl})) == [
        "small icl k=3 selection=lexical order=nearest_first",
        "small icl k=3 selection=uniform_distribution order=nearest_first",
    ]


def test_a_trial_has_the_same_key_whether_searched_or_fixed() -> None:
    searched = keys(methods={"lora": {"rank": [8, 16], "dropout": [0.0, 0.1]}})
    assert keys(methods={"lora": {"rank": 16, "dropout": 0.1}}) < searched
    drawn = {"learning_rate": {"choice": [0.002]}}
    random = keys(methods={"lora": drawn}, search={"algorithm": "random"})
    assert random == keys(methods={"lora": {"learning_rate": 0.002}})


def test_what_uniform_selection_does_not_know_makes_no_further_trial() -> None:
    icl = {"selection": ["lexical", "uniform_distribution"], "relevance_ratio": [1.0, 0.5]}
    assert len(labels(experiment(methods={"icl": icl}))) == 3


def test_what_optuna_suggests_is_not_planned() -> None:
    search = {"algorithm": "optuna", "samples": 5}
    candidates = [{"model": "org/small"}, {"model": "org/other"}, REMOTE]
    one = experiment(search=search, candidates=candidates)
    assert {trial.method for trial in plan(one, "f")} == {"base", "icl"}
    assert planning.suggestions(one) == 10
    fixed = experiment(search=search, methods={"lora": {}})
    assert planning.suggestions(fixed) == 0
    assert len(plan(fixed, "f")) == 1


def test_random_draws_are_trials_known_beforehand() -> None:
    lora = {"rank": [8, 16], "learning_rate": {"loguniform": [1e-4, 1e-2]}}
    search = {"algorithm": "random", "samples": 4}
    assert len(keys(methods={"lora": lora}, search=search)) == 8


def test_all_weights_are_searched_like_adapters() -> None:
    full = {"learning_rate": {"choice": [1e-4]}, "epochs": [1, 2], "class_balance": "equal"}
    search = {"algorithm": "optuna", "samples": 1, "scheduler": {"kind": "asha"}}
    one = experiment(methods={"full": full}, search=search)
    assert labels(one) == [
        "small full lr=0.0001 epochs=1 class_balance=equal",
        "small full lr=0.0001 epochs=2 class_balance=equal",
    ]
    assert planning.suggestions(one) == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_scheduler_gets_more_validations_unless_the_experiment_says_how_many(method: str) -> None:
    def validations(kind: str, **settings: Any) -> int:
        scheduled = {"scheduler": {"kind": kind}}
        (trial,) = plan(experiment(methods={method: settings}, search=scheduled), "f")
        return int(trial.settings["training"]["validations"])

    assert (validations("none"), validations("asha"), validations("median")) == (4, 9, 9)
    assert validations("asha", validations=6) == 6


@pytest.fixture
def terse(tmp_path: Path) -> Path:
    path = tmp_path / "terse.txt"
    path.write_text("Be brief.\n")
    return path


def test_a_system_prompt_is_a_dimension_and_travels_as_text(terse: Path) -> None:
    one = experiment(methods={"base": {"system_prompt": [None, str(terse)]}})
    plain, other = plan(one, "f")
    assert (plain.label, other.label) == ("small base", "small base prompt=terse")
    assert other.settings["system_prompt"] == "Be brief."
    assert keys(methods={"base": {}}) == {plain.key}
    terse.write_text("Be very brief.")
    assert plan(one, "f")[1].key != other.key


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"x" * 100_001], ids=str)
def test_a_system_prompt_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"system_prompt: .*p\.txt"):
        plan(experiment(methods={"base": {"system_prompt": str(path)}}), "f")


def test_the_prompt_replaces_productions_and_leaves_the_rest() -> None:
    spoken = sample_record("Hello?", text_reply("Hi."))
    trial = Trial("c", "m", "base", {}, "f", 0, {"system_prompt": "Be brief."})
    once = trials.prompted(trial, [spoken])
    assert [m["role"] for m in once[0].messages][:2] == ["system", "user"]
    assert trials.prompted(trial, once) == once
    assert (once[0].id, once[0].response) == (spoken.id, spoken.response)
    assert trials.prompted(Trial("c", "m", "base", {}, "f", 0), [spoken]) == [spoken]


@pytest.mark.parametrize(
    ("limit", "balance", "rows"),
    [
        (None, "natural", [0, 1, 2, 3, 4, 5]),
        (3, "natural", [0, 1, 2]),
        (9, "natural", [0, 1, 2, 3, 4, 5]),
        (4, "equal", [0, 3, 1, 3]),
        (None, "equal", [0, 3, 1, 3, 2, 3]),
    ],
)
def test_rows_are_the_first_or_as_many_of_each_class(
    limit: int | None, balance: str, rows: list[int]
) -> None:
    assert training_rows(["a", "a", "a", "b", "a", "a"], limit, balance) == rows
    assert training_rows([], limit, balance) == []


def test_no_two_trials_share_a_key_and_planning_again_gives_the_same() -> None:
    assert len(keys()) == 7
    assert keys() == keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"sampling": {"temperature": 0.5}},
        {"sampling": {"max_tokens": 5}},
        {"scoring": {"call_order": "fixed"}},
        {"candidates": [{"model": "org/small", "engine": {"dtype": "float16"}}]},
        {"candidates": [{"model": "org/small", "concurrency": 2}]},
        {"candidates": [{"model": "org/small", "tool_parser": "pythonic"}]},
        {"candidates": [{"model": "else/small"}]},
    ],
    ids=str,
)
def test_what_decides_answers_or_latency_makes_other_trials(changes: Json) -> None:
    assert not keys() & keys(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"storage": "elsewhere"},
        {"ranking": {"margin": 0.5}},
        {"judge": None},
        {"candidates": [{"model": "org/small", "price_per_hour": 1.0}]},
        {"candidates": [{"model": "org/small", "cpus": 1}]},
        {"methods": {"base": {}, "icl": {"examples": [1, 3]}, "lora": {**GRID, "cpus": 1}}},
    ],
    ids=str,
)
def test_what_does_not_keeps_the_same_trials(changes: Json) -> None:
    assert keys() == keys(**changes)


def test_another_dataset_makes_other_trials() -> None:
    one, other = ({t.key for t in plan(experiment(), name)} for name in ("f", "g"))
    assert not one & other


RECORDS = [sample_record(f"Where is A-{i}?", tool_reply("f", {"order": f"A-{i}"})) for i in (1, 2)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk with a dataset ``f`` of two eval records and no others."""
    storage = Storage(str(tmp_path))
    rows = [record.to_row() for record in RECORDS]
    storage.at("datasets", "f").write_table("eval/00000.parquet", pa.Table.from_pylist(rows))
    return Desk(storage, "run")


def the_trial(fake: FakeEndpoint, **sampling: Any) -> Trial:
    candidate = {"model": "fake", "endpoint": fake.url, "concurrency": 2, "timeout_s": 5}
    return plan(experiment(candidates=[candidate], methods={"base": {}}, sampling=sampling), "f")[0]


def right(body: Json) -> Json:
    return tool_reply("f", {"order": body["messages"][-1]["content"][9:-1]})


def silent(done: int, total: int) -> None:
    """No progress."""


def answer(desk: Desk, fake: FakeEndpoint, **sampling: Any) -> Trial:
    trial = the_trial(fake, **sampling)
    trials.answer(trial, desk, fake.endpoint(), silent)
    return trial


def test_a_trial_leaves_completions_scores_and_its_latency(desk: Desk) -> None:
    with FakeEndpoint(right) as fake:
        trial = answer(desk, fake)
    folder = desk.folder(trial)
    assert folder.names() == ["answers.json", "completions", "scores"]
    scores = folders.read_scores(folder)
    assert {(s.record_id, s.metric, s.value) for s in scores} == {
        (r.id, metric, 1.0) for r in RECORDS for metric in TOOL_METRICS
    }
    latency, wall_s = folders.read_latency(folder)
    assert latency is not None
    assert latency.concurrency == 2
    assert 0 < latency.p50_s <= latency.p95_s <= wall_s


def test_an_answered_trial_asks_nothing_again(desk: Desk) -> None:
    with FakeEndpoint(right) as fake:
        trial = answer(desk, fake)
        answer(desk, fake)
        assert len(fake.requests) == 2
        desk.folder(trial).remove("answers.json")
        answer(desk, fake)
    assert len(fake.requests) == 2
    latency, wall_s = folders.read_latency(desk.folder(trial))
    assert latency is not None
    assert latency.p50_s <= wall_s <= latency.p95_s  # two answers, got side by side


def test_a_request_carries_the_experiments_sampling(desk: Desk) -> None:
    with FakeEndpoint(right) as fake:
        answer(desk, fake)
        answer(desk, fake, temperature=0.5, max_tokens=7)
    limits = {(r.body["temperature"], r.body["max_tokens"]) for r in fake.requests}
    assert limits == {(0.0, trials.DEFAULT_MAX_TOKENS), (0.5, 7)}


def test_what_an_answer_misses_lies_in_its_scores(desk: Desk) -> None:
    with FakeEndpoint(lambda _: tool_reply("f", {"order": 7, "now": True})) as fake:
        trial = answer(desk, fake)
    misses = {s.metric: (s.misses, s.reason) for s in folders.read_scores(desk.folder(trial))}
    assert misses["function_name"] == ((), "")
    assert misses["function_name_and_args_accuracy"] == (
        (Miss.EXTRA_ARGUMENT, Miss.WRONG_TYPE),
        "extra argument: f.now; wrong type: f.order",
    )


@pytest.mark.parametrize(("order", "value"), [("free", 1.0), ("fixed", 0.0)])
def test_the_experiment_says_whether_the_order_of_calls_matters(
    tmp_path: Path, order: str, value: float
) -> None:
    first, second = (tool_reply("f", {"n": n})["tool_calls"][0] for n in (1, 2))
    record = sample_record("Both, please", {"role": "assistant", "tool_calls": [first, second]})
    storage = Storage(str(tmp_path))
    table = pa.Table.from_pylist([record.to_row()])
    storage.at("datasets", "f").write_table("eval/00000.parquet", table)
    desk = Desk(storage, "run")
    with FakeEndpoint(lambda _: {"role": "assistant", "tool_calls": [second, first]}) as fake:
        candidate = {"model": "fake", "endpoint": fake.url}
        changes = {"methods": {"base": {}}, "scoring": {"call_order": order}}
        (trial,) = plan(experiment(candidates=[candidate], **changes), "f")
        trials.answer(trial, desk, fake.endpoint(), silent)
    values = {s.metric: s.value for s in folders.read_scores(desk.folder(trial))}
    assert values["function_name_and_args_accuracy"] == value


def test_one_failed_request_is_failed_not_zero(desk: Desk) -> None:
    def half(body: Json) -> Json | Reply:
        if "A-1" in str(body):
            return Reply({"error": {"message": "no"}}, 400)
        return text_reply("I do not know")

    with FakeEndpoint(half) as fake:
        trial = answer(desk, fake)
    scores = folders.read_scores(desk.folder(trial))
    by_record = {s.record_id: s for s in scores if s.metric == "function_name"}
    assert by_record[RECORDS[0].id].status is ScoreStatus.FAILED
    assert by_record[RECORDS[1].id].value == 0.0
    figure = estimate(list(by_record.values()))
    assert (figure.n, figure.scored, figure.failed) == (2, 1, 1)


TRAIN = [
    ("b", sample_record("Where is B-1?", tool_reply("f", {"order": "B-1"}))),
    ("c", sample_record("Is it blue?", text_reply("Yes."))),
]


def few_shot_trial(desk: Desk, fake: FakeEndpoint, **icl: Any) -> Trial:
    """A trial of up to two examples, with the dataset's train split written."""
    rows = [{**record.to_row(), "class": name} for name, record in TRAIN]
    dataset = desk.storage.at("datasets", "f")
    dataset.write_table("train/00000.parquet", pa.Table.from_pylist(rows))
    candidate = {"model": "fake", "endpoint": fake.url, "concurrency": 2, "timeout_s": 5}
    methods = {"icl": {"examples": 2, "selection": "lexical", **icl}}
    return plan(experiment(candidates=[candidate], methods=methods), "f")[0]


def test_a_few_shot_trial_asks_with_examples_and_tells_how_many_had_room(desk: Desk) -> None:
    with FakeEndpoint(lambda body: text_reply("?")) as fake:
        trial = few_shot_trial(desk, fake)
        trials.answer(trial, desk, fake.endpoint(), silent)
    asked = [request.body["messages"][0]["content"] for request in fake.requests]
    assert all(0 < text.index("Is it blue?") < text.index("Where is B-1?") for text in asked)
    assert desk.folder(trial).read_json("answers.json")["icl"] == {
        "context_tokens": None,
        "counted_by": "no limit",
        "examples_per_record": 2,
        "fewer_than_examples": 0,
        "fewer_than_min_examples": 0,
    }


def test_what_has_no_room_is_left_out_and_counted(desk: Desk) -> None:
    with FakeEndpoint(lambda body: text_reply("?")) as fake:
        trial = few_shot_trial(desk, fake, max_context_tokens=900, min_examples=2)
        trials.answer(trial, desk, fake.endpoint(), silent)
    told = desk.folder(trial).read_json("answers.json")["icl"]
    assert (told["context_tokens"], told["counted_by"]) == (900, "estimate")
    assert told["examples_per_record"] == 1
    assert (told["fewer_than_examples"], told["fewer_than_min_examples"]) == (2, 2)


def test_a_few_shot_trial_without_examples_or_embeddings_asks_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    with FakeEndpoint(lambda body: text_reply("?")) as fake:
        small = few_shot_trial(desk, fake, max_context_tokens=600)
        with pytest.raises(EngineError, match="not one of 2 prompts has room"):
            trials.answer(small, desk, fake.endpoint(), silent)
        nowhere = {"selection": "semantic_similarity", "embedding_model": str(tmp_path / "none")}
        lost = few_shot_trial(desk, fake, **nowhere)
        with pytest.raises(ModelNotFoundError, match="none"):
            trials.answer(lost, desk, fake.endpoint(), silent)
    assert fake.requests == []
    assert not desk.folder(small).exists("answers.json")


def test_a_trial_without_one_answer_has_failed(desk: Desk) -> None:
    with FakeEndpoint(lambda body: Reply({"error": {"message": "go away"}}, 403)) as fake:
        with pytest.raises(EngineError, match=r"none of 2 requests was answered.*go away"):
            answer(desk, fake)
        assert not desk.folder(the_trial(fake)).exists("answers.json")


def test_a_trial_whose_endpoint_went_down_is_resumed_with_what_it_has(desk: Desk) -> None:
    def dies(body: Json) -> Json | Reply:
        return right(body) if "A-1" in str(body) else Reply(drop=True)

    with FakeEndpoint(dies) as fake:
        trial = the_trial(fake)
        hasty = fake.endpoint(client=ClientConfig(outage_s=0.2, backoff_s=0.01))
        with pytest.raises(EngineError, match="has not answered"):
            trials.answer(trial, desk, hasty, silent)
    assert not desk.folder(trial).exists("answers.json")
    with FakeEndpoint(right) as fake:
        trials.answer(trial, desk, fake.endpoint(), silent)
    assert ["A-1" in str(request.body) for request in fake.requests] == [False]
    assert desk.folder(trial).exists("answers.json")


def test_another_run_of_a_trial_pays_nothing(desk: Desk) -> None:
    with FakeEndpoint(right) as fake:
        trial, endpoint = the_trial(fake), fake.endpoint(client=ClientConfig())
        for run in ("one", "two"):
            trials.answer(trial, replace(desk, run_id=run), endpoint, silent)
    assert len(fake.requests) == 2
    latency, _ = folders.read_latency(replace(desk, run_id="two").folder(trial))
    assert latency is not None


def test_a_failure_is_a_sentence_on_disk(desk: Desk) -> None:
    folder = desk.folder(Trial("c", "m", "lora", {}, "f", 0))
    assert folders.failure(folder) == ""
    folders.write_failure(folder, TrainingError("loss is nan at step 3 of 9"))
    assert folders.failure(folder) == "loss is nan at step 3 of 9"
    folders.write_failure(folder, ValueError("x" * 10_000))
    assert folders.failure(folder).startswith("ValueError: xxx")
    assert len(folders.failure(folder)) <= 2000


def test_a_trained_adapter_is_not_trained_again(desk: Desk) -> None:
    trial = next(t for t in plan(experiment(), "f") if t.method == "lora")
    desk.folder(trial).write_json("training.json", {"losses": []})
    trials.train(trial, desk, 1, silent)


def test_a_desk_knows_where_everything_lies(desk: Desk) -> None:
    trial = Trial("c", "m", "base", {}, "f", 0)
    assert desk.folder(trial).url == f"{desk.storage.url}/runs/run/trials/{trial.key}"
    assert desk.records(trial, "eval") == RECORDS
    assert desk.records(trial, "train") == []


def test_an_endpoint_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-1")
    endpoint = Endpoint("http://x/v1", "m", "SHOP_KEY")
    assert endpoint.api_key == "sk-1"
    assert "sk-1" not in repr(endpoint)
