"""A mistake in an experiment file is one sentence: file, field, value, what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flywheel.config import Experiment, dump, load, schema, secret, validate
from flywheel.errors import ConfigError
from flywheel.planning import plan, suggestions
from flywheel.types import Json

GOOD: Json = {
    "name": "t",
    "logs": "logs",
    "workload": "w",
    "candidates": [{"model": "org/m"}],
    "methods": {"base": {}},
}
REMOTE: Json = {"model": "big", "endpoint": "https://api.example/v1"}


def changed(**changes: Any) -> Experiment:
    return validate({**GOOD, **changes}, "x.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


MISTAKES: list[tuple[Json, list[str]]] = [
    ({"logs": None}, ["logs", "string", "None"]),
    ({"nmae": "t"}, ["nmae", "unknown field", "allowed", "candidates", "workload"]),
    ({"name": "../up"}, ["name", "'../up'"]),
    ({"seed": "many"}, ["seed", "integer", "'many'"]),
    ({"candidates": []}, ["candidates", "at least 1"]),
    ({"candidates": [{}]}, ["candidates.0.model", "required"]),
    ({"candidates": [{"model": "m", "gpu": 1}]}, ["candidates.0.gpu", "unknown", "gpus"]),
    ({"candidates": [{"model": "m", "concurrency": 0}]}, ["candidates.0.concurrency", "1", "0"]),
    ({"candidates": [{"model": "m"}, {"model": "x/m"}]}, ["two candidates", "'m'", "name"]),
    ({"candidates": [{**REMOTE, "endpoint": "api.example"}]}, ["'api.example'", "http://"]),
    ({"candidates": [{**REMOTE, "engine": {"dtype": "auto"}}]}, ["engine", "served here"]),
    ({"candidates": [{**REMOTE, "methods": ["lora"]}]}, ["lora needs weights", "base and icl"]),
    ({"candidates": [{"model": "m", "api_key_env": "K"}]}, ["api_key_env", "endpoint"]),
    ({"candidates": [{"model": "m", "client": {"attempts": 2}}]}, ["client", "endpoint"]),
    ({"candidates": [{**REMOTE, "client": {"rpm": 2}}]}, ["client.rpm", "requests_per_minute"]),
    ({"candidates": [{**REMOTE, "client": {"attempts": 0}}]}, ["client.attempts", "1", "0"]),
    ({"candidates": [{**REMOTE, "client": {"api_key_header": "a: b"}}]}, ["api_key_header"]),
    ({"candidates": [{**REMOTE, "endpoint": "https://x/v1?api-key=s"}]}, ["key", "api_key_env"]),
    ({"candidates": [{**REMOTE, "endpoint": "https://u:p@x/v1"}]}, ["key", "api_key_env"]),
    (
        {"candidates": [{"model": "m", "engine": {"trust_remote_code": True}}]},
        ["trust_remote_code", "off"],
    ),
    (
        {"candidates": [{"model": "m", "min_replicas": 3, "max_replicas": 2}]},
        ["max_replicas 2", "less than", "3"],
    ),
    ({"parity": {"records": 0}}, ["parity.records", "1", "0"]),
    ({"candidates": [{"model": "m", "methods": ["sft"]}]}, ["methods.0", "'base'", "'sft'"]),
    ({"candidates": [{"model": "m", "methods": ["icl"]}]}, ["'m'", "base", "can do no method"]),
    ({"candidates": [REMOTE], "methods": {"lora": {}}}, ["'big'", "lora", "can do no method"]),
    ({"methods": {}}, ["methods", "base, icl, lora or full"]),
    ({"methods": {"lora": {"rank": 7}}}, ["methods.lora", "rank 7", "8, 16, 32"]),
    ({"methods": {"lora": {"rank": [8, 24]}}}, ["methods.lora", "rank 24", "8, 16, 32"]),
    ({"methods": {"lora": {"ranks": 8}}}, ["methods.lora.ranks", "unknown", "rank"]),
    ({"methods": {"lora": {"use_dora": True}}}, ["methods.lora", "use_dora", "cannot serve DoRA"]),
    ({"methods": {"lora": {"modules_to_save": ["lm_head"]}}}, ["modules_to_save", "`full`"]),
    ({"methods": {"lora": {"init": "pissa"}}}, ["methods.lora", "'pissa'", "gaussian", "base's"]),
    ({"methods": {"lora": {"quantization": "4bit", "gpus": 0}}}, ["4bit", "gpus is 0"]),
    ({"methods": {"lora": {"schedule": "step"}}}, ["lora.schedule", "'cosine'", "'step'"]),
    ({"methods": {"full": {"rank": 8}}}, ["methods.full.rank", "unknown", "learning_rate"]),
    ({"candidates": [{**REMOTE, "methods": ["full"]}]}, ["full needs weights", "base and icl"]),
    ({"methods": {"lora": {"learning_rate": -1}}}, ["methods.lora.learning_rate", "-1"]),
    ({"methods": {"icl": {"examples": 100}}}, ["methods.icl.examples", "64", "100"]),
    ({"methods": {"icl": {"relevance_ratio": 1.5}}}, ["methods.icl.relevance_ratio", "1", "1.5"]),
    ({"methods": {"icl": {"selection": "random"}}}, ["icl.selection", "'lexical'", "'random'"]),
    (
        {"methods": {"icl": {"examples": [1, 3], "min_examples": 2}}},
        ["methods.icl", "min_examples 2", "examples (1)"],
    ),
    (
        {"methods": {"icl": {"selection": "uniform_distribution", "relevance_ratio": 0.5}}},
        ["methods.icl", "uniform_distribution", "relevance_ratio"],
    ),
    ({"dataset": {"eval_share": 1}}, ["dataset.eval_share", "less than 1"]),
    ({"sampling": {"temperature": 3}}, ["sampling.temperature", "2", "3"]),
    ({"ranking": {"margin": 90}}, ["ranking.margin", "1", "90"]),
    ({"ranking": {"margin": float("nan")}}, ["ranking.margin", "nan"]),
    ({"ranking": {"baseline": "gpt"}}, ["ranking.baseline", "gpt", "must be a candidate"]),
    (
        {"candidates": [{"model": "m", "price_per_hour": float("inf")}]},
        ["candidates.0.price_per_hour", "finite", "inf"],
    ),
    ({"judge": {"model": "org/m"}}, ["judge.model", "'org/m'", "candidate"]),
    (
        {
            "candidates": [REMOTE],
            "judge": {"model": "big", "endpoint": f"{REMOTE['endpoint']}/"},
        },
        ["judge.model", "'big'", "candidate"],
    ),
    ({"judge": {"floor": 2}}, ["judge.floor", "1", "2"]),
    ({"judge": [{"model": "j"}, {"floor": 2}]}, ["judge.1.floor", "1", "2"]),
    ({"judge": [{"model": "j"}, {"model": "org/m"}]}, ["judge.model", "'org/m'", "candidate"]),
    ({"judge": {"flor": 1}}, ["judge.flor: unknown field; allowed: ", "floor, "]),
    ({"judge": [{"flor": 1}]}, ["judge.0.flor: unknown field; allowed: ", "floor, "]),
    ({"judge": 3}, ["judge: Input should be a valid dictionary"]),
    ({"judge": [{"model": "j"}, {"model": "j", "floor": 0.9}]}, ["two judges are the same"]),
    ({"judging": {"combine": "median"}}, ["judging.combine", "mean", "majority"]),
    ({"production": {"price": {"input": 1}}}, ["production.price.input", "input_per_million"]),
]


@pytest.mark.parametrize(
    ("change", "said"), MISTAKES, ids=lambda x: "" if isinstance(x, list) else str(x)
)
def test_a_mistake_is_told_with_file_field_value_and_what_is_allowed(
    change: Json, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        changed(**change)
    text = str(error.value)
    assert text.startswith("x.yaml: ")
    assert [part for part in said if part not in text] == []
    assert "pydantic" not in text


def test_all_mistakes_are_told_at_once_each_on_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        changed(seed="x", nmae=1, judge={"floor": 2})
    assert len(str(error.value).splitlines()) == 3


def test_a_field_of_several_types_is_told_once() -> None:
    with pytest.raises(ConfigError) as error:
        changed(dataset={"since": "yesterday"})
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert [
        part for part in ("dataset.since:", "number", "date", "'yesterday'") if part not in text
    ] == []


def test_a_long_value_is_shown_shortened() -> None:
    with pytest.raises(ConfigError) as error:
        changed(name="x/" * 1000)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- a", "must be a mapping of fields, not list"),
        (b"", "must be a mapping of fields, not NoneType"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"1: 2", "1: "),
    ],
)
def test_a_file_that_is_no_experiment_is_refused_by_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("methods.lora.rank=[8,16]", "methods.lora.rank", [8, 16]),
        ("methods.lora.learning_rate=1e-3", "methods.lora.learning_rate", 1e-3),
        ("candidates.0.model=org/n", "candidates.0.model", "org/n"),
        ("candidates.0.engine.max_model_len=512", "candidates.0.engine.max_model_len", 512),
        ("candidates.0={model: a, name: b}", "candidates.0.name", "b"),
        ("judge=null", "judge", None),
        ("logs=s3://b/x=y", "logs", "s3://b/x=y"),
        ("dataset.limit=", "dataset.limit", None),
        ("methods.icl={}", "methods.icl.examples", 3),
    ],
)
def test_set_changes_one_field(file: Path, override: str, path: str, value: Any) -> None:
    place: Any = load(file, [override]).model_dump()
    for part in path.split("."):
        place = place[int(part)] if part.isdigit() else place[part]
    assert place == value


def test_later_overrides_win(file: Path) -> None:
    assert load(file, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "must look like key=value"),
        ("=1", "must look like key=value"),
        ("seed=[", "--set seed=["),
        ("candidates.1.model=x", "'1' is no position; allowed: 0 to 0"),
        ("candidates.first.model=x", "'first' is no position; allowed: 0 to 0"),
        ("name.x=1", "name is 't', which has no fields"),
        ("candidates.0.model.x=1", "candidates.0.model is 'org/m', which has no fields"),
        ("candidates.0.model.x.y=1", "candidates.0.model is 'org/m', which has no fields"),
        ("mehtods.lora.rank=8", "mehtods: unknown field"),
        ("seed=x", "seed: "),
    ],
)
def test_a_wrong_override_is_told_in_one_sentence(file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_override_into_a_list_of_plain_values_is_refused(file: Path) -> None:
    overrides = ["methods.lora.rank=[8,16]", "methods.lora.rank.0.x=1"]
    with pytest.raises(ConfigError, match=r"methods\.lora\.rank\.0 is 8, which has no fields"):
        load(file, overrides)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"judge": None, "methods": {"icl": {"examples": [1, 3]}, "lora": {"rank": [8, 16]}}},
        {"candidates": [{**REMOTE, "name": "É", "api_key_env": "K", "concurrency": 4}]},
    ],
)
def test_dump_says_everything_and_loads_back_the_same(tmp_path: Path, changes: Json) -> None:
    experiment = changed(**changes)
    text = dump(experiment)
    path = tmp_path / "dumped.yaml"
    path.write_text(text)
    assert load(path) == experiment
    assert dump(load(path)) == text
    assert yaml.safe_load(text)["dataset"]["eval_size"] == 100


FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_of_the_repository_loads_plans_trials_and_fits_its_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parent)
    experiment = load(path)
    assert plan(experiment, "f")
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    written = json.loads((FOLDER / "schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), written)


def test_the_small_sweep_is_what_it_says() -> None:
    experiment = load(FOLDER / "sweep_small.yaml")
    known = [trial.method for trial in plan(experiment, "f")]
    assert (known.count("base"), known.count("icl"), known.count("lora")) == (1, 2, 0)
    assert suggestions(experiment) == 8
    assert experiment.search.scheduler.kind == "asha"


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert json.loads((FOLDER / "schema.json").read_text()) == schema()


@pytest.mark.parametrize("field", ["methods.lora.rnak", "search.sampler", "nmae"])
def test_an_editor_with_the_schema_sees_a_misspelt_field(field: str) -> None:
    data: Json = {**GOOD, "methods": {"lora": {}}, "search": {}}
    place, *rest = [data, *field.split(".")[:-1]]
    for part in rest:
        place = place[part]
    place[field.rsplit(".", maxsplit=1)[-1]] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema())


def test_an_experiment_never_changes() -> None:
    with pytest.raises(ValueError, match="frozen"):
        changed().seed = 1


def test_a_candidate_is_called_by_its_name_or_the_last_part_of_its_model() -> None:
    assert changed(candidates=[{"model": "a/b/"}]).candidates[0].title == "b"
    assert changed(candidates=[{"model": "a/b", "name": "c"}]).candidates[0].title == "c"


def test_a_secret_comes_from_the_environment_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-1\n")
    assert secret("SHOP_KEY") == "sk-1"
    assert secret(None) == "none"


@pytest.mark.parametrize("value", ["", " \n"])
def test_a_missing_secret_is_told_by_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SHOP_KEY", value)
    with pytest.raises(ConfigError, match="environment variable SHOP_KEY is not set"):
        secret("SHOP_KEY")


def test_a_key_written_where_its_variables_name_belongs_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as error:
        changed(candidates=[{**REMOTE, "api_key_env": "sk-live/abc 123"}])
    assert "candidates.0.api_key_env" in str(error.value)
    assert "sk-live" not in str(error.value)


@pytest.mark.parametrize("value", [True, False, 0, 14])
def test_attacks_are_a_number_or_all_or_none(value: bool | int):
    found = changed(judge={"injection_suite": value})
    assert found.judges[0].injection_suite is value


@pytest.mark.parametrize("value", ["many", -1, 2.5, None])
def test_what_is_no_number_of_attacks_is_one_sentence(value: Any):
    with pytest.raises(ConfigError) as error:
        changed(judge={"injection_suite": value})
    (line,) = str(error.value).splitlines()
    assert "judge.injection_suite: must be a number of attacks, true for all, or false" in line
