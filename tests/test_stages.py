"""Stages of a run as far as they need neither Ray nor a model."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flywheel import costs, preflight
from flywheel.budget import Budget
from flywheel.cluster import Cluster
from flywheel.config import BudgetConfig, Experiment, validate
from flywheel.errors import RequestError
from flywheel.folders import Desk, write_failure, write_stop
from flywheel.monitor import Monitor
from flywheel.progress import Silent
from flywheel.scoring import References
from flywheel.serving import Endpoint
from flywheel.stages import hosting, results
from flywheel.stages.metering import Meter
from flywheel.stages.results import Yardstick
from flywheel.stages.session import Session
from flywheel.storage import Storage
from flywheel.testing import sample_record
from flywheel.types import Json, Trial

SMALL: Json = {"name": "small", "model": "org/small", "price_per_hour": 3.0, "gpus": 2}


def session(place: Path, *candidates: Json) -> Session:
    data = {
        "name": "shop",
        "logs": "logs",
        "storage": str(place),
        "workload": "w",
        "candidates": list(candidates or [SMALL]),
        "methods": {"base": {}, **({} if candidates else {"lora": {"gpus": 1}})},
    }
    experiment = validate(data, "test.yaml")
    desk, budget = Desk(Storage(str(place)), "shop-1"), Budget(BudgetConfig())
    cluster = Cluster([{"CPU": 8.0, "GPU": 4.0}], ours=True)
    monitor = Monitor(desk, Silent(), budget)
    return Session(experiment, desk, cluster, budget, monitor, {"seed": 1})


def trial(title: str = "small", method: str = "lora", **parameters: Any) -> Trial:
    return Trial(title, "org/small", method, parameters or {"rank": 8}, "abc", 1, {})


def yardstick(experiment: Experiment) -> Yardstick:
    return Yardstick({}, preflight.power(experiment, 100), costs.NO_PRICE, None)


def test_a_training_costs_what_its_machine_and_gpus_take(tmp_path: Path) -> None:
    here = session(tmp_path)
    Meter(here).trained(trial())  # not trained yet
    assert (here.budget.gpu_hours, here.budget.dollars) == (0.0, 0.0)
    here.desk.folder(trial()).write_json("training.json", {"seconds": 7200})
    Meter(here).trained(trial())
    assert (here.budget.gpu_hours, here.budget.dollars) == (2.0, 6.0)


def test_an_engine_holds_the_largest_rank_among_its_adapters(tmp_path: Path) -> None:
    here = session(tmp_path)
    found = hosting.Engines(here, Counter())
    model = here.experiment.candidates[0]
    alone = found.spec(model)
    spec = found.spec(model, [trial(rank=8), trial(rank=32), trial(method="base")])
    assert (alone.adapters_url, alone.name) == ("", spec.name)
    assert (spec.adapters_url, spec.max_rank, spec.gpus) == (here.desk.trials.url, 32, 2)


def test_candidates_behind_one_endpoint_wait_in_one_queue(tmp_path: Path) -> None:
    url = {"model": "org/small", "endpoint": "http://there/v1"}
    other = {"name": "c", "model": "org/small", "endpoint": "http://elsewhere/v1"}
    here = session(tmp_path, {"name": "a", **url}, {"name": "b", **url}, other)
    waiting = [trial(title, "base") for title in "abc"]
    endpoints: dict[str, Endpoint] = {}
    queues = hosting.Engines(here, Counter()).queues(waiting, endpoints)
    assert [[t.candidate for t in queue.trials] for queue in queues] == [["a", "b"], ["c"]]
    assert endpoints[waiting[1].key].url == "http://there/v1"


def test_a_trial_without_answers_has_failed_and_says_why(tmp_path: Path) -> None:
    here = session(tmp_path)
    result = results.collect(here, yardstick(here.experiment), trial())
    assert (result.status, result.error) == ("failed", "the trial left no answers")
    folder = here.desk.folder(trial())
    write_failure(folder, RequestError("no room"))
    again = results.collect(here, yardstick(here.experiment), trial())
    assert "no room" in again.error
    assert folder.read_json("result.json") == again.to_json()
    assert again.provenance == {"seed": 1}


def test_a_training_that_was_stopped_is_no_failure(tmp_path: Path) -> None:
    here = session(tmp_path)
    stop = {"by": "asha", "share": 0.25, "val_loss": 1.5, "seconds": 60}
    write_stop(here.desk.folder(trial()), stop)
    result = results.collect(here, yardstick(here.experiment), trial())
    assert result.status == "stopped"
    assert result.error == "by asha after 25 % of its training, val loss 1.5"


def test_expected_answers_of_other_records_are_refused(tmp_path: Path) -> None:
    experiment = session(tmp_path).experiment
    records = [sample_record(), sample_record("another?")]
    some = References({records[0].id: {"content": "yes"}}, "1")
    (warning,) = preflight.require_references(experiment, some, records, "abc")
    assert "1 of 2 eval records" in warning
    whole = References({record.id: {"content": "yes"} for record in records}, "2")
    assert preflight.require_references(experiment, whole, records, "abc") == []
    with pytest.raises(RequestError, match="none of the 2 eval records of dataset abc"):
        preflight.require_references(experiment, References({"x": {}}, "3"), records, "abc")
