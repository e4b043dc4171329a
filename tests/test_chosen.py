"""A chosen trial is served as it was ranked, and what an engine alone cannot do is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flywheel import chosen, config, folders
from flywheel.chosen import Choice
from flywheel.cluster import Cluster
from flywheel.errors import ConfigError, RequestError
from flywheel.folders import Desk
from flywheel.storage import Storage
from flywheel.types import Json, Trial

CANDIDATE = {
    "name": "small",
    "model": "org/small",
    "engine": {"max_model_len": 512},
    "tool_parser": "hermes",
    "gpus": 1,
}
CLUSTER = Cluster([{"CPU": 8.0, "GPU": 2.0}], ours=False)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A run of one candidate, without trials."""
    data: Json = {
        "name": "shop",
        "logs": "sample://100",
        "workload": "shop.router",
        "candidates": [CANDIDATE],
        "methods": {"base": {}},
    }
    desk = Desk(Storage(str(tmp_path)), "shop-1")
    text = config.dump(config.validate(data, "here"))
    desk.run.write_bytes("experiment.yaml", text.encode())
    return desk


def finished(desk: Desk, method: str, status: str = "succeeded", **settings: Any) -> Choice:
    parameters = {"rank": 32} if method == "lora" else {}
    trial = Trial("small", "org/small", method, parameters, "f00d", 0, settings)
    folders.write_spec(desk.folder(trial), trial)
    desk.folder(trial).write_json("result.json", {"status": status})
    return Choice(storage=desk.storage.url, run=desk.run_id, trial=trial.key)


def test_weights_as_they_are_need_no_adapters(desk: Desk) -> None:
    spec = chosen.spec(finished(desk, "base"), CLUSTER)
    assert (spec.config.model, spec.adapters_url, spec.gpus) == ("org/small", "", 1)
    assert spec.config.engine == CANDIDATE["engine"]
    assert spec.config.tool_parser == "hermes"


def test_an_adapter_comes_from_the_run(desk: Desk) -> None:
    choice = finished(desk, "lora").model_copy(update={"name": "shop-router"})
    spec = chosen.spec(choice, CLUSTER)
    assert (spec.name, spec.adapters_url, spec.max_rank) == ("shop-router", desk.trials.url, 32)
    assert spec.endpoint(choice.trial).model == f"shop-router:{choice.trial}"


def test_wholly_trained_weights_come_from_the_trials_folder(desk: Desk) -> None:
    choice = finished(desk, "full")
    spec = chosen.spec(choice, CLUSTER)
    assert spec.config.model == desk.trials.at(choice.trial, "model").url
    assert spec.adapters_url == ""


def test_the_service_says_what_it_may_hold(desk: Desk) -> None:
    more = {"gpus": 2, "min_replicas": 2, "max_replicas": 3}
    spec = chosen.spec(finished(desk, "base").model_copy(update=more), CLUSTER)
    assert spec.gpus == 2
    assert (spec.config.min_replicas, spec.config.max_replicas) == (2, 3)


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("icl", {}, "its examples are chosen anew for each request"),
        ("base", {"system_prompt": "Be brief."}, "a system prompt of its own"),
        ("base", {"status": "failed"}, "this one is failed"),
    ],
)
def test_what_an_engine_alone_cannot_do_is_refused(
    desk: Desk, method: str, settings: Json, says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        chosen.spec(finished(desk, method, **settings), CLUSTER)


def test_a_trial_that_is_not_there_is_named(desk: Desk) -> None:
    choice = Choice(storage=desk.storage.url, run=desk.run_id, trial="feed")
    with pytest.raises(RequestError, match=r"shop-1/trials/feed: .* this one is missing"):
        chosen.spec(choice, CLUSTER)


def test_a_wrong_field_of_the_choice_is_named_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as error:
        chosen.app({"storage": "s3://b/runs", "run": "r", "trail": "t"})
    assert "trail: unknown field; allowed: cpus, gpus, max_replicas" in str(error.value)
    assert "trial: is required and missing" in str(error.value)
